import math
from dataclasses import replace

import pytest
import torch
from golden_reference import flat_polygons
from loss_options import roi_options

from maskperf.config import ModelConfig
from maskperf.losses.box import box_losses, first_rois, positive_rois, sample_rois
from maskperf.ops.sampling import random_keys
from maskperf.structures import Proposals, SampledRois, Targets

CONFIG = ModelConfig()
TRUTH = [0.0, 0, 9, 9]
HIT, FAR = [0.0, 0, 9, 9], [20.0, 20, 29, 29]


def targets_of(boxes, labels, slots=None, dtype=torch.float32):
    """Return targets from a list of boxes and one of labels for each image, in `slots` places."""
    slots = slots or max(1, *(len(rows) for rows in boxes))
    return Targets(
        boxes=torch.tensor([rows + [[0.0] * 4] * (slots - len(rows)) for rows in boxes], dtype=dtype),
        labels=torch.tensor([row + [0] * (slots - len(row)) for row in labels]),
        valid=torch.tensor([[slot < len(row) for slot in range(slots)] for row in labels]),
        polygons=flat_polygons([], [0] * (len(boxes) * slots + 1)),
    )


def candidates_of(boxes, valid=None):
    boxes = torch.tensor(boxes)
    valid = torch.ones(boxes.shape[:2], dtype=torch.bool) if valid is None else torch.tensor(valid)
    return Proposals(boxes=boxes, scores=torch.zeros(boxes.shape[:2]), valid=valid)


def rois_of(boxes, labels, slots=None, valid=None, dtype=torch.float32):
    labels = torch.tensor(labels)
    return SampledRois(
        boxes=torch.tensor(boxes, dtype=dtype),
        labels=labels,
        matched_slots=torch.zeros_like(labels) if slots is None else torch.tensor(slots),
        valid=torch.ones_like(labels, dtype=torch.bool) if valid is None else torch.tensor(valid),
    )


def sample(candidates, targets, seeds=(5,), config=CONFIG):
    return sample_rois(candidates, targets, torch.tensor(seeds), **roi_options(config))


