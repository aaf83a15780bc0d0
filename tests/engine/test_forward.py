from dataclasses import replace

import pytest
import small_batches
import torch
from small_batches import losses_and_gradients, rectangle, varied_batch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import maskperf.engine.forward
import maskperf.losses.rpn
from maskperf.bench.run_lengths import as_run_lengths
from maskperf.config import ModelConfig, OptimizerConfig
from maskperf.engine.build import build_model
from maskperf.engine.forward import mask_slots, training_losses
from maskperf.engine.optimizer import build_optimizer, learning_rates_at, set_learning_rates
from maskperf.model.mask_rcnn import feature_anchors, padded_anchors
from maskperf.ops.matching import Matches
from maskperf.recipes import demo
from maskperf.structures import LOSS_NAMES, to_device
from maskperf.techniques import Techniques, using

SMALL = replace(demo().model, num_classes=4, batch_norm="frozen", frozen_stages=2)
CHANCE_FREE = replace(
    SMALL,
    rpn_samples_per_image=100_000,
    rpn_positive_fraction=1.0,
    roi_samples_per_image=100_000,
    roi_positive_fraction=1.0,
)
HEIGHT, WIDTH = 64, 96
TRUTH = [([[4.0, 6, 40, 50], [50, 10, 90, 60]], [1, 3]), ([[10.0, 10, 30, 25]], [2]), ([[20.0, 3, 85, 61]], [1])]

aten = torch.ops.aten
HOST_READS = {aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal}
SHAPES_FROM_DATA = {aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive}
PYTHON_READS = ("new_tensor", "item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")


class NoWaiting(TorchDispatchMode):
    """Raises at every operator for which the host must wait until a device has finished."""

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        keywords = keywords or {}
        packet = operator.overloadpacket
        waits = packet in HOST_READS | SHAPES_FROM_DATA
        if packet in (aten.index, aten.index_put, aten.index_put_):
            waits |= any(index is not None and index.dtype == torch.bool for index in arguments[1])
        if operator is aten.repeat_interleave.Tensor:
            waits |= keywords.get("output_size") is None
        assert not waits, f"{operator} waits for the device"
        return operator(*arguments, **keywords)


def model_of(config=SMALL, seed=0):
    return build_model(config, seed)[0]


def pixels_of(index):
    return torch.randn(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(index)) * 50


def batch_of(indices, *, slots=2, with_truth=True):
    """Return the images of these numbers; their objects are the rectangles of `TRUTH`."""
    objects = [
        [(box, label, [rectangle(*box)]) for box, label in zip(*TRUTH[index], strict=True)] if with_truth else []
        for index in indices
    ]
    pixels = torch.stack([pixels_of(index) for index in indices])
    return small_batches.batch_of(pixels, objects, (HEIGHT, WIDTH), indices, slots)


def take_step(model, optimizer, batch, update):
    set_learning_rates(optimizer, learning_rates_at(update, OptimizerConfig(warmup_steps=10)))
    losses, _ = losses_and_gradients(model, batch)
    optimizer.step()
    return losses.stacked().detach()


def recorded_rois(monkeypatch, model, batch):
    """Return the RoIs that a forward pass draws."""
    drawn = []
    draw = maskperf.engine.forward.sample_rois

    def record(*arguments, **keywords):
        drawn.append(draw(*arguments, **keywords))
        return drawn[-1]

    with monkeypatch.context() as patch:
        patch.setattr(maskperf.engine.forward, "sample_rois", record)
        training_losses(model, batch)
    return drawn[0]


def test_losses_are_finite_positive_and_their_sum_is_unweighted():
    losses = training_losses(model_of(), batch_of([0, 1]))
    terms = [getattr(losses, name) for name in LOSS_NAMES]
    assert all(term.dtype == torch.float32 and term.shape == () and 0 < term.item() < 100 for term in terms)
    assert losses.total().item() == pytest.approx(sum(term.item() for term in terms))
    assert losses.dropped_masks.item() == 0


def test_a_loss_weight_scales_its_term_and_its_gradient_and_weights_of_one_touch_nothing():
    batch, weights = batch_of([0, 1]), (2.0, 1.0, 0.5, 0.0, 1.0)
    plain = training_losses(model_of(), batch).stacked()
    weighted_model = model_of()
    weighted_model.config = replace(weighted_model.config, loss_weights=weights)
    weighted = training_losses(weighted_model, batch)
    assert torch.equal(weighted.stacked(), plain * torch.tensor(weights))
    weighted.total().backward()
    assert weighted_model.roi_heads["box"].predictor.bbox_pred.weight.grad.abs().max() == 0
    assert training_losses(model_of(), batch).mask.grad_fn.name() != "MulBackward0"


