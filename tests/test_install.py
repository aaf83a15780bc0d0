"""The scripts with a stub of Python, so that nothing is downloaded or installed."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ("install.sh", "run_and_time.sh", "run_tests.sh", "download_dataset.sh", ".ci/run")

# The text of every stub: as `python` it makes an environment or records the arguments of pip, as `maskperf` it records
# its arguments and ends with $STUB_CODE.
STUB = """#!/usr/bin/env bash
case "$(basename "$0") $*" in
    "maskperf --version") echo "maskperf 0.0" ;;
    maskperf*) printf '<%s>' "$@" >>"$STUB_NOTES"; exit "${STUB_CODE:-0}" ;;
    codespell*) echo "codespell" >>"$STUB_NOTES" ;;
    *"-m venv "*)
        mkdir -p "$3/bin"
        for name in python maskperf codespell; do cp "$0" "$3/bin/$name"; done
        echo "venv" >>"$STUB_NOTES" ;;
    *"-m pip install"*) printf 'pip %s\\n' "$*" >>"$STUB_NOTES"; exit "${STUB_PIP_CODE:-0}" ;;
    *version_info*) exit "${STUB_TOO_OLD:-0}" ;;
    *ensurepip*) exit "${STUB_NO_VENV:-0}" ;;
    *--version*) echo "Python 3.11.0" ;;
    *"-m ruff"*|*"-m mypy"*|*"-m pytest"*) printf '%s\\n' "$*" >>"$STUB_NOTES" ;;
