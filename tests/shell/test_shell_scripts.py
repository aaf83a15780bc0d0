"""Rules for every shell script of the tree."""

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
# These report the exit code of maskperf instead of ending at it; what comes before has a `|| exit` of its own.
WITHOUT_E = ("run_and_time.sh", "download_dataset.sh")


def test_the_scripts_are_found():
    expected = {"install.sh", "install_cuda_docker.sh", ".ci/run", "launch/one_machine.sh", "launch/slurm.sbatch"}
    assert expected <= set(SCRIPTS)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    command = ["shellcheck", "--shell=bash", *SCRIPTS]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_is_bash_that_stops_at_errors(name):
    """It is ASCII, names its interpreter and no package index, and can be started."""
    finished = subprocess.run(["bash", "-n", ROOT / name], capture_output=True, text=True, timeout=300, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n# ") and text.isascii()
    assert not re.search(r"(?i)http://|pypi\.|pythonhosted|download\.pytorch|/simple\b|index-url|find-links", text)
    code = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert code[0] == ("set -uo pipefail" if name in WITHOUT_E else "set -euo pipefail")
    assert name not in WITHOUT_E or '"$here/install.sh" || exit' in code
    assert name.endswith(".sbatch") or os.access(ROOT / name, os.X_OK)
