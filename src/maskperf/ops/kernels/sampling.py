"""Balanced random samples and lists of kept boxes as Triton kernels; a fixed number of launches, nothing sorted.

Twins: ops/sampling.py.
"""

import functools
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Int64
from torch import Tensor

from maskperf.ops.sampling import GOLDEN_GAMMA, MIX_1, MIX_2, Sample

BOXES_AT_A_TIME = 4096
BLOCK = tl.constexpr(BOXES_AT_A_TIME)
NUM_CLASSES = 32
CLASSES = tl.constexpr(NUM_CLASSES)
BLOCKS_AT_A_TIME = tl.constexpr(64)
CANDIDATES_AT_A_TIME = tl.constexpr(1024)
KEY_BITS = tl.constexpr(62)
LARGEST_KEY, HIGHEST_BIT = tl.constexpr((1 << 62) - 1), tl.constexpr(1 << 61)
UNSIGNED_GAMMA, UNSIGNED_MIX_1, UNSIGNED_MIX_2 = (
    tl.constexpr(number & ((1 << 64) - 1)) for number in (GOLDEN_GAMMA, MIX_1, MIX_2)
)


def draw_balanced(
    positive: Bool[Tensor, "images boxes"],
    negative: Bool[Tensor, "images boxes"],
    seeds: Int64[Tensor, " images"],
    *,
    num_samples: int,
    max_positive: int,
) -> Sample:
    """Return at most `max_positive` positives of largest keys, then negatives until there are `num_samples`.

    Keys fall into classes: half of all keys are in the first, a quarter in the second and so on. From the sizes of
    the classes follows which of them hold the boxes to be drawn, some hundred candidates; among these the least key
    to be drawn is looked for bit by bit. Should two keys be equal, just there, the first box is drawn.
    """
    images, count = positive.shape
    empty = functools.partial(torch.empty, device=seeds.device, dtype=torch.int32)
    index = torch.empty((images, min(num_samples, count)), device=seeds.device, dtype=torch.int64)
    is_positive, valid = (torch.empty_like(index, dtype=torch.bool) for _ in range(2))
    if index.numel() > 0:
        masks, seeds = (positive.contiguous(), negative.contiguous()), seeds.contiguous()
        blocks = triton.cdiv(count, BOXES_AT_A_TIME)
        sizes = empty((images, 2, blocks, NUM_CLASSES))
        candidates, num_candidates = empty((images, 2, count)), empty((images, 2))
        limits = (max_positive, num_samples)
        _count_classes[(blocks, images)](sizes, masks, seeds, count, num_warps=8)
        found = (candidates, num_candidates)
        _collect[(blocks, images)](found, sizes, masks, seeds, count, *limits, num_warps=8)
        places = index.shape[1]
        _pick[(images,)]((index, is_positive, valid), found, seeds, count, *limits, places)
    return Sample(index=index, positive=is_positive, valid=valid)


def compact(keep: Bool[Tensor, "images boxes"], slots: int) -> Int64[Tensor, "images slots"]:
    """Return the indices of the kept boxes in their order, then those of others, cut to `slots` per image."""
    images, count = keep.shape
    index = torch.empty((images, min(slots, count)), device=keep.device, dtype=torch.int64)
    if index.numel() > 0:
        _compact[(images,)](index, keep.contiguous(), count, index.shape[1], num_warps=8)
    return index


@triton.jit(do_not_specialize=["count", "slots"])
@no_type_check
def _compact(index, keep, count, slots):
    """One program: all boxes of one image."""
    image = tl.program_id(0).to(tl.int64)
    index, keep = index + image * slots, keep + image * count
    num_kept = 0
    for start in range(0, count, BLOCK):
        box = start + tl.arange(0, BLOCK)
        num_kept += tl.sum((tl.load(keep + box, mask=box < count, other=0) != 0).to(tl.int32), axis=0)
    before = 0
    for start in range(0, count, BLOCK):
        box = start + tl.arange(0, BLOCK)
        is_kept = tl.load(keep + box, mask=box < count, other=0) != 0
        number = before + tl.cumsum(is_kept.to(tl.int32), axis=0)  # of kept boxes, up to and with this one
        place = tl.where(is_kept, number - 1, num_kept + box - number)
        tl.store(index + place, box.to(tl.int64), mask=(box < count) & (place < slots))
        before += tl.sum(is_kept.to(tl.int32), axis=0)


@triton.jit
@no_type_check
def _keys(seed, box):
    """Return what `random_keys` returns for these boxes."""
    x = seed.to(tl.uint64, bitcast=True) + (box + 1).to(tl.uint64) * UNSIGNED_GAMMA
    x = (x ^ (x >> 30)) * UNSIGNED_MIX_1
    x = (x ^ (x >> 27)) * UNSIGNED_MIX_2
    return ((x ^ (x >> 31)) >> 2).to(tl.int64)


@triton.jit
@no_type_check
def _class_of(keys):
    """Return how many leading ones a key has, about: what is rounded up to a power of two is in the class before."""
    to_the_top = (keys ^ LARGEST_KEY).to(tl.float32)
    exponent = (to_the_top.to(tl.int32, bitcast=True) >> 23) - 127
    return tl.minimum(tl.maximum(-exponent + (KEY_BITS - 1), 0), CLASSES - 1)


