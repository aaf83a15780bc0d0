"""Feeds thousands of batches in a Python of its own, this file, and prints by how much it grows after the first."""

import gc
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from image_folder import image_index, training_loader, triangle

from maskperf.config import DataConfig
from maskperf.data.coco.index import CocoIndex, read_coco
from maskperf.data.images.loader import Feeding
from maskperf.data.images.raw_images import prepare_images

SOURCES = Path(__file__).resolve().parents[3] / "src"
DATA = DataConfig(short_side=30, long_side=50, size_divisor=8, loader_threads=2)
NUM_STEPS, LEAKING_STEPS = 2000, 500  # enough to see a leak
TRACED_STEPS = 150  # Python's own account of memory is slow
# To lose only the bytes of one image, 30 x 40 x 3, with every batch would be more than 5 MiB in 1667 batches.
BOUND_BYTES = 4 * 2**20
PYTHON_BOUND_BYTES = 125 * 300  # in 125 batches; a lost batch is more

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="a process's memory is read there")


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def python_bytes() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def growth_of(index: CocoIndex, feeding: Feeding, num_steps: int, leaked: list | None = None) -> dict[str, int]:
    """Return by how much both measures grow over the batches, but for their first sixth."""
    loader, found = training_loader(index, DATA, seed=1, images_per_rank=1, feeding=feeding), {}
    for name, measure, steps in (("resident", resident_bytes, num_steps), ("python", python_bytes, TRACED_STEPS)):
        if name == "python":
            tracemalloc.start()
        for number, batch in enumerate(loader.batches(0, steps)):
            if number == steps // 6:
                before = measure()
            prepared = prepare_images(batch, torch.device("cpu"))
            if leaked is not None:
                leaked.append(prepared)
            del batch, prepared
        found[name] = measure() - before
    tracemalloc.stop()
    return found


@pytest.fixture(scope="module")
def growth(tmp_path_factory) -> dict[str, dict[str, int]]:
    """Return by how many bytes the process grew, for each way of feeding."""
    folder = tmp_path_factory.mktemp("images")
    polygons = [[[triangle(2, 3)] * number] for number in (1, 2, 3, 4)]
    index = image_index(folder, [(30, 40), (40, 30), (30, 45), (36, 60)], polygons=polygons)
    command = [sys.executable, __file__, str(index.json_path), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["plain", "raw"])
def test_memory_does_not_grow_over_2000_batches(growth, how):
    assert growth[how]["resident"] < BOUND_BYTES
    assert growth[how]["python"] < PYTHON_BOUND_BYTES


@pytest.mark.slow
def test_the_bounds_would_see_a_leak(growth):
    assert growth["leaking"]["resident"] > BOUND_BYTES
    assert growth["leaking"]["python"] > PYTHON_BOUND_BYTES


if __name__ == "__main__":
    torch.set_num_threads(1)
    read = read_coco(Path(sys.argv[1]), Path(sys.argv[2]), training=True)
    raw = Feeding(aspect_buckets=True, static_sizes=True, raw_images=True)
    found = {
        "plain": growth_of(read, Feeding(aspect_buckets=True), NUM_STEPS),
        "raw": growth_of(read, raw, NUM_STEPS),
        "leaking": growth_of(read, Feeding(), LEAKING_STEPS, []),
    }
    print(json.dumps(found))
