import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_reference import flat_polygons

from maskperf.ops import rasterize
from maskperf.ops.rasterize import rasterize_crops
from maskperf.structures import Polygons
from maskperf.techniques import plain, using

SIZE = 28
SOURCES = Path(rasterize.__file__).parents[2]


def scene(seed: int, polygons_of_objects: list[int], points_each: int) -> tuple[Polygons, torch.Tensor]:
    generator = np.random.default_rng(seed)
    polygons = [
        generator.uniform(0, 100, (points_each, 2)).astype(np.float32)
        for count in polygons_of_objects
        for _ in range(count)
    ]
    boxes = generator.uniform(0, 40, (len(polygons_of_objects), 4)).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2] + 20
    return flat_polygons(polygons, np.cumsum([0, *polygons_of_objects]).tolist()), torch.from_numpy(boxes)


@pytest.mark.parametrize("limit", [1, 30_000, 1 << 21])
@pytest.mark.parametrize("polygons_of_objects", [[1, 1, 2, 1, 5, 1], [0, 3, 0, 1, 0], [190, 1]])
def test_masks_depend_neither_on_chunks_nor_on_how_edges_are_listed(monkeypatch, polygons_of_objects, limit):
    polygons, boxes = scene(len(polygons_of_objects), polygons_of_objects, 6)
    objects = torch.arange(len(boxes))
    expected = rasterize_crops(polygons, objects, boxes, SIZE)
    assert expected.any()
    roomy = replace(  # as for captured steps: points of no polygon, polygons without points
        polygons,
        points=torch.nn.functional.pad(polygons.points, (0, 0, 0, 7)),
        point_offsets=torch.nn.functional.pad(polygons.point_offsets[None], (0, 3), mode="replicate")[0],
        max_points=polygons.max_points + 5,
        max_polygons=polygons.max_polygons + 2,
    )
    monkeypatch.setattr(rasterize, "_MAX_ELEMENTS", limit)
    for given in (polygons, roomy):
        assert torch.equal(rasterize_crops(given, objects, boxes, SIZE), expected)
        with using(plain()):  # as on a GPU without the kernels
            assert torch.equal(rasterize_crops(given, objects, boxes, SIZE), expected)


def test_one_large_object_does_not_make_the_others_larger():
    polygons, _ = scene(0, [190, *[1] * 63], 6)
    listed = rasterize._costs(polygons, torch.arange(64), SIZE, is_listed=True)
    assert listed[0] == 190 * listed[1]
    assert set(listed[1:]) == {SIZE * 6 + SIZE * (SIZE + 1)}


def test_chunks_stay_below_the_limit_or_are_single(monkeypatch):
    monkeypatch.setattr(rasterize, "_MAX_ELEMENTS", 100)
    assert rasterize._chunk_lengths([10] * 25) == [10, 10, 5]
    assert rasterize._chunk_lengths([500, 60, 30, 20, 1000, 1]) == [1, 2, 1, 1, 1]
    assert rasterize._chunk_lengths([0, 0, 100, 0]) == [4]
    assert rasterize._chunk_lengths([]) == []


def test_thousands_of_masks_of_a_large_object_need_little_memory():
    code = (
        "import resource, sys, torch\n"
        "from maskperf.ops.rasterize import rasterize_crops\n"
        "from maskperf.structures import Polygons\n"
        "torch.set_num_threads(1)\n"
        "points = torch.rand(190 * 20, 2, generator=torch.Generator().manual_seed(0)) * 100\n"
        "polygons = Polygons(points, torch.arange(191) * 20, torch.tensor([0, 190]), 3800, 190)\n"
        "def draw(count):\n"
        "    boxes = torch.tensor([[10.0, 10.0, 80.0, 90.0]]).repeat(count, 1)\n"
        "    return rasterize_crops(polygons, torch.zeros(count, dtype=torch.int64), boxes, 28).sum().item()\n"
        "one = draw(1)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert draw(300) == 300 * one\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    finished = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    # All at once would be 300 masks x 3,800 edges x 28 columns in numbers of 8 bytes: 255 MB each of a dozen times.
    assert int(finished.stdout) < 200