@pytest.mark.parametrize("with_truth", [True, False])
def test_every_trained_parameter_gets_a_finite_gradient(with_truth):
    model = model_of()
    losses, gradients = losses_and_gradients(model, batch_of([0, 1], with_truth=with_truth))
    for name, parameter in model.named_parameters():
        assert (gradients[name] is not None) is parameter.requires_grad, name
        assert gradients[name] is None or gradients[name].isfinite().all(), name
    assert losses.stacked().isfinite().all()


def test_batch_without_objects_trains_towards_background_only():
    losses, gradients = losses_and_gradients(model_of(), batch_of([0, 1], with_truth=False))
    assert (losses.rpn_box.item(), losses.box.item(), losses.mask.item()) == (0, 0, 0)
    assert losses.objectness.item() > 0 and losses.classification.item() > 0
    for name, gradient in gradients.items():
        if "bbox_pred" in name or ".mask." in name:
            assert gradient.abs().max() == 0, name
        elif "cls_" in name:
            assert gradient.abs().max() > 0, name


def test_proposals_carry_no_gradient_to_the_rpn():
    model = model_of()
    losses = training_losses(model, batch_of([0, 1]))
    (losses.classification + losses.box + losses.mask).backward()
    assert all(parameter.grad is None for parameter in model.rpn.parameters())
    assert model.backbone["fpn"].fpn_inner4.weight.grad.abs().max() > 0


def test_more_empty_slots_change_nothing():
    model = model_of()
    few, many = (training_losses(model, batch_of([0, 1], slots=slots)).stacked() for slots in (2, 11))
    torch.testing.assert_close(many, few, rtol=1e-6, atol=0)


def test_doubled_images_leave_the_losses_as_they_are():
    model = model_of(CHANCE_FREE)
    once = training_losses(model, batch_of([0])).stacked()
    twice = training_losses(model, batch_of([0, 0])).stacked()
    torch.testing.assert_close(twice, once, rtol=1e-6, atol=0)  # float32 sums in another order


def test_room_for_more_masks_changes_nothing_and_too_little_room_is_counted(monkeypatch):
    model, batch = model_of(), batch_of([0, 1])
    rois = recorded_rois(monkeypatch, model, batch)
    positives = (rois.labels > 0).sum(dim=1)
    beyond_one = (positives - 1).clamp(min=0).sum().item()
    assert beyond_one > 0
    default = training_losses(model, batch)
    found = {}
    for slots in (1, 40):
        model.config = replace(SMALL, mask_slots_per_image=slots)
        found[slots] = training_losses(model, batch)
    assert found[40].dropped_masks.item() == default.dropped_masks.item() == 0
    torch.testing.assert_close(found[40].mask, default.mask, rtol=1e-6, atol=0)
    assert found[1].dropped_masks.item() == beyond_one


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("labels", [True, False])
def test_masks_packed_over_the_images_give_the_losses_of_slots_in_each_image(dtype, labels):
    model = model_of()
    model.compute_dtype = dtype
    techniques = Techniques().without("grouped_roi_align", *(() if labels else ("class_selected_outputs",)))
    batch = varied_batch(0, (3, 0, 2))
    with using(techniques):
        (wanted, apart), (found, packed) = (losses_and_gradients(model, batch, slots) for slots in (None, 40))
    assert wanted.dropped_masks.item() == found.dropped_masks.item() == 0
    torch.testing.assert_close(found.stacked(), wanted.stacked())
    for name, gradient in apart.items():
        if gradient is not None:
            limit = gradient.abs().max().item() * (1e-5 if dtype == torch.float32 else 2e-2)
            torch.testing.assert_close(packed[name], gradient, rtol=0, atol=limit + 1e-9)


def test_packed_masks_without_a_slot_are_counted():
    model, batch = build_model(SMALL, 0)[0], varied_batch(0, (3, 0, 2))
    needed = 3 + training_losses(model, batch, 3).dropped_masks.item()
    exact = training_losses(model, batch, needed)
    assert needed > 3 and exact.dropped_masks.item() == 0
    torch.testing.assert_close(exact.mask, training_losses(model, batch).mask)
    assert training_losses(model, batch, needed - 1).dropped_masks.item() == 1


def test_mask_slots_hold_every_positive_the_sampler_may_choose():
    assert mask_slots(ModelConfig()) == 128
    assert mask_slots(ModelConfig(mask_slots_per_image=40)) == 40
    assert mask_slots(ModelConfig(roi_samples_per_image=2)) == 1


