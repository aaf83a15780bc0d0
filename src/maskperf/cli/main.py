"""The command `maskperf`: finds the sub-command, and is the only place that catches errors.

Nothing heavy is imported here, so that the help and a misspelt command are answered at once.
"""

import difflib
import errno
import importlib
import importlib.metadata
import io
import os
import shlex
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path

from maskperf import errors
from maskperf.cli.help import help_text
from maskperf.run.run_folder import current_run_folder, forget_run_folder

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
LOCALE_FIX = "Fix: set PYTHONUTF8=1, or a UTF-8 locale such as LC_ALL=C.UTF-8"


@dataclass(frozen=True)
class Command:
    """Where a sub-command is; the function takes the words after its name and returns the exit code."""

    module: str
    function: str
    summary: str


COMMANDS = {
    "run": Command("maskperf.cli.run", "run", "train a recipe until its targets are met, and report"),
    "evaluate": Command("maskperf.cli.evaluate", "evaluate", "find the box AP and mask AP of trained weights"),
    "convert": Command("maskperf.cli.convert", "convert", "change the form of weight files"),
    "prepare": Command("maskperf.cli.prepare", "prepare", "download, check and unpack COCO 2017 and the backbone"),
    "doctor": Command("maskperf.cli.doctor", "doctor", "look at this machine and say what it means for a run"),
    "plan": Command("maskperf.cli.plan", "plan", "predict time to target and score for a number of devices"),
    "report": Command("maskperf.cli.report", "report", "write a page about one run or several"),
    "check": Command("maskperf.cli.check", "check", "let MLPerf's own checkers judge logs, and explain their findings"),
    "package": Command("maskperf.cli.package", "package", "build the folder of a submission from five runs"),
    "bench": Command("maskperf.cli.bench", "bench", "measure how fast the parts are, against others where asked"),
    "replay": Command("maskperf.cli.replay", "replay", "run the step again at which a run went wrong"),
}


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code (see maskperf.errors) of one command; `arguments` are by default those of the process."""
    words = sys.argv[1:] if arguments is None else arguments
    _write_any_letter()
    forget_run_folder()
    try:
        _demand_text(words)
        code = _dispatch(words)
        sys.stdout.flush()  # a closed pipe shows here, not when Python ends
        return code
    except SystemExit as stop:
        return _code_of_exit(stop)
    except errors.DataError as error:
        return _say(str(error) + _list_of_problems(error), error.exit_code)
    except errors.UserError as error:
        return _say(str(error), error.exit_code)
    except KeyboardInterrupt:
        print("interrupted: stopped with Ctrl-C", file=sys.stderr)
        return errors.EXIT_INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return _say("the reader of the output went away before the end", errors.EXIT_BUG)
    except Exception as error:
        return _handle_unforeseen(error, words)


def _write_any_letter() -> None:
    """Return nothing; letters that the terminal's encoding lacks are written as \\u8f66 from now on, not refused.

    Escapes and not question marks, so that two names stay two names and a file can still be found.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _demand_text(words: list[str]) -> None:
    """Return nothing. Errors: ConfigError for bytes that are no text: no JSON file could hold such a name."""
    broken = [word for word in words if any("\ud800" <= letter <= "\udfff" for letter in word)]
    if broken:
        text = f"{broken[0]!r}: holds bytes that are no text in the encoding {sys.getfilesystemencoding()}"
        raise errors.ConfigError(f"{text}. {LOCALE_FIX}, or rename the file")


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        print(help_text({name: command.summary for name, command in COMMANDS.items()}))
        return errors.EXIT_DONE
    if words[0] in ("--version", "-V"):
        print(f"maskperf {_version()}")
        return errors.EXIT_DONE
    command = COMMANDS.get(words[0])
    if command is None:
        raise errors.ConfigError(_unknown_command(words[0]))
    return getattr(importlib.import_module(command.module), command.function)(words[1:])


def _unknown_command(word: str) -> str:
    nearest = difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(COMMANDS)}"
    return f"unknown command {word!r}; {hint} (maskperf --help tells more)"


def _version() -> str:
    try:
        return importlib.metadata.version("maskperf")
    except importlib.metadata.PackageNotFoundError:
        return "of a source tree that is not installed"


def _code_of_exit(stop: SystemExit) -> int:
    """Return what Python itself would have made of sys.exit(...)."""
    if stop.code is None:
        return errors.EXIT_DONE
    if isinstance(stop.code, int):
        return stop.code
    return _say(str(stop.code), errors.EXIT_BUG)


def _list_of_problems(error: errors.DataError) -> str:
    """Return where all problems are listed in full after writing them there; nothing if the message has all."""
    text = error.all_lines()
    if not text:
        return ""
    run_folder = current_run_folder()
    for folder in (run_folder, Path.cwd(), Path(tempfile.gettempdir())):
        if folder is None or not folder.is_dir():
            continue
        path = folder / f"maskperf-errors-{os.getpid()}.txt"
        try:
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError:
            continue
        return f"\neach of them in full: {path}"
    return ""


def _handle_unforeseen(error: Exception, words: list[str]) -> int:
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        place = f"{error.filename}: " if error.filename else ""
        text = f"{place}no space left on the disk ({error.strerror}). Fix: free some, or choose another run_dir"
        return _say(text, errors.EXIT_STORAGE)
    if isinstance(error, PermissionError) and error.filename:
        text = f"{error.filename}: this user has no permission there. Fix: ask its owner, or choose another place"
        return _say(text, errors.EXIT_STORAGE)
    if _is_out_of_memory(error):
        fix = "a smaller optimizer.batch_size or evaluation.batch_size, or more optimizer.accumulation_steps"
        return _say(f"not enough memory ({_first_line(error)}). Fix: {fix}", errors.EXIT_BUG)
    if isinstance(error, UnicodeEncodeError) and sys.getfilesystemencoding() != "utf-8":
        text = f"the name {error.object!r} cannot be used in this locale, whose encoding is {error.encoding}"
        return _say(f"{text}. {LOCALE_FIX}", errors.EXIT_USAGE)
    return _report_bug(error, words)


def _is_out_of_memory(error: Exception) -> bool:
    # torch is not imported here: its own error for a GPU is known by name, that for the CPU only by its text.
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)


def _report_bug(error: Exception, words: list[str]) -> int:
    trace = "".join(traceback.format_exception(error))
    folder = current_run_folder()
    name = f"maskperf-bug-{os.getpid()}.txt"
    path = (folder if folder is not None and folder.is_dir() else Path.cwd()) / name
    heading = f"maskperf {_version()}, Python {sys.version.split()[0]}\ncommand: maskperf {shlex.join(words)}\n\n"
    try:
        path.write_text(heading + trace, encoding="utf-8", errors="backslashreplace")
    except OSError as reason:
        print(heading + trace, file=sys.stderr)
        return _say(f"a bug in maskperf: {_first_line(error)}; its trace is above ({path}: {reason})", errors.EXIT_BUG)
    return _say(f"a bug in maskperf: {_first_line(error)}; the details are in {path}", errors.EXIT_BUG)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _say(text: str, code: int) -> int:
    print(f"error: {text}", file=sys.stderr)
    return code


def _discard_output() -> None:
    """Send what is still in the buffer nowhere, or Python would complain of it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
