import errno
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from maskperf import errors
from maskperf.cli import main as main_module
from maskperf.cli.main import COMMANDS
from maskperf.run import run_folder

HEAVY = {"torch", "numpy", "rich", "msgspec", "PIL", "pycocotools", "hotcoco", "mlperf_logging"}


@pytest.fixture(autouse=True)
def no_run_folder_yet(monkeypatch):
    monkeypatch.setattr(run_folder, "_current_folders", [])


@pytest.fixture
def failing(monkeypatch, maskperf):
    """Return a function that runs a command which fails with an error."""

    def run(error):
        monkeypatch.setattr(main_module, "execute", partial(fail, error))
        return maskperf("run", "a word")

    return run


def fail(error, *arguments, **named):
    raise error


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_has_five_examples_all_commands_and_all_exit_codes(arguments, maskperf):
    shown = maskperf(*arguments)
    lines = shown.out.splitlines()
    assert shown.code == 0 and max(map(len, lines)) <= 100
    assert len([line for line in lines if line.startswith(("  maskperf ", "  torchrun "))]) == 5
    assert all(f"\n  {name} " in shown.out for name in COMMANDS)
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert {int(line.split()[0]) for line in lines[lines.index("Exit codes:") + 1 :]} == codes


def test_the_process_reads_its_own_arguments_and_help_loads_nothing_heavy(new_process):
    code = "import sys; from maskperf.cli.main import main; main(); print(*sys.modules, file=sys.stderr)"
    finished = new_process("-c", code, "--help")
    assert "maskperf run demo" in finished.stdout
    loaded = set(finished.stderr.split())
    assert "maskperf" in loaded and loaded & HEAVY == set()


def test_the_package_can_be_run_as_a_module(new_process):
    finished = new_process("-m", "maskperf", "--version")
    assert finished.returncode == 0
    assert finished.stdout.startswith("maskperf ") and len(finished.stdout.splitlines()) == 1


MESSAGE = "what is wrong. Fix: this"
PROBLEM = errors.Problem(file="a.json", where="image id 4", field="width", value="-1", message="No.", fix="Fix.")


class OutOfMemoryError(RuntimeError):
    """Named as torch's own."""


