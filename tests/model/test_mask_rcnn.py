from dataclasses import replace

import pytest
import torch
from reference_operators import pyramid_roi_align_reference

from maskperf.config import ModelConfig
from maskperf.model.mask_rcnn import STRIDES, MaskRcnn
from maskperf.ops.products import own_class
from maskperf.recipes import demo

SMALL = replace(demo().model, num_classes=4, batch_norm="frozen", frozen_stages=2)

# name, kind, limit of the uniform or standard deviation of the normal distribution (spec of the benchmark)
INITIAL_WEIGHTS = [
    ("backbone.body.stem.conv1", "uniform", 0.142857),
    ("backbone.body.layer2.0.conv2", "uniform", 0.051031),
    ("backbone.body.layer4.2.conv3", "uniform", 0.076547),
    ("backbone.fpn.fpn_inner1", "uniform", 0.10825),
    ("backbone.fpn.fpn_inner2", "uniform", 0.07655),
    ("backbone.fpn.fpn_inner3", "uniform", 0.05413),
    ("backbone.fpn.fpn_inner4", "uniform", 0.03827),
    *((f"backbone.fpn.fpn_layer{number}", "uniform", 0.03608) for number in (1, 2, 3, 4)),
    ("rpn.head.conv", "normal", 0.01),
    ("rpn.head.cls_logits", "normal", 0.01),
    ("rpn.head.bbox_pred", "normal", 0.01),
    ("roi_heads.box.feature_extractor.fc6", "uniform", 0.015465),
    ("roi_heads.box.feature_extractor.fc7", "uniform", 0.054127),
    ("roi_heads.box.predictor.cls_score", "normal", 0.01),
    ("roi_heads.box.predictor.bbox_pred", "normal", 0.001),
    *((f"roi_heads.mask.feature_extractor.mask_fcn{number}", "normal", 0.029463) for number in (1, 2, 3, 4)),
    ("roi_heads.mask.predictor.conv5_mask", "normal", 0.044194),
    ("roi_heads.mask.predictor.mask_fcn_logits", "normal", 0.157135),
]

PARAMETER_COUNTS = {
    "backbone.body.stem": 9_408,
    "backbone.body.layer1": 212_992,
    "backbone.body.layer2": 1_212_416,
    "backbone.body.layer3": 7_077_888,
    "backbone.body.layer4": 14_942_208,
    "backbone.fpn.fpn_inner": 984_064,
    "backbone.fpn.fpn_layer": 2_360_320,
    "rpn.": 593_935,
    "roi_heads.box.feature_extractor.fc6": 12_846_080,
    "roi_heads.box.feature_extractor.fc7": 1_049_600,
    "roi_heads.box.predictor.cls_score": 83_025,
    "roi_heads.box.predictor.bbox_pred": 332_100,
    "roi_heads.mask.feature_extractor.mask_fcn": 4 * 590_080,
    "roi_heads.mask.predictor.conv5_mask": 262_400,
    "roi_heads.mask.predictor.mask_fcn_logits": 20_817,
    "": 44_347_573,
}


@pytest.fixture(scope="module")
def full_model():
    torch.manual_seed(0)
    return MaskRcnn(ModelConfig())


@pytest.fixture(scope="module")
def small_model():
    torch.manual_seed(0)
    return MaskRcnn(SMALL).double().eval()  # in float64 the order of a sum does not show; heads still give float32


def pyramid(model):
    pixels = torch.randn(2, 3, 128, 192, generator=torch.Generator().manual_seed(1)).double() * 50
    with torch.no_grad():
        return model.features(pixels)


BOXES = torch.tensor([[[3.0, 5, 40, 60], [0, 0, 191, 127]], [[-4, -8, 20, 10], [150, 90, 260, 200]]]).double()


def test_parameter_counts_are_those_of_the_benchmark(full_model):
    counts = {
        prefix: sum(value.numel() for name, value in full_model.named_parameters() if name.startswith(prefix))
        for prefix in PARAMETER_COUNTS
    }
    assert counts == PARAMETER_COUNTS


def test_frozen_and_trainable_tensors_are_those_of_the_benchmark(full_model):
    trainable = {name: value for name, value in full_model.named_parameters() if value.requires_grad}
    frozen = {name: value for name, value in full_model.named_parameters() if not value.requires_grad}
    biases = [value for name, value in trainable.items() if "bias" in name]
    assert len(trainable) == 84
    assert sum(name.startswith("backbone.body") for name in trainable) == 42
    assert len(biases) == 21
    assert sum(value.numel() for value in biases) == 6_133
    assert all(name.startswith(("backbone.body.stem", "backbone.body.layer1")) for name in frozen)
    with_bias = {name.removesuffix(".bias") for name in trainable if name.endswith(".bias")}
    assert with_bias == {name for name, _, _ in INITIAL_WEIGHTS if not name.startswith("backbone.body.")}
    buffers = [value.numel() for value in full_model.buffers()]
    assert (len(buffers), sum(buffers)) == (4 * 53, 4 * 26_560)  # of batch norms


@pytest.mark.parametrize(("name", "kind", "size"), INITIAL_WEIGHTS)
def test_initial_weights_have_the_distribution_of_the_benchmark(full_model, name, kind, size):
    layer = full_model.get_submodule(name)
    weight = layer.weight.detach().flatten()
    count = weight.numel()
    std = size if kind == "normal" else size / 3**0.5
    within_one_std = (weight.abs() < std).double().mean().item()
    expected = 0.6827 if kind == "normal" else 3**-0.5  # tells the two distributions apart
    assert weight.std().item() == pytest.approx(std, rel=4 / (2 * count) ** 0.5)
    assert abs(weight.mean().item()) < 5 * std / count**0.5
    assert within_one_std == pytest.approx(expected, abs=5 * (expected * (1 - expected) / count) ** 0.5)
    if kind == "uniform":
        assert 0.999 * size < weight.abs().max().item() <= size * (1 + 1e-3)  # the table is rounded
    assert layer.bias is None or layer.bias.abs().max() == 0


