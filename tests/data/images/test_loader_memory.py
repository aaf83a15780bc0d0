import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from image_folder import image_index, triangle

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[2] / "src"
# To lose only the bytes of one image, 30 x 40 x 3, with every batch would be more than 5 MiB in 1667 batches.
BOUND_BYTES = 4 * 2**20
PYTHON_BOUND_BYTES = 125 * 300  # in 125 batches; a lost batch is more

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="a process's memory is read there")


@pytest.fixture(scope="module")
def growth(tmp_path_factory) -> dict[str, dict[str, int]]:
    """Return by how many bytes the process grew, for each way of feeding."""
    folder = tmp_path_factory.mktemp("images")
    polygons = [[[triangle(2, 3)] * number] for number in (1, 2, 3, 4)]
    index = image_index(folder, [(30, 40), (40, 30), (30, 45), (36, 60)], polygons=polygons)
    command = [sys.executable, str(HERE / "feed_many_batches.py"), str(index.json_path), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


@pytest.mark.parametrize("how", ["plain", "raw"])
def test_memory_does_not_grow_over_2000_batches(growth, how):
    assert growth[how]["resident"] < BOUND_BYTES
    assert growth[how]["python"] < PYTHON_BOUND_BYTES


def test_the_bounds_would_see_a_leak(growth):
    assert growth["leaking"]["resident"] > BOUND_BYTES
    assert growth["leaking"]["python"] > PYTHON_BOUND_BYTES
