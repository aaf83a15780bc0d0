"""Feeds thousands of batches in a Python of its own and prints by how much it has grown since the first of them.

Arguments: the JSON and the folder of images.
"""

import gc
import json
import sys
import tracemalloc
from pathlib import Path

import torch

from maskperf.config import DataConfig
from maskperf.data.coco.index import CocoIndex, read_coco
from maskperf.data.images.loader import Feeding, TrainingLoader
from maskperf.data.images.raw_images import prepare_images

NUM_STEPS = 2000
LEAKING_STEPS = 500  # enough to see it
TRACED_STEPS = 150  # Python's own account of memory is slow
DATA = DataConfig(short_side=30, long_side=50, size_divisor=8, loader_threads=2)


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def python_bytes() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def growth(loader: TrainingLoader, num_steps: int, measure, kept: list | None) -> int:
    """Return by how much `measure` grew over the batches, but for their first sixth."""
    before = 0
    for number, batch in enumerate(loader.batches(0, num_steps)):
        if number == num_steps // 6:
            before = measure()
        prepared = prepare_images(batch, torch.device("cpu"))
        if kept is not None:
            kept.append(prepared)
        del batch, prepared
    return measure() - before


def growth_of(index: CocoIndex, feeding: Feeding, num_steps: int, kept: list | None) -> dict[str, int]:
    loader = TrainingLoader(index, DATA, seed=1, rank=0, world=1, images_per_rank=1, feeding=feeding)
    resident = growth(loader, num_steps, resident_bytes, kept)
    tracemalloc.start()
    python = growth(loader, TRACED_STEPS, python_bytes, kept)
    tracemalloc.stop()
    return {"resident": resident, "python": python}


if __name__ == "__main__":
    torch.set_num_threads(1)
    read = read_coco(Path(sys.argv[1]), Path(sys.argv[2]), training=True)
    raw = Feeding(aspect_buckets=True, static_sizes=True, raw_images=True)
    found = {
        "plain": growth_of(read, Feeding(aspect_buckets=True), NUM_STEPS, None),
        "raw": growth_of(read, raw, NUM_STEPS, None),
        "leaking": growth_of(read, Feeding(), LEAKING_STEPS, []),
    }
    print(json.dumps(found))