def mixed_case(images, dtype=torch.float32):
    """Return outputs, RoIs (2 positive, 1 background, 1 empty place) and targets, equal in all images."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 4, 3, generator=generator, dtype=dtype).repeat(images, 1, 1)
    deltas = torch.randn(1, 4, 3, 4, generator=generator, dtype=dtype).repeat(images, 1, 1, 1)
    boxes = [[1.0, 2, 11, 12], [30, 30, 60, 44], [5, 5, 20, 20], [0, 0, 0, 0]]
    valid = [True, True, True, False]
    rois = rois_of([boxes] * images, [[2, 1, 0, 0]] * images, [[0, 1, 1, 0]] * images, [valid] * images, dtype)
    targets = targets_of([[[0.0, 0, 9, 9], [31, 29, 62, 45]]] * images, [[2, 1]] * images, dtype=dtype)
    return logits, deltas, rois, targets


def test_classification_is_the_mean_entropy_of_the_real_rois():
    logits = torch.tensor([[[0.0, math.log(2), 0], [0, 0, 0], [90, -90, 0]]])
    rois = rois_of([[HIT, FAR, [0.0] * 4]], [[1, 0, 0]], valid=[[True, True, False]])
    loss, _ = box_losses(logits, torch.zeros(1, 3, 3, 4), rois, targets_of([[TRUTH]], [[1]]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(3)) / 2)


def test_box_loss_is_smooth_l1_with_beta_one_over_all_rois():
    roi, truth = [10.0, 20, 49, 79], [15.0, 25, 60, 90]
    encoded = [2.0, 1.333333, 0.698810, 0.476551]  # weights 10, 10, 5, 5
    offsets = [0.5, -2.0, 0.0, 1.0]  # 0.125 + 1.5 + 0 + 0.5 = 2.125
    deltas = torch.full((1, 2, 3, 4), 77.0)  # other classes and the background RoI must not count
    deltas[0, 0, 1] = torch.tensor([a + b for a, b in zip(encoded, offsets, strict=True)])
    _, loss = box_losses(torch.zeros(1, 2, 3), deltas, rois_of([[roi, FAR]], [[1, 0]]), targets_of([[truth]], [[1]]))
    assert loss.item() == pytest.approx(2.125 / 2, rel=1e-5)


def test_means_are_taken_over_the_whole_batch_and_not_image_by_image():
    logits = torch.zeros(2, 3, 2)
    logits[0, 0, 1] = math.log(3)  # p = 3 / 4 for the true class
    rois = rois_of([[HIT, FAR, FAR]] * 2, [[1, 0, 0], [1, 0, 0]], valid=[[True, False, False], [True] * 3])
    deltas = torch.zeros(2, 3, 2, 4)
    deltas[..., 0] = 2.0  # 1.5 for each positive
    classification, box = box_losses(logits, deltas, rois, targets_of([[TRUTH]] * 2, [[1]] * 2))
    assert classification.item() == pytest.approx((math.log(4 / 3) + 3 * math.log(2)) / 4)
    assert box.item() == pytest.approx(2 * 1.5 / 4)


def test_gradients_reach_the_true_class_of_positives_and_no_empty_slot():
    logits, deltas, rois, targets = mixed_case(images=2)
    sum(box_losses(logits.requires_grad_(), deltas.requires_grad_(), rois, targets)).backward()
    touched = (deltas.grad != 0).any(dim=-1)[0]
    assert touched.tolist() == [[False, False, True], [False, True, False], [False] * 3, [False] * 3]
    assert (logits.grad != 0).all(dim=-1).tolist() == [[True, True, True, False]] * 2
    assert not logits.grad[:, 3].any() and not deltas.grad[:, :, 0].any()  # background's offsets are never trained


def test_more_empty_slots_change_nothing():
    logits, deltas, rois, targets = mixed_case(images=2)
    few = box_losses(logits, deltas, rois, targets)
    junk = torch.randn(2, 5, 3), torch.randn(2, 5, 3, 4)
    padded = SampledRois(
        boxes=torch.cat([rois.boxes, torch.rand(2, 5, 4)], dim=1),
        labels=torch.cat([rois.labels, torch.zeros(2, 5, dtype=torch.int64)], dim=1),
        matched_slots=torch.cat([rois.matched_slots, torch.zeros(2, 5, dtype=torch.int64)], dim=1),
        valid=torch.cat([rois.valid, torch.zeros(2, 5, dtype=torch.bool)], dim=1),
    )
    wider = targets_of([[row.tolist() for row in boxes] for boxes in targets.boxes], targets.labels.tolist(), slots=7)
    many = box_losses(torch.cat([logits, junk[0]], dim=1), torch.cat([deltas, junk[1]], dim=1), padded, wider)
    torch.testing.assert_close(torch.stack(many), torch.stack(few), rtol=1e-6, atol=0)


def test_doubled_images_leave_the_losses_as_they_are():
    single = torch.stack(box_losses(*mixed_case(images=1, dtype=torch.float64)))
    double = torch.stack(box_losses(*mixed_case(images=2, dtype=torch.float64)))
    torch.testing.assert_close(double, single, rtol=1e-12, atol=0)


@pytest.mark.parametrize("valid", [True, False])
def test_rois_without_a_positive_give_a_zero_box_loss_with_a_gradient(valid):
    logits, deltas = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4, 4, requires_grad=True)
    rois = rois_of([[FAR] * 3] * 2, [[0] * 3] * 2, valid=[[valid] * 3] * 2)
    classification, box = box_losses(logits, deltas, rois, targets_of([[], []], [[], []]))
    (classification + box).backward()
    assert box.item() == 0
    assert (classification.item() > 0) is valid
    assert torch.equal(deltas.grad, torch.zeros_like(deltas))
    assert bool(logits.grad.isfinite().all()) and (logits.grad.abs().sum().item() > 0) is valid


def test_gradients_are_the_derivatives_of_the_losses():
    logits, deltas, rois, targets = mixed_case(images=2, dtype=torch.float64)
    inputs = (logits.requires_grad_(), deltas.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: box_losses(a, b, rois, targets), inputs)


def test_overlap_of_exactly_one_half_is_foreground():
    candidates = candidates_of([[[0.0, 0, 9, 4], [0.0, 0, 9, 3], FAR, HIT]])  # 0.5, 0.4, 0, 1
    rois = sample(candidates, targets_of([[TRUTH]], [[3]]), config=replace(CONFIG, roi_positive_fraction=1.0))
    assert rois.labels.tolist() == [[3, 3, 0, 0]]  # positives first, each group in the order of candidates
    assert rois.boxes[0].tolist() == [[0, 0, 9, 4], HIT, [0, 0, 9, 3], FAR]
    assert rois.valid.all()


def test_candidate_takes_label_and_slot_of_its_best_truth():
    truth = [[0.0, 0, 9, 9], [0.0, 0, 9, 11], [50.0, 50, 59, 59]]
    candidates = candidates_of([[[0.0, 0, 9, 10], [50.0, 50, 59, 58], FAR]])  # 110/120 with the second, 100/110 first
    rois = sample(candidates, targets_of([truth], [[4, 5, 6]]), config=replace(CONFIG, roi_positive_fraction=1.0))
    assert rois.labels.tolist() == [[5, 6, 0]]
    assert rois.matched_slots[0, :2].tolist() == [1, 2]


def test_empty_slots_and_invalid_candidates_take_no_part():
    origin = [0.0, 0, 0, 0]  # where the empty slots are
    candidates = candidates_of([[origin, HIT, HIT, FAR]], valid=[[True, True, False, False]])
    rois = sample(candidates, targets_of([[TRUTH]], [[2]], slots=4))
    assert rois.valid.tolist() == [[True, True, False, False]]
    assert rois.labels.tolist() == [[2, 0, 0, 0]]
    assert rois.boxes[0, :2].tolist() == [HIT, origin]


@pytest.mark.parametrize(
    ("hits", "misses", "expected"),
    [(200, 600, (128, 384)), (10, 600, (10, 502)), (200, 100, (128, 100)), (0, 600, (0, 512)), (4, 3, (4, 3))],
)
def test_at_most_512_rois_are_sampled_and_a_quarter_of_them_positive(hits, misses, expected):
    candidates = candidates_of([[HIT] * hits + [FAR] * misses])
    rois = sample(candidates, targets_of([[TRUTH]], [[1]]))
    assert ((rois.labels > 0).sum().item(), (rois.valid & (rois.labels == 0)).sum().item()) == expected
    assert rois.valid.shape[1] == min(512, hits + misses)


def test_draws_follow_the_seed_of_the_image_and_nothing_else():
    generator = torch.Generator().manual_seed(1)
    boxes = torch.rand(1, 900, 2, generator=generator) * 20
    boxes = torch.cat([boxes, boxes + 9], dim=2).repeat(3, 1, 1).tolist()
    alone = sample(candidates_of(boxes[:1]), targets_of([[TRUTH]], [[1]]), seeds=(7,))
    others = sample(candidates_of(boxes), targets_of([[TRUTH]] * 3, [[1]] * 3, slots=4), seeds=(3, 7, 8))
    assert torch.equal(others.boxes[1], alone.boxes[0])
    assert not torch.equal(others.boxes[0], alone.boxes[0])
    assert not torch.equal(others.boxes[2], alone.boxes[0])


def test_rois_and_anchors_of_an_image_draw_different_numbers():
    candidates = candidates_of([[FAR] * 900])
    config = replace(CONFIG, roi_samples_per_image=1)
    differ = 0
    for seed in range(20):
        rois = [[float(place), 0, 9, 9] for place in range(900)]
        drawn = sample(replace(candidates, boxes=torch.tensor([rois])), targets_of([[]], [[]]), (seed,), config)
        differ += drawn.boxes[0, 0, 0].item() != random_keys(torch.tensor([seed]), 900).argmax().item()
    assert differ >= 19  # anchors take the largest of these keys


def test_positive_rois_come_in_their_places_and_the_rest_is_counted():
    rois = rois_of([[HIT, FAR, FAR]] * 2, [[1, 2, 0], [3, 0, 0]], [[0, 1, 0], [1, 0, 0]])
    chosen, dropped = positive_rois(rois, 2)
    assert chosen.labels.tolist() == [[1, 2], [3, 0]]
    assert chosen.valid.tolist() == [[True, True], [True, False]]
    assert chosen.matched_slots[0].tolist() == [0, 1]
    assert dropped.item() == 0
    chosen, dropped = positive_rois(rois, 1)
    assert (chosen.labels.tolist(), dropped.item()) == ([[1], [3]], 1)
    first = first_rois(rois, 2)
    assert first.boxes.tolist() == [[HIT, FAR]] * 2
    assert (first.labels.tolist(), first.matched_slots.tolist()) == ([[1, 2], [3, 0]], [[0, 1], [1, 0]])
    assert first.valid.all()