def test_batch_norms_start_as_the_identity(full_model):
    for name, buffer in full_model.named_buffers():
        assert (buffer == float(name.endswith(("weight", "running_var")))).all(), name


def test_pyramid_has_five_levels_at_strides_4_to_64_in_channels_last(small_model):
    features = pyramid(small_model)
    assert [tuple(level.shape[2:]) for level in features] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
    assert {level.shape[1] for level in features} == {SMALL.fpn_channels}
    assert all(level.is_contiguous(memory_format=torch.channels_last) for level in features[:4])


@pytest.mark.parametrize(("head", "side"), [("box", 7), ("mask", 14)])
def test_roi_heads_read_each_box_from_its_own_image_and_level(small_model, head, side):
    features = pyramid(small_model)
    expected = small_model.roi_heads[head](pyramid_roi_align_reference(features, BOXES, side, STRIDES[:4]))
    if head == "box":
        found, shapes = small_model.box_outputs(features, BOXES), [(2, 2, 4), (2, 2, 4, 4)]
    else:
        found, shapes, expected = [small_model.mask_logits(features, BOXES)], [(2, 2, 4, 28, 28)], [expected]
    assert [tuple(output.shape) for output in found] == shapes
    for output, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(output.flatten(0, 1), wanted, rtol=1e-6, atol=1e-7)


def gradients_of(outputs, model, features):
    """Return the gradients of a weighted sum of the outputs in the features and the model's parameters."""
    generator = torch.Generator().manual_seed(3)
    total = sum((output * torch.randn(output.shape, generator=generator)).sum() for output in outputs)
    inputs = [*features, *(parameter for parameter in model.parameters() if parameter.requires_grad)]
    return torch.autograd.grad(total, inputs, allow_unused=True)


def assert_equal_gradients(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * other.abs().max().item())  # float32 outputs


def test_rpn_outputs_at_chosen_anchors_and_their_gradients_are_those_of_the_whole_maps(small_model):
    features = [feature.requires_grad_() for feature in pyramid(small_model)]
    whole = small_model.rpn_output(features)
    count = whole.logits.shape[1]
    # corners and edges of the maps, every level, an anchor twice, two anchors of a cell
    index = torch.tensor([[0, 1, 1, 3 * 47, count - 1, count - 20, 4610, 5800], [*range(4, 12)]])
    index[1, :2] = torch.tensor([3 * 32 * 48 - 1, 3 * 32 * 48])
    chosen = small_model.rpn_output_at(features, index)
    logits, deltas = whole.logits.gather(1, index), whole.deltas.gather(1, index[..., None].expand(-1, -1, 4))
    torch.testing.assert_close(chosen.logits, logits, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(chosen.deltas, deltas, rtol=1e-6, atol=1e-7)
    wanted = gradients_of([logits, deltas], small_model, features)
    assert all(gradient.abs().max() > 0 for gradient in wanted[:5])
    assert_equal_gradients(gradients_of([chosen.logits, chosen.deltas], small_model, features), wanted)


@pytest.mark.parametrize("valid", [[[1, 1], [1, 1]], [[1, 0], [0, 1]], [[0, 0], [1, 1]], None])
@pytest.mark.parametrize("select", [True, False])
def test_mask_logits_of_valid_slots_and_own_classes_are_those_of_all(small_model, valid, select):
    features = [feature.requires_grad_() for feature in pyramid(small_model)]
    real = torch.ones(2, 2, dtype=torch.bool) if valid is None else torch.tensor(valid, dtype=torch.bool)
    labels = torch.tensor([[3, 1], [2, 2]])
    everything = small_model.mask_logits(features, BOXES)
    wanted = own_class(everything, labels) if select else everything
    wanted = wanted * real.view(2, 2, *[1] * (wanted.ndim - 2))
    options = {"labels": labels if select else None, "valid": None if valid is None else real}
    found = small_model.mask_logits(features, BOXES, **options)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
    assert_equal_gradients(gradients_of([found], small_model, features), gradients_of([wanted], small_model, features))


def test_mask_logits_without_a_valid_slot_still_reach_every_parameter(small_model):
    features = pyramid(small_model)
    none = torch.zeros(2, 2, dtype=torch.bool)
    found = small_model.mask_logits(features, BOXES, labels=torch.zeros(2, 2, dtype=torch.int64), valid=none)
    gradients = torch.autograd.grad((found * 0).sum(), list(small_model.roi_heads["mask"].parameters()))
    assert all(gradient.abs().max() == 0 for gradient in gradients)


def test_roi_heads_do_not_read_the_coarsest_level(small_model):
    features = pyramid(small_model)
    huge = torch.tensor([[[0.0, 0.0, 4000.0, 4000.0]]] * 2).double()
    logits, _ = small_model.box_outputs(features, huge)
    spoiled = [*features[:4], torch.full_like(features[4], float("nan"))]
    assert torch.equal(small_model.box_outputs(spoiled, huge)[0], logits)


@pytest.mark.parametrize("num_classes", [0, 1])
def test_model_without_a_foreground_class_is_refused(num_classes):
    with pytest.raises(ValueError, match=f"num_classes={num_classes}"):
        MaskRcnn(replace(SMALL, num_classes=num_classes))
