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
        self.base = base
        self.folder = base / "my tree"
        (self.folder / ".ci").mkdir(parents=True)
        for name in (*SCRIPTS, "constraints.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, self.folder / name)
        self.notes = base / "notes.txt"
        self.python = base / "stub python"
        self.python.write_text(STUB)
        self.python.chmod(0o755)

    def run(self, script, *arguments, **environment):
        self.notes.write_text("")
        variables = {
            "PATH": os.environ["PATH"],
            "PYTHON": str(self.python),
            "STUB_NOTES": str(self.notes),
            **environment,
        }
        return subprocess.run(
            [self.folder / script, *arguments],
            cwd=self.base,
            env=variables,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def noted(self):
        return self.notes.read_text().splitlines()


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def test_the_first_install_makes_the_environment_and_uses_the_constraints(tree):
    finished = tree.run("install.sh")
    assert finished.returncode == 0, finished.stderr
    venv, pip = tree.noted()
    assert venv == "venv"
    assert pip.endswith(f"--constraint {tree.folder}/.venv/constraints.txt --editable {tree.folder}")
    assert (tree.folder / ".venv" / "constraints.txt").read_text() == (ROOT / "constraints.txt").read_text()
    assert "install.sh: done: maskperf 0.0" in finished.stdout


def test_a_second_install_does_and_prints_nothing(tree):
    tree.run("install.sh")
    finished = tree.run("install.sh")
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")
    assert tree.noted() == []


def test_the_tools_of_the_tests_are_added_once(tree):
    tree.run("install.sh")
    tree.run("install.sh", "test")
    (pip,) = tree.noted()
    assert pip.endswith(f"--editable {tree.folder}[test]")
    for arguments in (["test"], []):
        tree.run("install.sh", *arguments)
        assert tree.noted() == []


@pytest.mark.parametrize("name", ["constraints.txt", "pyproject.toml"])
def test_changed_versions_are_installed_into_the_same_environment(name, tree):
    tree.run("install.sh")
    with (tree.folder / name).open("a") as stream:
        stream.write("# changed\n")
    assert tree.run("install.sh").returncode == 0
    (pip,) = tree.noted()
    assert pip.startswith("pip")


def test_a_failed_install_is_reported_and_the_next_one_starts_again(tree):
    finished = tree.run("install.sh", STUB_PIP_CODE="1")
    assert finished.returncode == 1
    assert "Fix: check the network" in finished.stderr
    half_made = tree.folder / ".venv" / "half-made"
    half_made.write_text("")
    finished = tree.run("install.sh")
    assert finished.returncode == 0
    assert "cut short" in finished.stdout
    assert tree.noted()[0] == "venv"
    assert not half_made.exists()


def test_an_environment_of_somebody_else_is_left_alone(tree):
    mine = tree.folder / ".venv" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    finished = tree.run("install.sh")
    assert finished.returncode == 1
    assert "was not made by install.sh" in finished.stderr
    assert mine.read_text() == "mine"
    assert tree.noted() == []


def test_another_version_of_torch_replaces_the_pinned_one(tree):
    tree.run("install.sh", MASKPERF_TORCH="2.14.1")
    lines = (tree.folder / ".venv" / "constraints.txt").read_text().splitlines()
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    assert set(lines) - set(pinned) == {"torch==2.14.1"}
    assert set(pinned) - set(lines) == {"torch==2.13.0", "triton==3.7.1"}  # each torch asks for a Triton of its own
    tree.run("install.sh")
    assert len(tree.noted()) == 1  # back to the pinned version


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
    finished = tree.run("install.sh", *arguments, **variables)
    assert finished.returncode == 1
    assert message in finished.stderr
    assert not any(line.startswith("pip") for line in tree.noted())


def test_a_moved_folder_gets_a_new_environment(tree):
    tree.run("install.sh")
    tree.folder = tree.folder.rename(tree.base / "moved tree")
    assert tree.run("install.sh").returncode == 0
    assert len(tree.noted()) == 2


def test_without_arguments_the_demo_is_run_and_timed(tree):
    finished = tree.run("run_and_time.sh", STUB_CODE="6")
    assert finished.returncode == 6
    assert tree.noted()[-1] == "<run><demo>"
    assert tree.run("run_and_time.sh", "coco", "data.root=/a b").returncode == 0
    assert tree.noted()[-1] == "<run><coco><data.root=/a b>"
    assert re.search(r"run_and_time\.sh: \d+ s \(0:00:\d\d\), exit code 6\n$", finished.stdout)


def test_the_tests_run_after_lint_with_their_arguments(tree):
    assert tree.run("run_tests.sh", "-k", "a b").returncode == 0
    *checks, tests = tree.noted()[-5:]
    assert checks == ["-m ruff check .", "-m ruff format --check -q .", "-m mypy", "codespell"]
    assert tests == "-m pytest -n 2 --dist loadfile -m not slow -k a b"


def test_all_checks_run_the_slow_tests_too(tree):
    assert tree.run(".ci/run").returncode == 0
    marks = [line.rpartition(" -m ")[2] for line in tree.noted() if line.startswith("-m pytest")]
    assert marks == ["not slow", "slow"]


def test_nothing_is_run_where_the_install_fails(tree):
    assert tree.run("run_and_time.sh", STUB_PIP_CODE="1").returncode == 1
    assert not any("<run>" in line for line in tree.noted())


@pytest.mark.parametrize(("code", "expected"), [("0", 0), ("6", 0), ("1", 1), ("5", 5)])
def test_the_shortened_run_may_miss_its_target_but_must_not_fail(code, expected, tree):
    finished = tree.run(".ci/run", STUB_CODE=code)
    assert finished.returncode == expected
    assert "<run><demo><optimizer.max_epochs=1>" in tree.noted()[-1]
    assert ("all checks passed" in finished.stdout) == (expected == 0)


def test_every_dependency_is_pinned_once_to_one_version():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][0-9A-Za-z.]*)", line).groups() for line in lines)
    assert len(pins) == len(lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["test"]
    names = {re.match(r"[A-Za-z0-9._-]+", line)[0].lower() for line in wanted}
    assert names - {name.lower().replace("_", "-") for name in pins} == set()
