import errno
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from maskperf import errors
from maskperf.cli import main as main_module
from maskperf.cli.main import COMMANDS, Command, main
from maskperf.run import run_folder

SOURCES = Path(main_module.__file__).resolve().parents[2]
HEAVY = {"torch", "numpy", "rich", "msgspec", "PIL", "pycocotools", "hotcoco", "mlperf_logging"}


@pytest.fixture(autouse=True)
def no_run_folder_yet(monkeypatch, tmp_path):
    monkeypatch.setattr(run_folder, "_current_folders", [])
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def with_command(monkeypatch):
    """Return a function that puts another one in the place of the command `run`."""

    def put(function):
        monkeypatch.setitem(COMMANDS, "run", Command("stub", "run", "a stub"))
        monkeypatch.setitem(sys.modules, "stub", SimpleNamespace(run=function))

    return put


def raiser(error):
    def fail(arguments):
        raise error

    return fail


def in_new_process(*words, code="import sys; from maskperf.cli.main import main; sys.exit(main())"):
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment, timeout=300, check=False
    )


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_has_five_examples_all_commands_and_all_exit_codes(words, capsys):
    assert main(words) == 0
    text = capsys.readouterr().out
    examples = [line for line in text.splitlines() if line.startswith(("  maskperf ", "  torchrun "))]
    assert len(examples) == 5
    assert all(name in text for name in COMMANDS)
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    listed = text[text.index("Exit codes:") :].splitlines()[1:]
    assert {int(line.split()[0]) for line in listed} == codes
    assert max(len(line) for line in text.splitlines()) <= 100


def test_the_process_reads_its_own_arguments_and_help_loads_nothing_heavy():
    code = (
        "import sys; from maskperf.cli.main import main; code = main(); "
        "print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr); sys.exit(code)"
    )
    finished = in_new_process("--help", code=code)
    assert finished.returncode == 0
    assert "maskperf run demo" in finished.stdout
    loaded = set(finished.stderr.replace("'", " ").replace(",", " ").strip("[]\n ").split())
    assert "maskperf" in loaded
    assert loaded & HEAVY == set()


def test_the_package_can_be_run_as_a_module():
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    command = [sys.executable, "-m", "maskperf", "--version"]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert finished.returncode == 0
    assert finished.stdout.startswith("maskperf ")