@pytest.mark.parametrize("padded_hw", [(64, 96), (96, 64), (128, 224)])
def test_the_anchors_of_a_padded_size_are_those_of_its_forward_pass(padded_hw):
    model = model_of()
    features = model.features(torch.zeros(1, 3, *padded_hw))
    anchors, _ = feature_anchors(model, features)
    assert padded_anchors(model, padded_hw, torch.device("cpu")) is anchors


WAITS = (
    *(lambda x: aten._local_scalar_dense(x.sum()), lambda x: x.sum().item(), lambda x: bool(x.any())),
    *(lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: torch.masked_select(x, x > 0)),
    *(lambda x: x.unique(), lambda x: x.repeat_interleave((x > 0).long())),
)


@pytest.mark.parametrize("wait", WAITS)
def test_the_check_for_waiting_finds_every_kind_of_wait(wait):
    x = torch.tensor([1.0, 0.0])
    with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
        wait(x)


# On a CPU, where it costs nothing, these read sizes back.
WAYS_OF_A_GPU = Techniques().without("packed_positives", "grouped_roi_align", "sparse_mask_targets")


@pytest.mark.parametrize("quota", ["pooled", "per_image"])
@pytest.mark.parametrize("with_truth", [True, False])
@pytest.mark.parametrize("change", [lambda batch: batch, as_run_lengths], ids=["polygons", "run lengths"])
def test_a_step_never_waits_for_the_device(monkeypatch, quota, with_truth, change):
    def refuse(*arguments, **keywords):
        raise AssertionError("a tensor's value is read on the host")

    model = model_of(replace(SMALL, proposal_quota=quota))
    optimizer = build_optimizer(model, OptimizerConfig())
    before = model.rpn["head"].conv.weight.detach().clone()
    batch = change(batch_of([0, 1], with_truth=with_truth))
    with monkeypatch.context() as patch:
        for name in PYTHON_READS:
            patch.setattr(torch.Tensor, name, refuse)
        with using(WAYS_OF_A_GPU), NoWaiting():
            for update in (1, 2):
                take_step(model, optimizer, batch, update)
    assert not torch.equal(model.rpn["head"].conv.weight, before)


def test_a_step_in_bfloat16_with_slots_shared_by_all_masks_never_waits():
    model, batch = model_of(), batch_of([0, 1])
    model.compute_dtype = torch.bfloat16
    for _ in range(2):  # what is made once is made in the first
        with using(WAYS_OF_A_GPU), NoWaiting():
            losses, _ = losses_and_gradients(model, batch, 12)
    assert losses.dropped_masks.item() == 0


