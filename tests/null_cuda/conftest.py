"""Tests on a CUDA that computes nothing: see CONTRIBUTING.md. Without what it needs, all are skipped."""

import fcntl
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from build_null_cuda import build, environment_on, missing_part

import maskperf

HERE = Path(__file__).resolve().parent
SOURCE_FOLDER = Path(maskperf.__file__).resolve().parents[1]
SECONDS = 3600  # after which something hangs


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.null_cuda)


@dataclass(frozen=True)
class NullCuda:
    """Start processes on the null CUDA."""

    python: str
    library: Path

    def environment(self, *, variables: dict[str, str] | None = None, **options) -> dict[str, str]:
        """Return the variables of a process; `options` as of `environment_on`."""
        paths = os.pathsep.join([str(SOURCE_FOLDER), str(HERE)])
        fixed = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        return environment_on(self.library, **options) | fixed | (variables or {})

    def run(self, *words: str, text: str = "", **options) -> subprocess.CompletedProcess:
        """Return how Python ended with these arguments, and with `text` to read."""
        command = [self.python, *words]
        environment = self.environment(**options)
        return subprocess.run(
            command, env=environment, input=text, capture_output=True, text=True, timeout=SECONDS, check=False
        )

    def told(self, *words: str, **options):
        """Return the JSON that Python's output ends with."""
        done = self.run(*words, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def answer(self, script: str, *words: object, **options):
        """Return the JSON that a script of this folder ends with."""
        return self.told(str(HERE / script), *map(str, words), **options)


@pytest.fixture(scope="session")
def null_cuda(tmp_path_factory) -> NullCuda:
    python = os.environ.get("MASKPERF_CUDA_PYTHON", sys.executable)
    if missing := missing_part(python):
        pytest.skip(f"null CUDA: {missing}")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that all processes of the tests have in common
    folder = Path(os.environ.get("MASKPERF_NULL_CUDA_FOLDER", folder))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "null-cuda.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return NullCuda(python, build(python, folder))