@pytest.mark.parametrize(
    ("error", "code", "parts"),
    [
        *(
            (error, error.exit_code, [f"error: {MESSAGE}"])
            for error in (
                *(kind(MESSAGE) for kind in (errors.ConfigError, errors.RuleError, errors.StorageError)),
                errors.NonFiniteError(MESSAGE, step=3),
            )
        ),
        *(
            (OSError(number, "No space", "runs/x/a.json"), errors.EXIT_STORAGE, ["runs/x/a.json", "no space left"])
            for number in (errno.ENOSPC, errno.EDQUOT)
        ),
        (KeyboardInterrupt(), errors.EXIT_INTERRUPTED, ["Ctrl-C"]),
        (PermissionError(errno.EACCES, "No", "/root/x"), errors.EXIT_STORAGE, ["/root/x", "no permission"]),
        (MemoryError(), errors.EXIT_BUG, ["not enough memory", "optimizer.batch_size"]),
        (OutOfMemoryError("CUDA out of memory\nmore"), errors.EXIT_BUG, ["not enough memory", "optimizer.batch_size"]),
        (RuntimeError("can't allocate memory: you tried 1 GB"), errors.EXIT_BUG, ["not enough memory"]),
        (SystemExit("a text"), 1, ["error: a text"]),
        (errors.DataError([PROBLEM]), errors.EXIT_DATA, [f"error: {PROBLEM.line()}"]),  # a single one needs no file
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_the_user_can_fix_is_one_line_and_no_bug_report(error, code, parts, failing, tmp_path):
    shown = failing(error)
    assert shown.code == code and len(shown.err.splitlines()) == 1
    assert all(part in shown.err for part in parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("code", "expected"), [(None, 0), (0, 0), (2, 2)])
def test_sys_exit_keeps_its_code(code, expected, failing):
    shown = failing(SystemExit(code))
    assert (shown.code, shown.err) == (expected, "")


def test_problems_in_data_are_shown_by_kind_and_listed_in_a_file(failing, tmp_path):
    problems = [replace(PROBLEM, where=f"image id {number}", value=f"-{number}") for number in range(40)]
    problems.append(replace(PROBLEM, field="height"))
    shown = failing(errors.DataError(problems, notices=["a.json: something was left out"]))
    assert shown.code == errors.EXIT_DATA
    lines = shown.err.splitlines()
    assert lines[0] == f"error: {problems[0].line()}" and lines[2] == problems[-1].line()
    assert lines[1].startswith("  and 39 more of this kind: image id 1,") and lines[1].endswith("image id 20, ...")
    assert lines[3:5] == ["41 problems in all", "note: a.json: something was left out"]
    (listed,) = tmp_path.glob("maskperf-errors-*.txt")
    assert lines[5].endswith(str(listed))
    text = listed.read_text()
    assert all(problem.line() in text for problem in problems) and "something was left out" in text


def test_a_bug_leaves_its_trace_in_a_file_of_the_working_folder(failing, tmp_path):
    shown = failing(ZeroDivisionError("division by zero"))
    (line,) = shown.err.splitlines()
    path = tmp_path / f"maskperf-bug-{os.getpid()}.txt"
    assert shown.code == errors.EXIT_BUG and str(path) in line and "ZeroDivisionError: division by zero" in line
    assert all(part in path.read_text() for part in ("Traceback", "in fail", "command: maskperf run 'a word'"))


def test_a_bug_of_a_run_leaves_its_trace_in_the_run_folder(maskperf, monkeypatch, tmp_path):
    def fail_in_run(arguments):
        run_folder.create_run_folder("mine", "demo")
        raise ValueError("odd")

    monkeypatch.setattr(main_module, "execute", fail_in_run)
    shown = maskperf("run")
    assert shown.code == errors.EXIT_BUG and str(tmp_path / "mine" / "maskperf-bug-") in shown.err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [f"maskperf-bug-{os.getpid()}.txt"]


def test_a_bug_whose_file_cannot_be_written_shows_its_trace(failing, monkeypatch):
    monkeypatch.setattr(Path, "write_text", partial(fail, OSError(errno.EROFS, "Read-only file system")))
    shown = failing(ValueError("odd"))
    assert shown.code == errors.EXIT_BUG and "Traceback" in shown.err
    last = shown.err.splitlines()[-1]
    assert last.startswith("error: a bug in maskperf: ValueError: odd") and "its trace is above" in last


def test_a_reader_that_goes_away_ends_the_command_without_a_trace(new_process):
    code = "import os, sys; os.close(0); from maskperf.cli.main import main; sys.exit(main(['--help']))"
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        finished = new_process("-c", code, stdout=stream)
    assert finished.returncode == errors.EXIT_BUG and len(finished.stderr.splitlines()) == 1


ENCODINGS = (
    *({"PYTHONIOENCODING": name} for name in ("ascii", "ascii:strict", "latin-1", "cp1252", "koi8-r", "shift_jis")),
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
)
PRINTING = """
import sys
from maskperf.cli import main as module
from maskperf.errors import DataError, Problem
def execute(arguments):
    from rich.console import Console
    from rich.table import Table
    print("Gr\\u00f6\\u00dfe \\u7bb1\\u5b50 \\u043a\\u043e\\u043d\\u0443\\u0441 \\u0627 \\U0001f697 \\u0938")
    table = Table("\\u7bb1\\u5b50")
    table.add_row("\\u043a\\u043e\\u043d\\u0443\\u0441")
    Console(file=sys.stdout).print(table)
    problem = dict(file="\\u7bb1.json", where="category id 1", field="name", value="\\u7bb1", message="No.", fix="Fix.")
    if arguments:
        raise KeyError("\\u7bb1")
    raise DataError([Problem(**problem)])
module.execute = execute
sys.exit(module.main())
"""


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda entry: next(iter(entry.values())))
def test_no_encoding_of_the_terminal_ends_a_command(encoding, new_process, tmp_path):
    for arguments, code in (([], errors.EXIT_DATA), (["a bug"], errors.EXIT_BUG)):
        finished = new_process("-c", PRINTING, *arguments, encoding="latin-1", **encoding)
        shown = finished.stdout, finished.stderr
        assert finished.returncode == code, shown
        assert "\\u0938" in shown[0]  # no letter of this alphabet is in any of the encodings
        if encoding == {"PYTHONIOENCODING": "latin-1"}:  # characters it has are left as they are
            assert shown[0].startswith("Gr\u00f6\u00dfe \\u7bb1\\u5b50 \\u043a")
        assert ("error: " in shown[1], "Traceback" in shown[1]) == (True, False)
    (report,) = tmp_path.iterdir()
    assert "KeyError: '\u7bb1'" in report.read_text(encoding="utf-8")


def test_arguments_that_are_not_text_are_refused_before_anything_is_made(new_process, tmp_path):
    finished = new_process("-m", "maskperf", "run", "demo", b"run_dir=caf\xe9", PYTHONUTF8="1")
    assert finished.returncode == errors.EXIT_USAGE
    assert "run_dir=caf\\udce9" in finished.stderr and "PYTHONUTF8=1" in finished.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_name_that_the_locale_cannot_express_names_the_fix(failing, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-1")
    shown = failing(UnicodeEncodeError("latin-1", "\u7bb1.jpg", 0, 1, "ordinal not in range(256)"))
    assert shown.code == errors.EXIT_USAGE
    assert "\u7bb1.jpg" in shown.err and "PYTHONUTF8=1" in shown.err
    assert list(tmp_path.iterdir()) == []
