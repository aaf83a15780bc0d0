"""The command `maskperf`: finds the sub-command, and is the only place that catches errors.

Nothing heavy is imported here, so that the help and a misspelt command are answered at once.
"""

import errno
import hashlib
import importlib.metadata
import io
import os
import shlex
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path

from maskperf import errors
from maskperf.run.run_folder import current_run_folder, forget_run_folder

# Each command is the function of its name in maskperf.cli.<name>; its options are found by its `CommandParser`.
COMMANDS = {
    "train": "train on own data: a folder of images and annotations",
    "run": "train a recipe until its targets are met, and report",
    "evaluate": "find the box AP and mask AP of trained weights",
    "predict": "find objects in images and videos, and draw them",
    "export": "write the network for ONNX and other runtimes, verified",
    "convert": "change the form of weight files",
    "weights": "say what a weight file is, whoever wrote it, and write it in another form",
    "prepare": "download, check and unpack COCO 2017 and the backbone",
    "doctor": "check whether this machine is ready for a run, and how to fix it",
    "plan": "predict time to target and score for a number of devices",
    "keys": "list the keys of the configuration, or those about a word such as lr",
    "report": "write a page about one run or several",
    "check": "run MLPerf's own checkers on logs, and explain their findings",
    "package": "build the folder of a submission from five runs",
    "bench": "measure how fast the parts are, against others where asked",
    "replay": "run the step again at which a run went wrong",
}
WITHOUT_ARGUMENTS = ("doctor", "bench", "keys")  # the others show their help then
EXAMPLES = (
    ("maskperf run demo", "train a small model on synthetic images"),
    (
        "maskperf run coco data.root=/data/coco model.backbone_weights=/data/R-50.pkl",
        "the benchmark on one device, until both targets are met",
    ),
    (
        "maskperf run coco_batch_96 processes=8 runs=5 data.root=/data/coco",
        "five runs of it on the eight GPUs of this machine",
    ),
    ("maskperf doctor --data /data/coco", "whether this machine is ready for a run"),
    (
        "maskperf evaluate --weights runs/demo-1/model.safetensors --data data/demo",
        "the box AP and mask AP of weights that are already there",
    ),
)
EXIT_CODES = (
    (errors.EXIT_DONE, "done; for a run: both targets met"),
    (errors.EXIT_BUG, "a bug of maskperf, COCO engines that disagree, or not enough memory"),
    (errors.EXIT_USAGE, "a command, key or value that cannot be used"),
    (errors.EXIT_DATA, "problems in annotations, images or weights"),
    (errors.EXIT_RULE, "a rule of the benchmark is broken, or a checker refuses"),
    (errors.EXIT_NOT_FINITE, "a loss, gradient or weight is not a finite number, or training collapsed"),
    (errors.EXIT_TARGET_MISSED, "the run ended without meeting both targets"),
    (errors.EXIT_STORAGE, "a folder or file cannot be written, or the disk is full"),
    (errors.EXIT_REQUEUE, "stopped by SIGTERM or SIGUSR1 after a checkpoint; resume=auto goes on"),
    (errors.EXIT_INTERRUPTED, "stopped with Ctrl-C; a run that had begun to train has a checkpoint"),
)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
LOCALE_FIX = "Fix: set PYTHONUTF8=1, or a UTF-8 locale such as LC_ALL=C.UTF-8"


