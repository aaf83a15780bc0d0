"""What every script of the tree has to be."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.sh", ".ci/*", "launch/*.sh", "launch/*.sbatch")
    for path in ROOT.glob(pattern)
    if path.is_file()
)
# These tell the exit code of maskperf instead of ending at it; what comes before has a `|| exit` of its own.
WITHOUT_E = ("run_and_time.sh", "download_dataset.sh")


def code_of(name):
    """Return the lines that are neither empty nor comments."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def test_the_scripts_are_found():
    assert {"install.sh", "install_cuda_docker.sh", ".ci/run", "launch/one_machine.sh", "launch/slurm.sbatch"} <= set(
        SCRIPTS
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_can_read_it(name):
    finished = subprocess.run(["bash", "-n", ROOT / name], capture_output=True, text=True, timeout=300, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    command = ["shellcheck", "--shell=bash", *SCRIPTS]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_says_what_runs_it_and_stops_at_errors(name):
    assert (ROOT / name).read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n# ")
    code = code_of(name)
    assert code[0] == ("set -uo pipefail" if name in WITHOUT_E else "set -euo pipefail")
    if name in WITHOUT_E:
        assert '"$here/install.sh" || exit' in code


@pytest.mark.parametrize("name", [name for name in SCRIPTS if not name.endswith(".sbatch")])
def test_it_can_be_started(name):
    assert os.access(ROOT / name, os.X_OK)


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_is_ascii_and_names_no_package_index(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text.isascii()
    assert not re.search(r"(?i)http://|pypi\.|pythonhosted|download\.pytorch|/simple\b|index-url|find-links", text)
