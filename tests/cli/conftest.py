"""Every test of a command runs in a folder of its own: a report of a bug would be written there."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from official_checkers import run_in_process
from small_weights import write_small_weights

from maskperf import errors
from maskperf.cli.main import main
from maskperf.mlperf import checkers

SOURCES = Path(errors.__file__).resolve().parents[1]


@dataclass(frozen=True)
class Finished:
    """The exit code of a command, and what it wrote to its two streams."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def in_own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def maskperf(capsys):
    """Return a function that runs a command in this process."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return Finished(code, shown.out, shown.err)

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with small weights and the data they were made for."""
    folder = tmp_path_factory.mktemp("weights")
    write_small_weights(folder, images=4)
    return folder


@pytest.fixture
def weights(folder):
    return folder / "model.safetensors"


@pytest.fixture
def new_process(tmp_path):
    """Return a function that runs Python with these arguments in a process of its own."""

    def run(*arguments, stdout=subprocess.PIPE, encoding=None, **environment):
        environment = {**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1", **environment}
        streams = {"stdout": stdout, "stderr": subprocess.PIPE, "text": True, "encoding": encoding}
        return subprocess.run([sys.executable, *arguments], env=environment, cwd=tmp_path, timeout=300, **streams)

    return run


@pytest.fixture
def checkers_in_process(monkeypatch):
    """Run MLPerf's checkers in this process: the same text without their start."""
    monkeypatch.setattr(checkers, "_run", run_in_process)
