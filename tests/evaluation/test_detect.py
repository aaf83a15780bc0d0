import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from by_hand import overlap_by_hand

from maskperf.config import ModelConfig
from maskperf.engine.build import build_model
from maskperf.evaluation.detect import detect, select_detections
from maskperf.evaluation.results import result_table
from maskperf.model.mask_rcnn import feature_anchors
from maskperf.model.proposals import select_proposals
from maskperf.recipes import demo
from maskperf.structures import EvaluationBatch, Images, Proposals
from maskperf.techniques import Techniques, using

CONFIG = ModelConfig()
SMALL = replace(demo().model, num_classes=4, batch_norm="frozen", frozen_stages=2)
SIZES_HW = torch.tensor([[60, 80], [50, 70]])


def random_case(seed, rois=40, classes=5):
    """Return class logits, offsets and proposals of two images; some slots of the second are empty."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(2, rois, 2, generator=generator) * 40
    boxes = torch.cat([corners, corners + 5 + torch.rand(2, rois, 2, generator=generator) * 30], dim=2)
    valid = torch.ones(2, rois, dtype=torch.bool)
    valid[1, rois // 2 :] = False
    proposals = Proposals(boxes=boxes * valid[..., None], scores=torch.zeros(2, rois), valid=valid)
    logits = torch.randn(2, rois, classes, generator=generator) * 2
    deltas = torch.randn(2, rois, classes, 4, generator=generator) * 2
    return logits, deltas, proposals


def decode_by_hand(deltas, roi, height, width):
    box = [0.0] * 4
    for axis, limit in ((0, width - 1), (1, height - 1)):
        side = roi[2 + axis] - roi[axis] + 1
        centre = deltas[axis] / 10 * side + roi[axis] + 0.5 * side
        side *= math.exp(min(deltas[2 + axis] / 5, math.log(1000 / 16)))
        box[axis] = min(max(centre - 0.5 * side, 0.0), limit)
        box[2 + axis] = min(max(centre + 0.5 * side - 1, 0.0), limit)
    return box


def detections_reference(logits, deltas, proposals, sizes_hw, config):
    """Return for each image a list of (score, label, box), best first: the slow, obvious form."""
    results = []
    for image, size_hw in enumerate(sizes_hw.tolist()):
        found = []
        rois = [index for index, valid in enumerate(proposals.valid[image].tolist()) if valid]
        scores = logits[image].softmax(dim=1).tolist()
        for label in range(1, logits.shape[2]):
            passing = [index for index in rois if scores[index][label] > config.score_threshold]
            kept = []
            for index in sorted(passing, key=lambda index, label=label: -scores[index][label]):
                box = decode_by_hand(
                    deltas[image, index, label].tolist(), proposals.boxes[image, index].tolist(), *size_hw
                )
                if all(overlap_by_hand(box, other) <= config.detection_nms_iou for _, _, other in kept):
                    kept.append((scores[index][label], label, box))
            found += kept
        found.sort(key=lambda entry: -entry[0])
        if len(found) > config.detections_per_image:
            last = found[config.detections_per_image - 1][0]
            found = [entry for entry in found if entry[0] >= last]
        results.append(found)
    return results


def select_by_hand(boxes, logits, sizes_hw=((100, 100),), valid=None, **changes):
    """Return detections of RoIs that move nowhere; a list of boxes and one of logits for each image."""
    boxes, logits = torch.tensor(boxes), torch.tensor(logits)
    valid = torch.ones(boxes.shape[:2], dtype=torch.bool) if valid is None else torch.tensor(valid)
    proposals = Proposals(boxes=boxes, scores=torch.zeros(boxes.shape[:2]), valid=valid)
    deltas = torch.zeros(*logits.shape, 4)
    return select_detections(logits, deltas, proposals, torch.tensor(sizes_hw), replace(CONFIG, **changes))


def assert_zero_where_empty(found):
    for column in (found.boxes, found.scores, found.labels):
        assert column[~found.valid].abs().sum() == 0


def apart(count):
    return [[12.0 * index, 0, 12.0 * index + 9, 9] for index in range(count)]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("limit", "threshold"), [(100, 0.05), (12, 0.05), (3, 0.3), (100, 0.9), (1, 0.0001)])
def test_detections_equal_the_slow_reference(seed, limit, threshold):
    case = random_case(seed)
    config = replace(CONFIG, detections_per_image=limit, score_threshold=threshold)
    expected = detections_reference(*case, SIZES_HW, config)
    found = select_detections(*case, SIZES_HW, config)
    assert found.valid.sum(dim=1).tolist() == [len(entries) for entries in expected]
    assert found.valid.shape[1] == max(len(entries) for entries in expected)
    scores, labels, boxes = zip(*(entry for of_image in expected for entry in of_image), strict=True)
    assert found.labels[found.valid].tolist() == list(labels)
    torch.testing.assert_close(found.scores[found.valid], torch.tensor(scores), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.boxes[found.valid], torch.tensor(boxes), rtol=1e-5, atol=1e-4)
    assert_zero_where_empty(found)


def tied(case):
    """Return a case in which many scores are exactly equal, of boxes that do not overlap."""
    logits, deltas, proposals = case
    boxes = torch.tensor([apart(40)] * 2) * 0.1 * proposals.valid[..., None]
    return (logits / 3).round() * 3, deltas * 0, replace(proposals, boxes=boxes)


def found_of(detections, image):
    """Return what was found in an image as a sorted list of rows, those of equal scores in any order."""
    valid = detections.valid[image]
    columns = (detections.scores, detections.labels, detections.boxes)
    return sorted(zip(*(column[image][valid].tolist() for column in columns), strict=True))


@pytest.mark.parametrize("change", [lambda case: case, tied])
@pytest.mark.parametrize(("limit", "threshold"), [(100, 0.05), (12, 0.05), (3, 0.3), (7, 0.0001), (100, 0.9), (1, 0.2)])
def test_fixed_sizes_find_the_same(change, limit, threshold):
    config = replace(CONFIG, detections_per_image=limit, score_threshold=threshold)
    grown = 0
    for seed in range(6):
        case = change(random_case(seed))
        exact, fixed = (
            select_detections(*case, SIZES_HW, config, exact_sizes=exact_sizes) for exact_sizes in (True, False)
        )
        assert [found_of(fixed, image) for image in range(2)] == [found_of(exact, image) for image in range(2)]
        most = int(exact.valid.sum(dim=1).max())
        assert fixed.valid.shape[1] == max(limit, most)
        grown += most > limit
        assert_zero_where_empty(fixed)
    if change is tied and limit < 12:
        assert grown  # ties went beyond the limit


def test_fixed_sizes_read_once_from_the_device_and_exact_ones_twice(monkeypatch):
    reads, honest = [], torch.Tensor.__int__
    monkeypatch.setattr(torch.Tensor, "__int__", lambda tensor: (reads.append(tensor.shape), honest(tensor))[1])
    for exact_sizes, expected in ((False, 1), (True, 2)):
        reads.clear()
        select_detections(*random_case(0), SIZES_HW, CONFIG, exact_sizes=exact_sizes)
        assert len(reads) == expected


def test_score_exactly_at_the_threshold_is_excluded():
    quarters = [[[0.0, 0, 0, 0]]]  # four classes, each exactly 0.25
    assert select_by_hand([apart(1)], quarters, score_threshold=0.25).valid.sum() == 0
    below = select_by_hand([apart(1)], quarters, score_threshold=0.2499)
    assert below.labels.tolist() == [[1, 2, 3]]
    assert below.scores.tolist() == [[0.25] * 3]


def test_all_that_tie_with_the_last_slot_stay():
    logits = [[[0.0, 3.0]] + [[0.0, 1.0]] * 4 + [[0.0, 0.5]]]
    found = select_by_hand([apart(6)], logits, detections_per_image=3)
    assert found.valid.sum() == 5
    assert found.boxes[0, 0].tolist() == apart(1)[0]
    assert sorted(found.boxes[0].tolist()) == apart(5)
    for limit in (1, 5, 6):
        assert select_by_hand([apart(6)], logits, detections_per_image=limit).valid.sum() == limit


def test_suppression_is_within_a_class_and_only_above_the_threshold():
    whole, half, more = [0.0, 0, 9, 9], [0.0, 0, 9, 4], [0.0, 0, 9, 5]  # IoU with the first: 0.5, 0.6
    first, second, third = [0.0, 3, 0], [0.0, 2, 0], [0.0, 1, 0]  # class 1
    one_class = select_by_hand([[whole, more, half]], [[first, second, third]], score_threshold=0.3)
    assert one_class.boxes[0].tolist() == [whole, half]
    other = [0.0, 0, 2.5]  # class 2
    two_classes = select_by_hand([[whole, more, half]], [[first, other, third]], score_threshold=0.3)
    assert two_classes.boxes[0].tolist() == [whole, more, half]
    assert two_classes.labels.tolist() == [[1, 2, 1]]


def small_scene(**changes):
    model = build_model(replace(SMALL, **changes), seed=0)[0].eval()
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 50
    return model, Images(pixels=pixels, sizes_hw=torch.tensor([[60, 96], [64, 80]]))


def test_masks_are_the_probabilities_of_the_found_class_on_the_final_boxes():
    model, images = small_scene(detections_per_image=9)
    found = detect(model, images)
    with torch.no_grad():
        features = model.features(images.pixels)
        anchors, counts = feature_anchors(model, features)
        rpn = model.rpn_output(features)
        proposals = select_proposals(rpn, anchors, counts, images.sizes_hw, config=model.config, training=False)
        chosen = select_detections(
            *model.box_outputs(features, proposals.boxes), proposals, images.sizes_hw, model.config
        )
        logits = model.mask_logits(features, chosen.boxes)
    assert found.valid.sum() >= 18
    assert torch.equal(found.boxes, chosen.boxes) and torch.equal(found.labels, chosen.labels)
    own = logits.gather(2, found.labels[..., None, None, None].expand(-1, -1, 1, *logits.shape[3:]))[:, :, 0]
    torch.testing.assert_close(found.mask_probs, own.sigmoid())


@pytest.mark.parametrize("switches", [("class_selected_outputs",), ("packed_positives",), ()])
def test_less_work_gives_the_same_masks_in_every_valid_slot(switches):
    model, images = small_scene(score_threshold=0.29, detections_per_image=1000)
    with using(Techniques().without("class_selected_outputs", "packed_positives")):
        wanted = detect(model, images)
    with using(Techniques().without(*switches)):
        found = detect(model, images)
    assert torch.equal(found.boxes, wanted.boxes) and torch.equal(found.valid, wanted.valid)
    assert wanted.valid.any(dim=1).all() and not wanted.valid.all()  # so one image has empty slots
    # The logits of this noise are so large that some probabilities round to 1: float32 sums of them in another order
    # differ by several 1e-6.
    torch.testing.assert_close(found.mask_probs[found.valid], wanted.mask_probs[wanted.valid], rtol=0, atol=1e-5)


def test_detections_are_sorted_inside_their_image_and_carry_no_gradient():
    model, images = small_scene()
    found = detect(model, images)
    assert (found.scores.diff(dim=1) <= 0).all()
    limits = images.sizes_hw[:, [1, 0, 1, 0]][:, None] - 1
    assert (found.boxes >= 0).all() and (found.boxes <= limits).all()
    assert set(found.labels[found.valid].tolist()) <= {1, 2, 3}
    assert not any(tensor.requires_grad for tensor in (found.boxes, found.scores, found.mask_probs))


def test_images_without_any_detection_give_no_slots_and_no_results():
    model, images = small_scene(score_threshold=1.0)
    found = detect(model, images)
    assert found.boxes.shape == (2, 0, 4)
    assert found.mask_probs.shape == (2, 0, 28, 28)
    batch = EvaluationBatch(
        images=images, image_ids=torch.tensor([4, 9]), original_sizes_hw=torch.tensor([[30, 48], [128, 160]])
    )
    assert len(result_table(found, batch, np.array([1, 7, 90]))) == 0