class Operators(TorchDispatchMode):
    """Count the operators."""

    count = 0

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        self.count += 1
        return operator(*arguments, **(keywords or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_operators_does_not_follow_that_of_the_objects(monkeypatch, dtype):
    """The kernel that matches boxes stands for few operators; its plain form goes from ground truth to ground truth."""

    def match_at_once(boxes, truth, valid, **rule):
        positive = torch.arange(boxes.shape[1]).expand(len(truth), -1) % 7 == 0
        return Matches(slots=torch.zeros_like(positive, dtype=torch.int64), positive=positive, negative=~positive)

    for losses in (maskperf.losses.rpn, maskperf.losses.box):
        monkeypatch.setattr(losses, "match_boxes", match_at_once)
    model = model_of()
    model.compute_dtype = dtype
    counts = []
    for slots in (2, 2, 8, 90):  # the first makes what is made once
        batch = batch_of([0, 1], slots=slots)
        with using(WAYS_OF_A_GPU), Operators() as operators:
            losses_and_gradients(model, batch, 12)
        counts.append(operators.count)
    assert counts[1] == counts[2] == counts[3] > 100


class NothingOnTheHost(TorchDispatchMode):
    """Raises at every operator that takes or gives a tensor of the host, except the scalars of arithmetic."""

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        result = operator(*arguments, **(keywords or {}))
        copies = operator.overloadpacket in (aten._to_copy, aten.copy_)
        for value in tree_leaves((arguments, keywords, result)):
            on_host = isinstance(value, torch.Tensor) and value.device.type == "cpu" and (copies or value.ndim > 0)
            assert not on_host, f"{operator} needs the host"
        return result


@pytest.mark.parametrize("without", [(), ("sparse_rpn_backward", "class_selected_outputs")])
@pytest.mark.parametrize("change", [lambda batch: batch, as_run_lengths], ids=["polygons", "run lengths"])
def test_on_a_device_that_is_no_cpu_nothing_of_a_step_touches_the_host(without, change):
    """The meta device has shapes and no numbers, so every read of a number fails there, and a GPU's ways are taken.

    What is made once for a padded size is made in the first step, as before a capture.
    """
    device = torch.device("meta")
    model = model_of(CHANCE_FREE).to(device)
    batch = to_device(change(batch_of([0, 1])), device)
    with using(Techniques().without(*without)):
        losses_and_gradients(model, batch)
        with NothingOnTheHost():
            losses_and_gradients(model, batch)
    for makes_one in (lambda: torch.ones(2), lambda: torch.tensor(1.0).to(device)):
        with pytest.raises(AssertionError, match="needs the host"), NothingOnTheHost():
            makes_one()


WORK_TECHNIQUES = ("sparse_rpn_backward", "class_selected_outputs", "packed_positives")
NONE_OF_THEM = Techniques().without(*WORK_TECHNIQUES)


@pytest.mark.parametrize("names", [*((name,) for name in WORK_TECHNIQUES), WORK_TECHNIQUES])
@pytest.mark.parametrize("with_truth", [True, False])
@pytest.mark.parametrize("config", [SMALL, CHANCE_FREE, replace(SMALL, mask_slots_per_image=1)])
def test_less_work_gives_the_same_losses_and_gradients(names, with_truth, config):
    model, batch = model_of(config), batch_of([0, 1], with_truth=with_truth)
    with using(NONE_OF_THEM):
        wanted_losses, wanted = losses_and_gradients(model, batch)
    with using(replace(NONE_OF_THEM, **dict.fromkeys(names, True))):
        losses, found = losses_and_gradients(model, batch)
    torch.testing.assert_close(losses.stacked(), wanted_losses.stacked(), rtol=1e-6, atol=0)
    for name, gradient in wanted.items():
        assert (found[name] is None) == (gradient is None), name
        if gradient is not None:
            error = (found[name] - gradient).abs().max().item()
            assert error <= 1e-5 * gradient.abs().max().item(), name


def test_run_length_masks_train_as_their_polygons_do():
    model, batch = model_of(), batch_of([0, 1])
    wanted = training_losses(model, batch)
    found = training_losses(model, as_run_lengths(batch))
    for name in ("objectness", "rpn_box", "classification", "box"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    # The sides of these rectangles lie on pixel borders, so only cells that a border cuts can differ.
    torch.testing.assert_close(found.mask, wanted.mask, rtol=0.02, atol=0)
    assert wanted.mask > 0.1


def test_rpn_layers_save_no_maps_for_a_sparse_backward():
    model, batch = model_of(), batch_of([0, 1])
    hidden = {}
    model.rpn["head"].conv.register_forward_hook(lambda module, inputs, output: hidden.setdefault("map", output))
    training_losses(model, batch)
    assert not hidden["map"].requires_grad


@pytest.mark.parametrize("batch_norm", ["frozen", "trainable"])
def test_the_same_seed_twice_is_bitwise_equal(batch_norm):
    config = replace(SMALL, batch_norm=batch_norm, frozen_stages=2 if batch_norm == "frozen" else 0)
    runs = []
    for _ in range(2):
        model = model_of(config, seed=7)
        optimizer = build_optimizer(model, OptimizerConfig())
        losses = [take_step(model, optimizer, batch_of(pair), n) for n, pair in enumerate(([0, 1], [2, 0]), start=1)]
        runs.append((torch.stack(losses), model.state_dict()))
    assert torch.equal(runs[0][0], runs[1][0])
    assert all(torch.equal(runs[0][1][name], value) for name, value in runs[1][1].items())


def test_draws_of_an_image_follow_its_sample_seed(monkeypatch):
    model, batch = model_of(), batch_of([0, 1])
    plain = recorded_rois(monkeypatch, model, batch)
    named = recorded_rois(monkeypatch, model, replace(batch, image_ids=batch.image_ids + 7))
    assert torch.equal(named.boxes, plain.boxes)
    other = recorded_rois(monkeypatch, model, replace(batch, sample_seeds=batch.sample_seeds + torch.tensor([0, 1])))
    assert torch.equal(other.boxes[0], plain.boxes[0])
    assert not torch.equal(other.boxes[1], plain.boxes[1])


def test_draws_of_an_image_do_not_depend_on_its_batch_mates(monkeypatch):
    model = model_of()
    first, second, third = (recorded_rois(monkeypatch, model, batch_of(pair)) for pair in ([0, 1], [0, 2], [2, 0]))
    for other, index in ((second, 0), (third, 1)):
        assert torch.equal(other.labels[index], first.labels[0])
        assert torch.equal(other.valid[index], first.valid[0])
        torch.testing.assert_close(other.boxes[index], first.boxes[0], rtol=1e-4, atol=1e-3)
    assert first.valid[0].sum() == SMALL.roi_samples_per_image
    assert not torch.equal(second.boxes[1], first.boxes[1])