esac
"""


class Tree:
    """A copy of the scripts in a folder with a space in its name, and a stub in place of Python."""

    def __init__(self, base):
        self.base, self.folder = base, base / "my tree"
        (self.folder / ".ci").mkdir(parents=True)
        for name in (*SCRIPTS, "constraints.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, self.folder / name)
        self.notes, self.python = base / "notes.txt", base / "stub python"
        self.python.write_text(STUB)
        self.python.chmod(0o755)

    def run(self, script, *arguments, code=0, **environment):
        """Run a script, check its exit code, and return what the stubs noted and what it printed."""
        self.notes.write_text("")
        variables = {"PATH": os.environ["PATH"], "PYTHON": str(self.python), "STUB_NOTES": str(self.notes)}
        streams = {"capture_output": True, "text": True, "cwd": self.base, "timeout": 300}
        done = subprocess.run([self.folder / script, *arguments], env={**variables, **environment}, **streams)
        assert done.returncode == code, done.stderr
        return self.notes.read_text().splitlines(), done.stdout + done.stderr


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


@pytest.fixture
def installed(tree):
    tree.run("install.sh")
    return tree


def test_the_first_install_makes_the_environment_with_the_constraints_and_a_second_does_nothing(tree):
    (venv, pip), shown = tree.run("install.sh")
    assert venv == "venv" and "install.sh: done: maskperf 0.0" in shown
    assert pip.endswith(f"--constraint {tree.folder}/.venv/constraints.txt --editable {tree.folder}")
    assert (tree.folder / ".venv" / "constraints.txt").read_text() == (ROOT / "constraints.txt").read_text()
    assert tree.run("install.sh") == ([], "")


def test_the_tools_of_the_tests_are_added_once(installed):
    (pip,), _ = installed.run("install.sh", "test")
    assert pip.endswith(f"--editable {installed.folder}[test]")
    for arguments in (["test"], []):
        assert installed.run("install.sh", *arguments)[0] == []


@pytest.mark.parametrize("name", ["constraints.txt", "pyproject.toml"])
def test_changed_versions_are_installed_into_the_same_environment(name, installed):
    with (installed.folder / name).open("a") as stream:
        stream.write("# changed\n")
    (pip,), _ = installed.run("install.sh")
    assert pip.startswith("pip")


def test_a_failed_install_is_reported_and_the_next_one_starts_again(tree):
    assert "Fix: check the network" in tree.run("install.sh", code=1, STUB_PIP_CODE="1")[1]
    half_made = tree.folder / ".venv" / "half-made"
    half_made.write_text("")
    noted, shown = tree.run("install.sh")
    assert "cut short" in shown and noted[0] == "venv" and not half_made.exists()


def test_an_environment_of_somebody_else_is_left_alone(tree):
    mine = tree.folder / ".venv" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    noted, shown = tree.run("install.sh", code=1)
    assert "was not made by install.sh" in shown and mine.read_text() == "mine" and noted == []


def test_another_version_of_torch_replaces_the_pinned_one(tree):
    tree.run("install.sh", MASKPERF_TORCH="2.14.1")
    lines = (tree.folder / ".venv" / "constraints.txt").read_text().splitlines()
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    assert set(lines) - set(pinned) == {"torch==2.14.1"}
    assert set(pinned) - set(lines) == {"torch==2.13.0", "triton==3.7.1"}  # each torch asks for a Triton of its own
    assert len(tree.run("install.sh")[0]) == 1  # back to the pinned version


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        ([], {"MASKPERF_TORCH": "new/one"}, "MASKPERF_TORCH=new/one is not a version"),
        ([], {"STUB_TOO_OLD": "1"}, "is not a Python of at least 3.11"),
        ([], {"STUB_NO_VENV": "1"}, "apt-get install python3-venv"),
        (["tests"], {}, "'tests'"),
        (["test", "more"], {}, "too many"),
    ],
)
def test_an_install_that_cannot_be_done_is_explained(arguments, variables, message, tree):
    noted, shown = tree.run("install.sh", *arguments, code=1, **variables)
    assert message in shown and not any(line.startswith("pip") for line in noted)


def test_a_moved_folder_gets_a_new_environment(installed):
    installed.folder = installed.folder.rename(installed.base / "moved tree")
    assert len(installed.run("install.sh")[0]) == 2


def test_without_arguments_the_demo_is_run_and_timed(installed):
    noted, shown = installed.run("run_and_time.sh", code=6, STUB_CODE="6")
    assert noted == ["<run><demo>"] and re.search(r"run_and_time\.sh: \d+ s \(0:00:\d\d\), exit code 6\n$", shown)
    assert installed.run("run_and_time.sh", "coco", "data.root=/a b")[0] == ["<run><coco><data.root=/a b>"]


def test_the_tests_run_after_lint_with_their_arguments(tree):
    *checks, tests = tree.run("run_tests.sh", "-k", "a b")[0][-5:]
    assert checks == ["-m ruff check .", "-m ruff format --check -q .", "-m mypy", "codespell"]
    assert tests == "-m pytest -n 2 --dist loadfile -m not slow -k a b"


def test_the_download_hands_its_arguments_on_and_returns_the_exit_code(installed):
    noted, _ = installed.run("download_dataset.sh", "--root", "my data; $(touch x)'\"", code=7, STUB_CODE="7")
    assert noted == ["<prepare><coco><--root><my data; $(touch x)'\">"]


@pytest.mark.parametrize("script", ["run_and_time.sh", "download_dataset.sh"])
def test_nothing_is_run_where_the_install_fails(script, tree):
    assert not any("<" in line for line in tree.run(script, code=1, STUB_PIP_CODE="1")[0])


@pytest.mark.parametrize(("code", "expected"), [("0", 0), ("6", 0), ("1", 1), ("5", 5)])
def test_all_checks_run_the_slow_tests_and_a_shortened_run_that_may_miss_its_target(code, expected, tree):
    noted, shown = tree.run(".ci/run", code=expected, STUB_CODE=code)
    assert [line.rpartition(" -m ")[2] for line in noted if line.startswith("-m pytest")] == ["not slow", "slow"]
    assert "<run><demo><optimizer.max_epochs=1>" in noted[-1]
    assert ("all checks passed" in shown) == (expected == 0)


def test_every_dependency_is_pinned_once_to_one_version():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][0-9A-Za-z.]*)", line).groups() for line in lines)
    assert len(pins) == len(lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + [line for name in ("test", "video", "export") for line in extras[name]]
    names = {re.match(r"[A-Za-z0-9._-]+", line)[0].lower() for line in wanted} - {"maskperf"}  # its own extras
    assert names - {name.lower().replace("_", "-") for name in pins} == set()