@triton.jit(do_not_specialize=["count"])
@no_type_check
def _count_classes(sizes, masks, seeds, count):
    """One program: how many of 4096 boxes of an image are in each class, for either kind."""
    block, image = tl.program_id(0), tl.program_id(1)
    box = block * BLOCK + tl.arange(0, BLOCK)
    of_class = _class_of(_keys(tl.load(seeds + image), box))
    for kind in tl.static_range(2):
        is_eligible = tl.load(masks[kind] + image.to(tl.int64) * count + box, mask=box < count, other=0) != 0
        size = tl.histogram(of_class, CLASSES, mask=is_eligible)
        row = (image * 2 + kind) * tl.num_programs(0) + block
        tl.store(sizes + row * CLASSES + tl.arange(0, CLASSES), size)


@triton.jit(do_not_specialize=["count", "max_positive", "num_samples"])
@no_type_check
def _collect(found, sizes, masks, seeds, count, max_positive, num_samples):
    """One program: lists the candidates among 4096 boxes of an image behind those of the programs before."""
    block, image = tl.program_id(0), tl.program_id(1)
    box = block * BLOCK + tl.arange(0, BLOCK)
    of_class = _class_of(_keys(tl.load(seeds + image), box))
    number = tl.arange(0, CLASSES)
    for kind in tl.static_range(2):
        limit = num_samples if kind == 1 else max_positive
        group = image * 2 + kind
        in_class, before = tl.zeros([CLASSES], tl.int32), tl.zeros([CLASSES], tl.int32)
        for start in range(0, tl.num_programs(0), BLOCKS_AT_A_TIME):
            other = (start + tl.arange(0, BLOCKS_AT_A_TIME))[:, None]
            row = (group * tl.num_programs(0) + other) * CLASSES
            size = tl.load(sizes + row + number[None, :], mask=other < tl.num_programs(0), other=0)
            in_class += tl.sum(size, axis=0)
            before += tl.sum(tl.where(other < block, size, 0), axis=0)
        reached = tl.cumsum(in_class, axis=0, reverse=True) >= limit
        first_class = tl.maximum(tl.sum(reached.to(tl.int32), axis=0) - 1, 0)
        is_eligible = tl.load(masks[kind] + image.to(tl.int64) * count + box, mask=box < count, other=0) != 0
        is_candidate = is_eligible & (of_class >= first_class)
        place = tl.sum(tl.where(number >= first_class, before, 0), axis=0)
        place += tl.cumsum(is_candidate.to(tl.int32), axis=0) - 1
        tl.store(found[0] + group.to(tl.int64) * count + place, box, mask=is_candidate)
        if block == 0:
            tl.store(found[1] + group, tl.sum(tl.where(number >= first_class, in_class, 0), axis=0))


@triton.jit
@no_type_check
def _least_key(candidates, num_candidates, seed, limit):
    """Return the least of the `limit` largest keys; 0 if there are no more keys than that."""
    least, step = tl.full([], 0, tl.int64), tl.full([], HIGHEST_BIT, tl.int64)
    if num_candidates > limit:
        for _bit in range(KEY_BITS):
            reached = 0
            for start in range(0, num_candidates, CANDIDATES_AT_A_TIME):
                place = start + tl.arange(0, CANDIDATES_AT_A_TIME)
                keys = _keys(seed, tl.load(candidates + place, mask=place < num_candidates, other=0))
                reached += tl.sum(((keys >= (least | step)) & (place < num_candidates)).to(tl.int32), axis=0)
            least = tl.where(reached >= limit, least | step, least)
            step = step >> 1
    return least


@triton.jit
@no_type_check
def _take(index, candidates, num_candidates, seed, limit):
    """Return how many candidates are drawn, `limit` at most, and writes them to `index` in their order."""
    least = _least_key(candidates, num_candidates, seed, limit)
    taken = 0
    for start in range(0, num_candidates, CANDIDATES_AT_A_TIME):
        place = start + tl.arange(0, CANDIDATES_AT_A_TIME)
        box = tl.load(candidates + place, mask=place < num_candidates, other=0)
        is_drawn = (place < num_candidates) & (_keys(seed, box) >= least)
        to = taken + tl.cumsum(is_drawn.to(tl.int32), axis=0) - 1
        tl.store(index + to, box.to(tl.int64), mask=is_drawn & (to < limit))
        taken += tl.sum(is_drawn.to(tl.int32), axis=0)
    return tl.minimum(taken, limit)


@triton.jit(do_not_specialize=["count", "max_positive", "num_samples"])
@no_type_check
def _pick(sample, found, seeds, count, max_positive, num_samples, PLACES: tl.constexpr):
    """One program: the sample of one image."""
    image = tl.program_id(0).to(tl.int64)
    seed, index, candidates = tl.load(seeds + image), sample[0] + image * PLACES, found[0] + image * 2 * count
    num_positive = _take(index, candidates, tl.load(found[1] + image * 2), seed, max_positive)
    room = num_samples - num_positive
    index += num_positive
    num_drawn = num_positive + _take(index, candidates + count, tl.load(found[1] + image * 2 + 1), seed, room)
    place = tl.arange(0, triton.next_power_of_2(PLACES))
    first = image * PLACES + place
    is_place = place < PLACES
    tl.store(sample[0] + first, tl.zeros_like(first), mask=is_place & (place >= num_drawn))
    tl.store(sample[1] + first, place < num_positive, mask=is_place)
    tl.store(sample[2] + first, place < num_drawn, mask=is_place)