def test_version_is_one_line(capsys):
    assert main(["--version"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    ("word", "hint"), [("evalute", "did you mean evaluate?"), ("xyz", "there are run, evaluate, convert")]
)
def test_an_unknown_command_is_a_usage_error_with_a_hint(word, hint, capsys):
    assert main([word]) == errors.EXIT_USAGE
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert word in shown.err
    assert hint in shown.err


def test_a_command_gets_the_words_after_its_name_and_its_code_is_returned(with_command):
    seen = []
    with_command(lambda arguments: seen.append(arguments) or errors.EXIT_TARGET_MISSED)
    assert main(["run", "demo", "seed=1"]) == errors.EXIT_TARGET_MISSED
    assert seen == [["demo", "seed=1"]]


@pytest.mark.parametrize(
    "error",
    [
        errors.ConfigError("what is wrong. Fix: this"),
        errors.RuleError("what is wrong. Fix: this"),
        errors.NonFiniteError("what is wrong. Fix: this", step=3),
        errors.StorageError("what is wrong. Fix: this"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_the_user_is_shown_without_a_trace_and_has_its_own_code(error, with_command, capsys, tmp_path):
    with_command(raiser(error))
    assert main(["run"]) == error.exit_code
    assert capsys.readouterr().err == "error: what is wrong. Fix: this\n"
    assert list(tmp_path.iterdir()) == []


def test_problems_in_data_are_shown_by_kind_and_listed_in_a_file(with_command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make = partial(errors.Problem, file="a.json", field="width", message="Negative.", fix="Fix.")
    problems = [make(where=f"image id {number}", value=f"-{number}") for number in range(40)]
    problems.append(make(where="image id 7", value="-1", field="height"))
    with_command(raiser(errors.DataError(problems, notices=["a.json: something was left out"])))
    assert main(["run"]) == errors.EXIT_DATA
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "error: a.json: image id 0, field width, value -0: Negative. Fix: Fix."
    assert shown[1].startswith("  and 39 more of this kind: image id 1, image id 2,")
    assert shown[1].endswith("image id 20, ...")
    assert shown[2] == "a.json: image id 7, field height, value -1: Negative. Fix: Fix."
    assert shown[3:5] == ["41 problems in all", "note: a.json: something was left out"]
    (listed,) = tmp_path.glob("maskperf-errors-*.txt")
    assert shown[5] == f"each of them in full: {listed}"
    text = listed.read_text()
    assert all(problem.line() in text for problem in problems) and "something was left out" in text


def test_a_single_problem_needs_no_file(with_command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problem = errors.Problem(
        file="a.json", where="image id 4", field="width", value="-1", message="Negative.", fix="Fix."
    )
    with_command(raiser(errors.DataError([problem])))
    assert main(["run"]) == errors.EXIT_DATA
    assert capsys.readouterr().err == f"error: {problem.line()}\n"
    assert list(tmp_path.iterdir()) == []


def test_interruption_is_one_line_and_code_130(with_command, capsys):
    with_command(raiser(KeyboardInterrupt()))
    assert main(["run"]) == errors.EXIT_INTERRUPTED
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_storage_error_that_names_the_file(number, with_command, capsys, tmp_path):
    with_command(raiser(OSError(number, "No space", "runs/x/metrics.jsonl")))
    assert main(["run"]) == errors.EXIT_STORAGE
    shown = capsys.readouterr().err
    assert "runs/x/metrics.jsonl" in shown
    assert "no space left" in shown
    assert list(tmp_path.iterdir()) == []


def test_a_missing_permission_is_a_storage_error_that_names_the_file(with_command, capsys, tmp_path):
    with_command(raiser(PermissionError(errno.EACCES, "Permission denied", "/root/.cache/x")))
    assert main(["run"]) == errors.EXIT_STORAGE
    assert capsys.readouterr().err.startswith("error: /root/.cache/x: this user has no permission there. Fix: ")
    assert list(tmp_path.iterdir()) == []


def test_running_out_of_memory_is_no_bug_report_but_names_what_to_make_smaller(with_command, capsys, tmp_path):
    class OutOfMemoryError(RuntimeError):
        """Named as torch's own."""

    cpu_error = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 GB")
    for error in (MemoryError(), OutOfMemoryError("CUDA out of memory\nmore"), cpu_error):
        with_command(raiser(error))
        assert main(["run"]) == errors.EXIT_BUG
        shown = capsys.readouterr().err
        assert "not enough memory" in shown
        assert "optimizer.batch_size" in shown
        assert len(shown.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_bug_leaves_its_trace_in_a_file_of_the_working_folder(with_command, capsys, tmp_path):
    with_command(raiser(ZeroDivisionError("division by zero")))
    assert main(["run", "a word"]) == errors.EXIT_BUG
    (line,) = capsys.readouterr().err.splitlines()
    path = tmp_path / f"maskperf-bug-{os.getpid()}.txt"
    assert str(path) in line
    assert "ZeroDivisionError: division by zero" in line
    text = path.read_text()
    assert "Traceback" in text
    assert "in fail" in text
    assert "command: maskperf run 'a word'" in text


def test_a_bug_of_a_run_leaves_its_trace_in_the_run_folder(with_command, capsys, tmp_path):
    def fail_in_run(arguments):
        run_folder.create_run_folder("mine", "demo")
        raise ValueError("odd")

    with_command(fail_in_run)
    assert main(["run"]) == errors.EXIT_BUG
    assert str(tmp_path / "mine" / "maskperf-bug-") in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [f"maskperf-bug-{os.getpid()}.txt"]


def test_a_bug_whose_file_cannot_be_written_shows_its_trace(with_command, capsys, monkeypatch):
    with_command(raiser(ValueError("odd")))
    monkeypatch.setattr(Path, "write_text", raiser_of_any(OSError(errno.EROFS, "Read-only file system")))
    assert main(["run"]) == errors.EXIT_BUG
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.splitlines()[-1].startswith("error: a bug in maskperf: ValueError: odd")
    assert "Read-only file system" in shown


def raiser_of_any(error):
    def fail(*arguments, **named):
        raise error

    return fail


@pytest.mark.parametrize(("code", "expected"), [(None, 0), (0, 0), (2, 2), ("a text", 1)])
def test_the_exit_of_an_argument_parser_keeps_its_code(code, expected, with_command, capsys):
    with_command(raiser(SystemExit(code)))
    assert main(["run"]) == expected
    assert capsys.readouterr().err == ("error: a text\n" if code == "a text" else "")


def test_a_reader_that_goes_away_ends_the_command_without_a_trace():
    code = "import os, sys; os.close(0); from maskperf.cli.main import main; sys.exit(main(['--help']))"
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    with os.fdopen(writing, "w") as stream:
        finished = subprocess.run(
            [sys.executable, "-c", code], stdout=stream, stderr=subprocess.PIPE, text=True, env=environment, check=False
        )
    assert finished.returncode == errors.EXIT_BUG
    assert finished.stderr == "error: the reader of the output went away before the end\n"


ENCODINGS = (
    *({"PYTHONIOENCODING": name} for name in ("ascii", "ascii:strict", "latin-1", "cp1252", "koi8-r", "shift_jis")),
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
)
PRINTING = """
import sys
from maskperf.cli import main as place
from maskperf.errors import DataError, Problem
def speak(words):
    from rich.console import Console
    from rich.table import Table
    print("Gr\\u00f6\\u00dfe \\u7bb1\\u5b50 \\u043a\\u043e\\u043d\\u0443\\u0441 \\u0627 \\U0001f697 \\u0938")
    table = Table("\\u7bb1\\u5b50")
    table.add_row("\\u043a\\u043e\\u043d\\u0443\\u0441")
    Console(file=sys.stdout).print(table)
    problem = dict(file="\\u7bb1.json", where="category id 1", field="name", value="\\u7bb1", message="No.", fix="Fix.")
    if words:
        raise KeyError("\\u7bb1")
    raise DataError([Problem(**problem)])
place.COMMANDS["run"] = place.Command("__main__", "speak", "a stub")
sys.exit(place.main())
"""


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda entry: next(iter(entry.values())))
def test_no_encoding_of_the_terminal_ends_a_command(encoding, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), **encoding}
    for words, code in (([], errors.EXIT_DATA), (["a bug"], errors.EXIT_BUG)):
        command = [sys.executable, "-c", PRINTING, "run", *words]
        finished = subprocess.run(command, capture_output=True, env=environment, timeout=300, check=False, cwd=tmp_path)
        shown = finished.stdout.decode("latin-1"), finished.stderr.decode("latin-1")
        assert finished.returncode == code, shown
        assert "\\u0938" in shown[0]  # no letter of this alphabet is in any of the encodings
        assert ("error: " in shown[1], "Traceback" in shown[1]) == (True, False)
    (report,) = tmp_path.iterdir()
    assert "KeyError: '\u7bb1'" in report.read_text(encoding="utf-8")


def test_letters_that_the_terminal_has_are_left_as_they_are():
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "PYTHONIOENCODING": "latin-1"}
    finished = subprocess.run(
        [sys.executable, "-c", PRINTING, "run"], capture_output=True, env=environment, timeout=300, check=False
    )
    assert finished.stdout.startswith("Gr\u00f6\u00dfe \\u7bb1\\u5b50 \\u043a".encode("latin-1"))


def test_words_that_are_no_text_are_refused_before_anything_is_made(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "maskperf", "run", "demo", b"run_dir=caf\xe9"]
    finished = subprocess.run(command, capture_output=True, env=environment, timeout=300, check=False, cwd=tmp_path)
    assert finished.returncode == errors.EXIT_USAGE
    assert b"run_dir=caf\\udce9" in finished.stderr
    assert b"PYTHONUTF8=1" in finished.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_name_that_the_locale_cannot_express_names_the_way_out(with_command, capsys, monkeypatch, tmp_path):
    with_command(raiser(UnicodeEncodeError("latin-1", "\u7bb1.jpg", 0, 1, "ordinal not in range(256)")))
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-1")
    assert main(["run"]) == errors.EXIT_USAGE
    shown = capsys.readouterr().err
    assert "\u7bb1.jpg" in shown
    assert "Fix: set PYTHONUTF8=1" in shown
    assert list(tmp_path.iterdir()) == []
