import math

import pytest
import torch
from golden_reference import flat_polygons

from maskperf.losses.mask import mask_loss, mask_targets
from maskperf.structures import SampledRois, Targets

LN2 = math.log(2)


def rois_of(labels, *, boxes=None, slots=None, valid=None):
    labels = torch.tensor(labels)
    return SampledRois(
        boxes=torch.zeros(*labels.shape, 4) if boxes is None else torch.tensor(boxes),
        labels=labels,
        matched_slots=torch.zeros_like(labels) if slots is None else torch.tensor(slots),
        valid=labels > 0 if valid is None else torch.tensor(valid),
    )


def random_case(images, dtype=torch.float32):
    """Return logits, RoIs (two positive, one empty place) and wanted masks, equal in all images."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 4, 3, 3, generator=generator, dtype=dtype).repeat(images, 1, 1, 1, 1)
    wanted = (torch.rand(1, 3, 3, 3, generator=generator) > 0.5).repeat(images, 1, 1, 1)
    return logits, rois_of([[3, 1, 0]] * images), wanted


def rectangle(x1, y1, x2, y2):
    return torch.tensor([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], dtype=torch.float32).numpy()


def targets_of(polygons, polygon_offsets, images, slots):
    return Targets(
        boxes=torch.zeros(images, slots, 4),
        labels=torch.ones(images, slots, dtype=torch.int64),
        valid=torch.ones(images, slots, dtype=torch.bool),
        polygons=flat_polygons(polygons, polygon_offsets),
    )


def test_loss_is_the_mean_entropy_over_the_pixels_of_positive_rois():
    logits = torch.full((1, 2, 3, 2, 2), 40.0)  # other classes and the empty place must not count
    logits[0, 0, 2] = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    wanted = torch.tensor([[[[True, False], [False, True]], [[False, False], [False, False]]]])
    loss = mask_loss(logits, rois_of([[2, 0]]), wanted)
    assert loss.item() == pytest.approx((LN2 + 2 * LN2 + LN2 + LN2) / 4)


def test_mean_is_taken_over_the_whole_batch_and_not_image_by_image():
    logits = torch.zeros(2, 3, 2, 1, 1)
    logits[0, 0, 1] = math.log(3)
    wanted = torch.ones(2, 3, 1, 1, dtype=torch.bool)
    loss = mask_loss(logits, rois_of([[1, 0, 0], [1, 1, 1]]), wanted)
    assert loss.item() == pytest.approx((math.log(4 / 3) + 3 * LN2) / 4)


def test_gradient_reaches_the_map_of_the_true_class_only():
    logits, rois, wanted = random_case(images=2)
    logits.requires_grad_()
    mask_loss(logits, rois, wanted).backward()
    touched = (logits.grad != 0).flatten(3)
    assert torch.equal(touched.any(dim=3), touched.all(dim=3))
    assert touched.all(dim=3)[0].tolist() == [[False, False, False, True], [False, True, False, False], [False] * 4]
    assert torch.equal(touched[0], touched[1])


def test_maps_of_the_true_class_alone_give_the_same_loss():
    logits, rois, wanted = random_case(images=2)
    own = torch.stack([torch.stack([logits[i, r, rois.labels[i, r]] for r in range(3)]) for i in range(2)])
    assert torch.equal(mask_loss(own, rois, wanted), mask_loss(logits, rois, wanted))


def test_batch_without_positives_has_loss_zero_and_a_gradient_of_zeros():
    logits, _, wanted = random_case(images=2)
    logits.requires_grad_()
    loss = mask_loss(logits, rois_of([[0, 0, 0]] * 2), wanted)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_more_empty_slots_change_nothing():
    logits, rois, wanted = random_case(images=2)
    few = mask_loss(logits, rois, wanted)
    more = torch.randn(2, 6, 4, 3, 3, generator=torch.Generator().manual_seed(1)) * 10
    padded = torch.cat([logits, more], dim=1)
    many = mask_loss(padded, rois_of([[3, 1, 0] + [0] * 6] * 2), torch.cat([wanted, more[:, :, 0] > 0], dim=1))
    torch.testing.assert_close(many, few, rtol=1e-6, atol=0)


def test_doubled_images_leave_the_loss_as_it_is():
    single = mask_loss(*random_case(images=1, dtype=torch.float64))
    double = mask_loss(*random_case(images=2, dtype=torch.float64))
    torch.testing.assert_close(double, single, rtol=1e-12, atol=0)


def test_gradient_is_the_derivative_of_the_loss():
    logits, rois, wanted = random_case(images=2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: mask_loss(x, rois, wanted), (logits.requires_grad_(),))


def test_each_roi_gets_the_polygons_of_its_own_image_and_slot():
    # image 0: left half, nothing; image 1: upper half, everything
    polygons = [rectangle(0, 0, 14, 28), rectangle(0, 0, 28, 14), rectangle(0, 0, 28, 28)]
    targets = targets_of(polygons, [0, 1, 1, 2, 3], images=2, slots=2)
    whole = [[[0.0, 0, 28, 28]] * 3] * 2
    masks = mask_targets(rois_of([[1] * 3] * 2, boxes=whole, slots=[[0, 1, 0], [1, 0, 1]]), targets, 28)
    left, upper = torch.zeros(28, 28, dtype=torch.bool), torch.zeros(28, 28, dtype=torch.bool)
    left[:, :14] = True
    upper[:14] = True
    everything = torch.ones_like(left)
    expected = [[left, ~everything, left], [everything, upper, everything]]
    assert torch.equal(masks, torch.stack([torch.stack(row) for row in expected]))


def test_more_empty_slots_change_no_target():
    polygons = [rectangle(0, 0, 14, 28), rectangle(3, 5, 20, 19)]
    boxes = [[[0.0, 0, 28, 28]], [[2.0, 2, 22, 24]]]
    rois = rois_of([[1], [1]], boxes=boxes)
    few = mask_targets(rois, targets_of(polygons, [0, 1, 2], images=2, slots=1), 28)
    many = mask_targets(rois, targets_of(polygons, [0, 1, 1, 1, 2, 2, 2], images=2, slots=3), 28)
    assert torch.equal(few, many)
    assert few.any()


def test_batch_without_polygons_has_empty_targets():
    targets = targets_of([], [0, 0, 0], images=2, slots=1)
    assert not mask_targets(rois_of([[0] * 3] * 2), targets, 28).any()
