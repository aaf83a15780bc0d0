"""Matching of boxes with ground truth as Triton kernels: no matrix of overlaps, two launches for any number of objects.

References: ops/matching.py, bit for bit.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float32
from torch import Tensor

from maskperf.ops.kernels.values import corners, jit, ordered, overlap, value_of
from maskperf.ops.matching import Matches

BOXES_AT_A_TIME = 512
BLOCK = tl.constexpr(BOXES_AT_A_TIME)
LEAST = tl.constexpr(-(1 << 31))


def match_boxes(
    boxes: Float32[Tensor, "#images boxes 4"],
    truth: Float32[Tensor, "images slots 4"],
    valid: Bool[Tensor, "images slots"],
    *,
    positive_iou: float,
    negative_iou: float,
    keep_best_of_truth: bool,
) -> Matches:
    """Return the matches of each image's own boxes, or of boxes that all images share.

    With `keep_best_of_truth` a first kernel finds the best overlap of every ground truth; a maximum is the same in
    any order, so every run gives the same bits.
    """
    (images, num_slots), num_boxes = valid.shape, boxes.shape[1]
    slots = torch.empty((images, num_boxes), dtype=torch.int64, device=truth.device)
    matches = Matches(slots, *(torch.empty_like(slots, dtype=torch.bool) for _ in range(2)))
    if slots.numel() > 0:
        best = torch.full((images, num_slots), LEAST.value, dtype=torch.int32, device=truth.device)
        inputs = (boxes.contiguous(), truth.contiguous(), valid.contiguous())
        sizes = (num_boxes, num_slots, num_boxes if boxes.shape[0] == images else 0)
        grid = (triton.cdiv(num_boxes, BOXES_AT_A_TIME), images)
        if keep_best_of_truth:
            _find_best[grid](best, inputs, *sizes, enable_fp_fusion=False)
        outputs, thresholds = tuple(vars(matches).values()), (positive_iou, negative_iou)
        _match[grid](outputs, best, inputs, *sizes, thresholds, keep_best_of_truth, enable_fp_fusion=False)
    return matches


@jit
def _boxes_of(inputs, num_boxes, num_slots, boxes_of_image):
    """Return a program's boxes: their indices, corners and areas; then where its image's ground truth begins."""
    image = tl.program_id(1).to(tl.int64)
    box = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    own = corners(inputs[0] + (image * boxes_of_image + box) * 4, box < num_boxes)
    return box, own, inputs[1] + image * num_slots * 4, inputs[2] + image * num_slots


@jit(do_not_specialize=["num_boxes", "num_slots", "boxes_of_image"])
def _find_best(best, inputs, num_boxes, num_slots, boxes_of_image):
    """One program: raises the best overlap of every ground truth of an image to that of 512 boxes."""
    box, own, truth, valid = _boxes_of(inputs, num_boxes, num_slots, boxes_of_image)
    best += tl.program_id(1).to(tl.int64) * num_slots
    for slot in range(num_slots):
        if tl.load(valid + slot) != 0:
            iou = overlap(own, corners(truth + slot * 4, slot < num_slots))
            found = tl.max(tl.where(box < num_boxes, ordered(iou), LEAST), axis=0)
            tl.atomic_max(best + slot, found, sem="relaxed")


@jit(do_not_specialize=["num_boxes", "num_slots", "boxes_of_image"])
def _match(outputs, best, inputs, num_boxes, num_slots, boxes_of_image, thresholds, KEEP_BEST_OF_TRUTH: tl.constexpr):
    """One program: 512 boxes against all ground truth of an image."""
    box, own, truth, valid = _boxes_of(inputs, num_boxes, num_slots, boxes_of_image)
    image = tl.program_id(1).to(tl.int64)
    best += image * num_slots
    best_iou = tl.full([BLOCK], -1.0, tl.float32)
    best_slot = tl.zeros([BLOCK], tl.int64)
    is_best = tl.zeros([BLOCK], tl.int1)
    for slot in range(num_slots):
        if tl.load(valid + slot) != 0:
            iou = overlap(own, corners(truth + slot * 4, slot < num_slots))
            best_slot = tl.where(iou > best_iou, slot, best_slot)  # of equal overlaps the first slot stays
            best_iou = tl.where((iou > best_iou) | (iou != iou), iou, best_iou)
            if KEEP_BEST_OF_TRUTH:
                is_best = is_best | (iou == value_of(tl.load(best + slot)))
    to, is_real = image * num_boxes + box, box < num_boxes
    tl.store(outputs[0] + to, best_slot, mask=is_real)
    tl.store(outputs[1] + to, (best_iou >= thresholds[0]) | is_best, mask=is_real)
    tl.store(outputs[2] + to, (best_iou < thresholds[1]) & ~is_best, mask=is_real)
