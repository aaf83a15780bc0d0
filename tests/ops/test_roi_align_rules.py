import math

import numpy as np
import pytest
import torch
from reference_operators import roi_align_reference

from maskperf.ops.roi_align_rules import RoiAlignRule, levels_by_rule, roi_align_by_rule

STRIDES = (4, 8, 16, 32)
ALIGNED = RoiAlignRule(is_aligned=True, samples=0, level_epsilons=(1e-8, 0.0))
UNALIGNED = RoiAlignRule(is_aligned=False, samples=2, level_epsilons=(0.0, 1e-6))


@pytest.mark.parametrize("rule", [ALIGNED, UNALIGNED], ids=["aligned", "unaligned"])
def test_pooled_maps_equal_the_published_formula(rule):
    generator = torch.Generator().manual_seed(3)
    features = [torch.randn(2, 3, 256 // stride, 320 // stride, generator=generator) for stride in STRIDES]
    boxes = torch.tensor([
        [[10.3, 20.7, 49.6, 79.2], [0.0, 0.0, 320.0, 256.0], [-6.0, 100.0, 318.5, 110.0], [300.2, 5.0, 330.0, 290.0]],
        [[100.0, 100.0, 101.5, 103.0], [3.0, 4.0, 230.0, 240.0], [7.0, 7.0, 119.0, 119.0], [0.0, 0.0, 8.0, 250.0]],
    ])  # fmt: skip
    found = roi_align_by_rule(features, boxes, size=7, strides=STRIDES, rule=rule)
    for number, box in enumerate(boxes.flatten(0, 1)):
        area = float((box[2] - box[0]) * (box[3] - box[1]))
        level = min(max(math.floor(4 + math.log2(math.sqrt(area) / 224)), 2), 5) - 2
        options = {"stride": STRIDES[level], "is_aligned": rule.is_aligned, "samples": rule.samples}
        wanted = roi_align_reference(features[level][number // 4].double(), box.double(), size=7, **options)
        np.testing.assert_allclose(found[number].numpy(), wanted, atol=2e-5)  # float32 positions


@pytest.mark.parametrize(("rule", "mode"), [(ALIGNED, "half_pixel"), (UNALIGNED, "output_half_pixel")])
@pytest.mark.parametrize("stride", STRIDES)
def test_pooled_maps_equal_those_of_onnxruntime(rule, mode, stride):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    shapes = {"maps": [2, 3, 256 // stride, 320 // stride], "boxes": [400, 4], "pooled": [400, 3, 7, 7]}
    values = {name: onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items()}
    images = onnx.helper.make_tensor_value_info("images", 7, [400])
    attributes = {"sampling_ratio": rule.samples, "spatial_scale": 1 / stride, "coordinate_transformation_mode": mode}
    inputs = ["maps", "boxes", "images"]
    node = onnx.helper.make_node("RoiAlign", inputs, ["pooled"], output_height=7, output_width=7, **attributes)
    graph = onnx.helper.make_graph([node], "pool", [values["maps"], values["boxes"], images], [values["pooled"]])
    opset = [onnx.helper.make_opsetid("", 20)]
    session = runtime.InferenceSession(onnx.helper.make_model(graph, opset_imports=opset).SerializeToString())
    generator = torch.Generator().manual_seed(stride)
    maps = torch.randn(shapes["maps"], generator=generator)
    corners = torch.rand(2, 200, 2, generator=generator) * torch.tensor([330.0, 266.0]) - 5  # some reach outside
    boxes = torch.cat([corners, corners + 1 + torch.rand(2, 200, 2, generator=generator) ** 2 * 250], dim=2)
    fed = {"maps": maps, "boxes": boxes.flatten(0, 1), "images": torch.arange(2).repeat_interleave(200)}
    (wanted,) = session.run(None, {name: value.numpy() for name, value in fed.items()})
    found = roi_align_by_rule([maps], boxes, size=7, strides=(stride,), rule=rule)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-4)  # float32 positions, of up to 400 pixels


@pytest.mark.parametrize("rule", [ALIGNED, UNALIGNED], ids=["aligned", "unaligned"])
def test_the_gradient_is_that_of_the_pooled_maps(rule):
    generator = torch.Generator().manual_seed(4)
    features = [torch.randn(1, 2, 64 // stride, 64 // stride, generator=generator) for stride in STRIDES]
    features = [feature.requires_grad_() for feature in features]
    boxes = torch.tensor([[[3.0, 5.0, 40.0, 61.0], [1.0, 1.0, 64.0, 30.0]]])
    share = torch.randn(2, 2, 7, 7, generator=generator)
    (roi_align_by_rule(features, boxes, size=7, strides=STRIDES, rule=rule) * share).sum().backward()
    step = torch.zeros_like(features[0]).index_fill_(3, torch.tensor([5]), 1.0)
    moved = [features[0].detach() + step, *(feature.detach() for feature in features[1:])]
    plain = [feature.detach() for feature in features]
    pooled = [roi_align_by_rule(maps, boxes, size=7, strides=STRIDES, rule=rule) for maps in (moved, plain)]
    torch.testing.assert_close(features[0].grad[..., 5].sum(), ((pooled[0] - pooled[1]) * share).sum())


def test_levels_change_where_the_family_has_it():
    sides = torch.tensor([111.9, 112.0, 224.0, 447.9, 448.0, 5000.0, 0.0])
    boxes = torch.stack([torch.zeros(7), torch.zeros(7), sides, sides], dim=1)
    for rule in (ALIGNED, UNALIGNED):
        assert levels_by_rule(boxes, 4, rule).tolist() == [0, 1, 2, 2, 3, 3, 0]


def test_boxes_of_all_images_in_one_row_are_pooled_from_their_own_images():
    generator = torch.Generator().manual_seed(5)
    features = [torch.randn(2, 3, 64 // stride, 64 // stride, generator=generator) for stride in STRIDES]
    boxes = torch.tensor([[[3.0, 5.0, 40.0, 61.0], [1.0, 1.0, 64.0, 30.0]], [[9.0, 9.0, 33.0, 20.0], [0, 0, 50, 50]]])
    options = {"size": 7, "strides": STRIDES, "rule": UNALIGNED}
    wanted = roi_align_by_rule(features, boxes, **options)[:3]
    row = torch.cat([boxes.flatten(0, 1)[:3], torch.ones(1, 4)])[None]
    found = roi_align_by_rule(features, row, **options, image_offsets=torch.tensor([0, 2, 3]))
    torch.testing.assert_close(found[:3], wanted)
    assert not found[3].any()
