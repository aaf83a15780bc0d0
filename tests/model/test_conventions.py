"""Formulas of other families, each against its published form, written out anew."""

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from weight_files import TINY

from maskperf.config import ConventionsName
from maskperf.data.images.transforms import move_boxes, target_size_hw
from maskperf.model.conventions import CONVENTIONS, DETECTRON2, Conventions, edges
from maskperf.model.mask_rcnn import STRIDES, MaskRcnn, feature_anchors
from maskperf.ops.boxes import are_at_least, clip_boxes, decode_boxes
from maskperf.ops.paste import paste_by_grid

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "conventions.md"


def test_every_name_of_the_key_has_conventions_and_a_column_of_the_document():
    assert set(get_args(ConventionsName)) == set(CONVENTIONS)
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in CONVENTIONS if f"`{name}`" not in text] == []
    assert [entry.name for entry in fields(Conventions) if f"`{entry.name}`" not in text] == []


def plain_anchors(name, padded_hw):
    """Return anchors as detectron2 and mmdetection, or torchvision, describe them: x2 and y2 are edges."""
    anchors = []
    for size, stride in zip((32, 64, 128, 256, 512), STRIDES, strict=True):
        grid = [math.ceil(side / stride) for side in padded_hw]
        apart = [side // cells for side, cells in zip(padded_hw, grid, strict=True)]
        apart = apart if name == "torchvision" else [stride, stride]
        for row in range(grid[0]):
            for column in range(grid[1]):
                for ratio in (0.5, 1.0, 2.0):
                    width = math.sqrt(size**2 / ratio)
                    sides = [-width / 2, -width * ratio / 2, width / 2, width * ratio / 2]
                    sides = [round(side) for side in sides] if name == "torchvision" else sides
                    shift = (column * apart[1], row * apart[0]) * 2
                    anchors.append([side + offset for side, offset in zip(sides, shift, strict=True)])
    return torch.tensor(anchors, dtype=torch.float32)


@pytest.mark.parametrize("name", ["torchvision", "detectron2", "mmdetection"])
def test_anchors_are_those_of_the_family(name):
    model = MaskRcnn(replace(TINY, conventions=name, anchor_sizes=(32, 64, 128, 256, 512)))
    padded_hw = (160, 224)  # the coarsest map has 3 rows of 53 pixels in torchvision, of 64 elsewhere
    features = [torch.zeros(1, 1, *(math.ceil(side / stride) for side in padded_hw)) for stride in STRIDES]
    anchors, _ = feature_anchors(model, features)
    torch.testing.assert_close(edges(anchors, CONVENTIONS[name]), plain_anchors(name, padded_hw), atol=1e-4, rtol=0)


def test_decoding_and_clipping_are_those_without_a_plus_one():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(1, 50, 2, generator=generator) * 100
    anchors = torch.cat([corners, corners + 1 + torch.rand(1, 50, 2, generator=generator) * 80], dim=2)
    deltas = torch.randn(1, 50, 4, generator=generator) * torch.tensor([8.0, 8.0, 5.0, 5.0])
    sides, centres = anchors[..., 2:] - anchors[..., :2], (anchors[..., 2:] + anchors[..., :2]) / 2
    middle = deltas[..., :2] / 10 * sides + centres
    size = (deltas[..., 2:] / 5).clamp(max=math.log(1000 / 16)).exp() * sides
    wanted = torch.cat([middle - size / 2, middle + size / 2], dim=2)
    wanted = wanted.clamp(min=0).minimum(torch.tensor([120.0, 90.0, 120.0, 90.0]))
    inclusive = anchors - torch.tensor([0.0, 0.0, 1.0, 1.0])
    found = clip_boxes(
        decode_boxes(deltas, inclusive, (10.0, 10.0, 5.0, 5.0)), torch.tensor([[90, 120]]), has_plus_one=False
    )
    torch.testing.assert_close(edges(found, DETECTRON2), wanted, atol=1e-4, rtol=1e-5)
    has_area = (wanted[..., 2:] > wanted[..., :2]).all(dim=2)
    assert not has_area.all()
    assert torch.equal(are_at_least(found, 0.0), has_area)


def test_shrinking_is_limited_where_the_family_limits_it():
    deltas, box = torch.tensor([[0.0, 0.0, -9.0, 9.0]]), torch.tensor([[0.0, 0.0, 99.0, 99.0]])
    found = [decode_boxes(deltas, box, (1.0,) * 4, limits_shrinking=limits) for limits in (False, True)]
    widths = [float(boxes[0, 2] - boxes[0, 0] + 1) for boxes in found]
    assert widths == pytest.approx([100 * math.exp(-9), 100 * 16 / 1000], abs=1e-4)


def test_masks_are_pasted_as_by_a_grid_of_pixel_centres():
    generator = torch.Generator().manual_seed(1)
    probs = torch.rand(5, 28, 28, generator=generator)
    boxes = torch.tensor([
        [10.3, 20.7, 49.6, 79.2], [-7.5, -3.0, 30.0, 200.0], [0.0, 0.0, 96.0, 96.0], [40.2, 40.2, 40.9, 41.0],
        [90.0, 10.0, 140.0, 30.0],
    ])  # fmt: skip
    y, x = torch.arange(96) + 0.5, torch.arange(96) + 0.5
    for box, prob, pasted in zip(boxes, probs, paste_by_grid(probs, boxes, (96, 96)), strict=True):
        rows = (y - box[1]) / (box[3] - box[1]) * 2 - 1
        columns = (x - box[0]) / (box[2] - box[0]) * 2 - 1
        grid = torch.stack([columns.expand(96, 96), rows[:, None].expand(96, 96)], dim=2)
        wanted = F.grid_sample(prob[None, None], grid[None], align_corners=False)[0, 0] >= 0.5
        assert torch.equal(pasted, wanted)


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("reference", (417, 1334)),
        ("torchvision", (416, 1333)),
        ("detectron2", (417, 1333)),
        ("mmdetection", (417, 1333)),
    ],
)
def test_sizes_after_the_resize(rule, wanted):
    """640 x 200: the scale is 1333 / 640, which makes 416.56 of 200."""
    assert target_size_hw((200, 640), 800, 1333, rule) == wanted


def test_boxes_without_a_plus_one_keep_their_edges():
    boxes = torch.tensor([[10.0, 20.0, 19.0, 39.0]]).numpy()  # edges at 20 and 40
    moved = move_boxes(boxes, (50, 50), (100, 150), is_mirrored=False, rule="torchvision")
    assert moved.tolist() == [[30, 40, 59, 79]]
    mirrored = move_boxes(boxes, (50, 50), (100, 150), is_mirrored=True, rule="torchvision")
    assert mirrored.tolist() == [[150 - 60, 40, 150 - 30 - 1, 79]]