def main(arguments: list[str] | None = None) -> int:
    """Run one command, by default that of the process, and return its exit code (see maskperf.errors)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _escape_unencodable_characters()
    forget_run_folder()
    try:
        code = execute(arguments)
        sys.stdout.flush()  # a closed pipe shows here, not when Python ends
        return code
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or errors.EXIT_DONE
        return _fail(str(stop.code), errors.EXIT_BUG)
    except errors.UserError as error:
        return _fail(str(error), error.exit_code, error)
    except KeyboardInterrupt:
        print("interrupted: stopped with Ctrl-C", file=sys.stderr)
        return errors.EXIT_INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return _fail("the reader of the output went away before the end", errors.EXIT_BUG)
    except Exception as error:
        return _handle_unforeseen(error, arguments)


def execute(arguments: list[str]) -> int:
    """Run one command and return its exit code; errors pass."""
    undecodable = [text for text in arguments if any("\ud800" <= letter <= "\udfff" for letter in text)]
    if undecodable:  # no JSON file could hold such a name
        encoding = sys.getfilesystemencoding()
        raise errors.ConfigError(
            f"{undecodable[0]!r}: holds bytes that are not text in {encoding}. {LOCALE_FIX}, or rename the file"
        )
    name, *rest = arguments or ["help"]
    if rest == ["help"] and name in COMMANDS:
        rest = ["--help"]
    if name == "help" and rest:
        name, rest = rest[0], ["--help"]
    if name in ("help", "--help", "-h"):
        print(help_text())
        return errors.EXIT_DONE
    if name in ("--version", "-V"):
        print(f"maskperf {_version()}")
        return errors.EXIT_DONE
    if name not in COMMANDS:
        from maskperf.files import suggestion

        raise errors.ConfigError(f"unknown command {name!r}{suggestion(name, COMMANDS)} (see maskperf --help)")
    from maskperf.cli.arguments import CommandParser

    parser = CommandParser(name)
    if {"--help", "-h"} & set(rest) or not (rest or name in WITHOUT_ARGUMENTS):
        print(parser.format_help(), end="")
        return errors.EXIT_DONE
    return parser.run(parser.read(rest))


def help_text() -> str:
    """Return the help of all commands, at most 100 columns wide."""
    examples = [f"  # {purpose}\n  {command}" for command, purpose in EXAMPLES]
    commands = [f"  {name:<10} {summary}" for name, summary in COMMANDS.items()]
    codes = [f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES]
    return "\n".join(
        [
            "maskperf: the MLPerf Training Mask R-CNN benchmark in PyTorch",
            *["", "Examples, to copy and paste:", *examples],
            *["", "Commands:", *commands],
            f"  {'--version':<10} print the version",
            f"  {'--help':<10} print this text; `maskperf help COMMAND` shows the options of one command",
            *["", "Exit codes:", *codes],
        ]
    )


def _version() -> str:
    try:
        return importlib.metadata.version("maskperf")
    except importlib.metadata.PackageNotFoundError:
        return "of a source tree that is not installed"


def _escape_unencodable_characters() -> None:
    """Write characters that the terminal's encoding lacks as \\u8f66: two names stay two names."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _write_for_the_user(name: str, text: str) -> Path | None:
    """Write a text to the run, to this folder or among temporary files, where that can be; return its path."""
    for folder in (current_run_folder(), Path.cwd(), Path(tempfile.gettempdir())):
        if folder is not None and folder.is_dir():
            path = folder / f"maskperf-{name}-{os.getpid()}.txt"
            with suppress(OSError):
                path.write_text(text, encoding="utf-8", errors="backslashreplace")
                return path
    return None


def _handle_unforeseen(error: Exception, arguments: list[str]) -> int:
    # torch is not imported here: its error for a GPU is known by name, that for the CPU only by its text.
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        file = f"{error.filename}: " if error.filename else ""
        text = f"{file}no space left on the disk ({error.strerror}). Fix: free some, or choose another run_dir"
        return _fail(text, errors.EXIT_STORAGE)
    if isinstance(error, PermissionError) and error.filename:
        text = f"{error.filename}: this user has no permission there. Fix: ask its owner, or choose another path"
        return _fail(text, errors.EXIT_STORAGE)
    if names & {"MemoryError", "OutOfMemoryError"} or "can't allocate memory" in str(error):
        fix = "a smaller optimizer.batch_size or evaluation.batch_size, or more optimizer.accumulation_steps"
        return _fail(f"not enough memory ({_first_line(error)}). Fix: {fix}", errors.EXIT_BUG)
    if isinstance(error, UnicodeEncodeError) and sys.getfilesystemencoding() != "utf-8":
        text = f"the name {error.object!r} cannot be used in this locale, whose encoding is {error.encoding}"
        return _fail(f"{text}. {LOCALE_FIX}", errors.EXIT_USAGE)
    return _report_bug(error, arguments)


def _report_bug(error: Exception, arguments: list[str]) -> int:
    heading = f"maskperf {_version()}, Python {sys.version.split()[0]}\ncommand: maskperf {shlex.join(arguments)}\n\n"
    report = heading + "".join(traceback.format_exception(error))
    path = _write_for_the_user("bug", report)
    if path is None:
        print(report, file=sys.stderr)
    details = f"the details are in {path}" if path else "its trace is above, as it could be written nowhere"
    return _fail(f"a bug in maskperf: {_first_line(error)}; {details}", errors.EXIT_BUG)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _fail(text: str, code: int, error: errors.UserError | None = None) -> int:
    """Show an error once, for problems in data with the file that lists them, and return the exit code."""
    if _is_first_to_say(text):
        all_lines = error.all_lines() if isinstance(error, errors.DataError) else ""
        path = _write_for_the_user("errors", all_lines) if all_lines else None
        print(f"error: {text}" + (f"\neach of them in full: {path}" if path else ""), file=sys.stderr)
    return code


def _is_first_to_say(text: str) -> bool:
    """Return whether no other process of this start by torchrun, on this machine, has shown the same error."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # its folder's parent belongs to this attempt alone
    if not error_file:
        return True
    mark = Path(error_file).parents[1] / f"shown-{hashlib.sha256(text.encode()).hexdigest()[:24]}"
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        pass  # twice is better than never
    return True


def _discard_output() -> None:
    """Send what is still in the buffer nowhere, or Python would complain of it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
