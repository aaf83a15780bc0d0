import math
from dataclasses import replace

import pytest
import torch
from loss_options import rpn_options
from test_box_loss import targets_of

from maskperf.config import ModelConfig
from maskperf.losses.rpn import assign_anchors, rpn_losses
from maskperf.structures import Batch, Images, RpnOutput

ALL = ModelConfig(rpn_samples_per_image=1000, rpn_positive_fraction=1.0)  # nothing is random
LN2 = math.log(2)

TRUTH = [0.0, 0, 9, 9]
HIT, HALF, FAR = [0.0, 0, 9, 9], [0.0, 0, 9, 4], [20.0, 20, 29, 29]  # IoU with TRUTH: 1, 0.5 (ignored), 0


def batch_of(truth, *, slots=None, seeds=None, size_hw=(100, 100), dtype=torch.float32):
    """Return a batch with these boxes, a list for each image, in `slots` places."""
    return Batch(
        images=Images(pixels=torch.zeros(len(truth), 3, 1, 1), sizes_hw=torch.tensor([list(size_hw)] * len(truth))),
        targets=targets_of(truth, [[1] * len(boxes) for boxes in truth], slots, dtype),
        image_ids=torch.arange(len(truth)),
        sample_seeds=torch.tensor(seeds if seeds is not None else list(range(len(truth)))),
    )


def output_of(logits, deltas=None):
    logits = torch.tensor(logits)
    return RpnOutput(logits=logits, deltas=torch.zeros(*logits.shape, 4) if deltas is None else torch.tensor(deltas))


