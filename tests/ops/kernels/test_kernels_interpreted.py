import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the Python package triton is not installed")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
PARTS = ("values", "pyramid")  # of the other kernels
FILES = sorted(path.stem for path in HERE.glob("test_*_kernel.py"))


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[ElementTree.Element]:
    """Return what became of every test, after all files ran once in one process."""
    report = tmp_path_factory.mktemp("kernels") / "report.xml"
    words = [*("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}")]
    paths = [f"{HERE}/{name}.py" for name in FILES]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words, *paths]
    finished = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=3000)
    assert report.exists(), finished.stdout + finished.stderr
    return list(ElementTree.parse(report).iter("testcase"))


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_all_is_well_in_the_interpreter(name, cases):
    own = [case for case in cases if case.get("classname", "").endswith(name)]
    not_passed = [(case.get("name"), entry.text) for case in own for entry in case]
    assert own != []
    assert not_passed == [], "\n".join(f"{test}\n{text}" for test, text in not_passed)


def test_every_kernel_has_a_file_here():
    kernels = {path.stem for path in (ROOT / "src/maskperf/ops/kernels").glob("*.py")}
    without = {"__init__", "selection", *PARTS}
    assert {f"test_{name}_kernel" for name in kernels - without} <= set(FILES)