def random_case(images, dtype=torch.float32):
    """Return anchors, the same truth for every image, and outputs that are equal in all images."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(60, 2, generator=generator, dtype=dtype) * 60
    anchors = torch.cat([corners, corners + 8 + torch.rand(60, 2, generator=generator, dtype=dtype) * 30], dim=1)
    truth = [(anchors[3] + 1).tolist(), (anchors[17] - 2).tolist()]
    logits = torch.randn(1, 60, generator=generator, dtype=dtype).repeat(images, 1)
    deltas = torch.randn(1, 60, 4, generator=generator, dtype=dtype).repeat(images, 1, 1)
    return anchors, truth, RpnOutput(logits=logits, deltas=deltas)


def losses_of(truth, anchors, output, *, config=ALL, **batch_changes):
    objectness, box = rpn_losses(output, torch.tensor(anchors), batch_of(truth, **batch_changes), **rpn_options(config))
    return objectness.item(), box.item()


def matches_of(anchors, truth, visible=None):
    batch = batch_of([truth])
    visible = torch.ones(1, len(anchors), dtype=torch.bool) if visible is None else torch.tensor([visible])
    return assign_anchors(torch.tensor(anchors), visible, batch.targets, positive_iou=0.7, negative_iou=0.3)


def test_objectness_is_the_mean_entropy_of_the_sampled_anchors():
    output = output_of([[0.0, 50.0, math.log(3)]])
    objectness, _ = losses_of([[TRUTH]], [HIT, HALF, FAR], output)
    assert objectness == pytest.approx((LN2 + math.log(4)) / 2)  # the ignored anchor's 50 is in no sum


def test_box_loss_is_smooth_l1_with_beta_one_ninth_over_all_sampled_anchors():
    deltas = [[[0.1, -0.5, 0.05, 0.0], [9.0] * 4, [9.0] * 4]]
    _, box = losses_of([[TRUTH]], [HIT, HALF, FAR], output_of([[0.0, 0, 0]], deltas))
    # 4.5 * 0.01 below beta, 0.5 - 1/18 above it, 4.5 * 0.0025; one positive, but two sampled anchors
    assert box == pytest.approx((0.045 + 0.5 - 1 / 18 + 0.01125) / 2)


def test_box_loss_counts_from_the_encoded_truth_with_weights_of_one():
    anchor, truth = [10.0, 20, 49, 79], [15.0, 25, 60, 90]  # IoU 0.548: positive as the best of its truth
    encoded = [0.2, 0.133333, 0.139762, 0.095310]
    deltas = [[[value + 1 / 18 + 0.5 for value in encoded]]]
    _, box = losses_of([[truth]], [anchor], output_of([[0.0]], deltas))
    assert box == pytest.approx(4 * 0.5, rel=1e-5)


def test_means_are_taken_over_the_whole_batch_and_not_image_by_image():
    truth = [[TRUTH], []]
    objectness, box = losses_of(
        truth,
        [HIT, HALF, FAR],
        output_of([[0.0, 0, math.log(3)], [0.0, math.log(3), math.log(7)]], [[[1.0, 0, 0, 0]] * 3] * 2),
    )
    # five sampled anchors: two of the first image, and all three of the image without objects as negatives
    assert objectness == pytest.approx((LN2 + 2 * LN2 + LN2 + 2 * LN2 + 3 * LN2) / 5)
    assert box == pytest.approx((1 - 1 / 18) / 5)


def test_anchors_are_matched_by_the_rules_of_the_rpn():
    anchors = [HIT, [0.0, 0, 6, 9], [0.0, 0, 2, 9], [0.0, 0, 1, 9]]  # IoU 1, exactly 0.7, exactly 0.3, 0.2
    matches = matches_of(anchors, [TRUTH])
    assert matches.positive.tolist() == [[True, True, False, False]]
    assert matches.negative.tolist() == [[False, False, False, True]]
    wide, anchor = [0.0, 0, 9, 19], [0.0, 0, 9, 11]  # 100 / 120 with TRUTH, 120 / 200 with the wide box as its best
    matches = matches_of([anchor, FAR], [wide, TRUTH])
    assert matches.positive.tolist() == [[True, False]]
    assert matches.slots[0, 0] == 1


def test_invisible_anchors_are_ignored_and_still_take_the_best_overlap():
    anchors = [HIT, [0.0, 0, 9, 4], FAR, FAR]
    matches = matches_of(anchors, [TRUTH], visible=[False, True, True, False])
    assert matches.positive.tolist() == [[False] * 4]  # the truth stays without a positive anchor
    assert matches.negative.tolist() == [[False, False, True, False]]


@pytest.mark.parametrize(("size_hw", "counts"), [((100, 100), [1, 1, 0, 0, 1]), ((50, 99), [1, 0, 0, 0, 0])])
def test_anchors_that_leave_the_unpadded_image_are_in_no_loss(size_hw, counts):
    anchors = [[0.0, 0, 9, 9], [80.0, 80, 99, 99], [80.0, 80, 100, 99], [-1.0, 0, 9, 9], [50.0, 41, 59, 50]]
    rpn = output_of([[0.0] * 5])
    rpn.logits.requires_grad_()
    rpn_losses(rpn, torch.tensor(anchors), batch_of([[TRUTH]], size_hw=size_hw), **rpn_options(ALL))[0].backward()
    assert (rpn.logits.grad != 0).int().tolist() == [counts]


@pytest.mark.parametrize(
    ("hits", "misses", "expected"),
    [(200, 300, (128, 128)), (10, 300, (10, 246)), (200, 50, (128, 50)), (0, 300, (0, 256)), (3, 4, (3, 4))],
)
def test_at_most_256_anchors_are_sampled_and_half_of_them_positive(hits, misses, expected):
    rpn = output_of([[0.0] * (hits + misses)])
    rpn.logits.requires_grad_()
    truth = [TRUTH] if hits else []
    anchors = torch.tensor([HIT] * hits + [FAR] * misses)
    rpn_losses(rpn, anchors, batch_of([truth]), **rpn_options(ModelConfig()))[0].backward()
    assert ((rpn.logits.grad < 0).sum().item(), (rpn.logits.grad > 0).sum().item()) == expected
    torch.testing.assert_close(rpn.logits.grad.abs().sum(), torch.tensor(0.5))  # 0.5 / sampled for each of them


def test_box_loss_uses_the_sampled_positives_only():
    rpn = output_of([[0.0] * 300], [[[1.0, 0, 0, 0]] * 300])
    rpn.logits.requires_grad_()
    rpn.deltas.requires_grad_()
    anchors = torch.tensor([HIT] * 200 + [FAR] * 100)
    objectness, box = rpn_losses(rpn, anchors, batch_of([[TRUTH]]), **rpn_options(ModelConfig()))
    (objectness + box).backward()
    assert torch.equal(rpn.deltas.grad[..., 0] != 0, rpn.logits.grad < 0)
    assert box.item() == pytest.approx(128 * (1 - 1 / 18) / 228)


def test_outputs_computed_at_the_sampled_anchors_replace_those_of_the_maps():
    anchors, truth, output = random_case(images=2)
    asked = []

    def outputs_at(index):
        asked.append(index)
        rows = index[..., None].expand(-1, -1, 4)
        return RpnOutput(logits=output.logits.gather(1, index), deltas=output.deltas.gather(1, rows))

    nothing = RpnOutput(logits=torch.full((2, 60), torch.nan), deltas=torch.full((2, 60, 4), torch.nan))
    config = replace(ALL, rpn_samples_per_image=6, rpn_positive_fraction=0.5)
    batch = batch_of([truth, truth[:1]])
    found = rpn_losses(nothing, anchors, batch, **rpn_options(config), outputs_at=outputs_at)
    assert torch.equal(torch.stack(found), torch.stack(rpn_losses(output, anchors, batch, **rpn_options(config))))
    assert [tuple(index.shape) for index in asked] == [(2, 6)]


def test_draws_follow_the_seed_of_the_image_and_nothing_else():
    def sampled(seeds):
        rpn = output_of([[0.0] * 500] * len(seeds))
        rpn.logits.requires_grad_()
        batch = batch_of([[TRUTH]] * len(seeds), seeds=seeds)
        rpn_losses(rpn, torch.tensor([HIT] * 200 + [FAR] * 300), batch, **rpn_options(ModelConfig()))[0].backward()
        return rpn.logits.grad != 0

    alone, among_others = sampled([7]), sampled([3, 7, 8])
    assert torch.equal(among_others[1], alone[0])
    assert not torch.equal(among_others[0], alone[0])
    assert not torch.equal(among_others[2], alone[0])


def test_more_empty_slots_change_nothing():
    anchors, truth, output = random_case(images=2)
    batches = [batch_of([truth, []], slots=slots) for slots in (2, 9)]
    few, many = (rpn_losses(output, anchors, batch, **rpn_options(ALL)) for batch in batches)
    assert torch.equal(torch.stack(few), torch.stack(many))


def test_doubled_images_leave_the_losses_as_they_are():
    anchors, truth, once = random_case(images=1, dtype=torch.float64)
    _, _, twice = random_case(images=2, dtype=torch.float64)
    single = rpn_losses(once, anchors, batch_of([truth], dtype=torch.float64), **rpn_options(ALL))
    double = rpn_losses(twice, anchors, batch_of([truth, truth], dtype=torch.float64), **rpn_options(ALL))
    torch.testing.assert_close(torch.stack(double), torch.stack(single), rtol=1e-12, atol=0)


@pytest.mark.parametrize("config", [ALL, ModelConfig()])
def test_batch_without_objects_has_finite_losses_and_zero_box_gradients(config):
    anchors, _, output = random_case(images=2)
    output.logits.requires_grad_()
    output.deltas.requires_grad_()
    objectness, box = rpn_losses(output, anchors, batch_of([[], []]), **rpn_options(config))
    (objectness + box).backward()
    assert objectness.item() > 0
    assert box.item() == 0
    assert output.logits.grad.abs().sum() > 0
    assert torch.equal(output.deltas.grad, torch.zeros_like(output.deltas))


def test_batch_without_a_single_labelled_anchor_has_zero_losses():
    rpn = output_of([[3.0]])
    rpn.logits.requires_grad_()
    rpn.deltas.requires_grad_()
    losses = rpn_losses(rpn, torch.tensor([[-5.0, 0, 4, 9]]), batch_of([[TRUTH]]), **rpn_options(ALL))
    torch.stack(losses).sum().backward()
    assert torch.stack(losses).tolist() == [0, 0]
    assert rpn.logits.grad.tolist() == [[0]]
    assert rpn.deltas.grad.tolist() == [[[0, 0, 0, 0]]]


@pytest.mark.parametrize("config", [ALL, replace(ALL, rpn_samples_per_image=6, rpn_positive_fraction=0.5)])
def test_gradients_are_the_derivatives_of_the_losses(config):
    anchors, truth, output = random_case(images=2, dtype=torch.float64)
    anchors, truth = anchors[:20], [truth[1], truth[0]]
    batch = batch_of([truth, truth[:1]], dtype=torch.float64)
    logits, deltas = output.logits[:, :20].requires_grad_(), output.deltas[:, :20].requires_grad_()

    def losses(logits, deltas):
        return rpn_losses(RpnOutput(logits=logits, deltas=deltas), anchors, batch, **rpn_options(config))

    assert torch.autograd.gradcheck(losses, (logits, deltas))
