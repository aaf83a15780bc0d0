"""Balanced random samples and lists of kept boxes as Triton kernels; a fixed number of launches, nothing sorted.

References: ops/sampling.py.
"""

import functools

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Int64
from torch import Tensor

from maskperf.ops.kernels.values import jit
from maskperf.ops.sampling import GOLDEN_GAMMA, MIX_1, MIX_2, Sample

BOXES_AT_A_TIME = 4096
BLOCK = tl.constexpr(BOXES_AT_A_TIME)
CLASSES = tl.constexpr(32)
BLOCKS_AT_A_TIME, CANDIDATES_AT_A_TIME = tl.constexpr(64), tl.constexpr(1024)
KEY_BITS = tl.constexpr(62)
LARGEST_KEY, HIGHEST_BIT = tl.constexpr((1 << 62) - 1), tl.constexpr(1 << 61)
GAMMA, FIRST_MIX, SECOND_MIX = (tl.constexpr(number & ((1 << 64) - 1)) for number in (GOLDEN_GAMMA, MIX_1, MIX_2))


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
    sample = Sample(index, *(torch.empty_like(index, dtype=torch.bool) for _ in range(2)))
    if index.numel() > 0:
        inputs, limits = (positive.contiguous(), negative.contiguous(), seeds.contiguous()), (max_positive, num_samples)
        grid = (triton.cdiv(count, BOXES_AT_A_TIME), images)
        sizes, found = empty((images, 2, grid[0], CLASSES.value)), (empty((images, 2, count)), empty((images, 2)))
        _count_classes[grid](sizes, inputs, count, num_warps=8)
        _collect[grid](found, sizes, inputs, count, *limits, num_warps=8)
        _pick[(images,)](tuple(vars(sample).values()), found, inputs[2], count, *limits, index.shape[1])
    return sample


def compact(keep: Bool[Tensor, "images boxes"], slots: int) -> Int64[Tensor, "images slots"]:
    """Return the indices of the kept boxes in their order, then those of others, cut to `slots` per image."""
    images, count = keep.shape
    index = torch.empty((images, min(slots, count)), device=keep.device, dtype=torch.int64)
    if index.numel() > 0:
        _compact[(images,)](index, keep.contiguous(), count, index.shape[1], num_warps=8)
    return index


@jit
def _flags(mask, start, count):
    """Return the indices of 4096 boxes from `start`, and which of them a mask has."""
    box = start + tl.arange(0, BLOCK)
    return box, tl.load(mask + box, mask=box < count, other=0) != 0


@jit(do_not_specialize=["count", "slots"])
def _compact(index, keep, count, slots):
    """One program: all boxes of one image."""
    image = tl.program_id(0).to(tl.int64)
    index, keep = index + image * slots, keep + image * count
    num_kept = 0
    for start in range(0, count, BLOCK):
        num_kept += tl.sum(_flags(keep, start, count)[1].to(tl.int32), axis=0)
    before = 0
    for start in range(0, count, BLOCK):
        box, is_kept = _flags(keep, start, count)
        number = before + tl.cumsum(is_kept.to(tl.int32), axis=0)  # of kept boxes, up to and with this one
        slot = tl.where(is_kept, number - 1, num_kept + box - number)
        tl.store(index + slot, box.to(tl.int64), mask=(box < count) & (slot < slots))
        before += tl.sum(is_kept.to(tl.int32), axis=0)


@jit
def _keys(seed, box):
    """Return what `random_keys` returns for these boxes."""
    x = seed.to(tl.uint64, bitcast=True) + (box + 1).to(tl.uint64) * GAMMA
    x = (x ^ (x >> 30)) * FIRST_MIX
    x = (x ^ (x >> 27)) * SECOND_MIX
    return ((x ^ (x >> 31)) >> 2).to(tl.int64)


@jit
def _class_of(keys):
    """Return how many leading ones a key has, about: what is rounded up to a power of two is in the class before."""
    to_the_top = (keys ^ LARGEST_KEY).to(tl.float32)
    exponent = (to_the_top.to(tl.int32, bitcast=True) >> 23) - 127
    return tl.minimum(tl.maximum(-exponent + (KEY_BITS - 1), 0), CLASSES - 1)


@jit(do_not_specialize=["count"])
def _count_classes(sizes, inputs, count):
    """One program: how many of 4096 boxes of an image are in each class, for either kind."""
    block, image = tl.program_id(0), tl.program_id(1)
    of_class = _class_of(_keys(tl.load(inputs[2] + image), block * BLOCK + tl.arange(0, BLOCK)))
    for kind in tl.static_range(2):
        _, is_eligible = _flags(inputs[kind] + image.to(tl.int64) * count, block * BLOCK, count)
        row = (image * 2 + kind) * tl.num_programs(0) + block
        tl.store(sizes + row * CLASSES + tl.arange(0, CLASSES), tl.histogram(of_class, CLASSES, mask=is_eligible))


@jit(do_not_specialize=["count", "max_positive", "num_samples"])
def _collect(found, sizes, inputs, count, max_positive, num_samples):
    """One program: lists the candidates among 4096 boxes of an image behind those of the programs before."""
    block, image, number = tl.program_id(0), tl.program_id(1), tl.arange(0, CLASSES)
    of_class = _class_of(_keys(tl.load(inputs[2] + image), block * BLOCK + tl.arange(0, BLOCK)))
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
        box, is_eligible = _flags(inputs[kind] + image.to(tl.int64) * count, block * BLOCK, count)
        is_candidate = is_eligible & (of_class >= first_class)
        slot = tl.sum(tl.where(number >= first_class, before, 0), axis=0)
        slot += tl.cumsum(is_candidate.to(tl.int32), axis=0) - 1
        tl.store(found[0] + group.to(tl.int64) * count + slot, box, mask=is_candidate)
        if block == 0:
            tl.store(found[1] + group, tl.sum(tl.where(number >= first_class, in_class, 0), axis=0))


@jit
def _candidates(candidates, num_candidates, seed, start):
    """Return 1024 candidates from `start`, which are real, and their keys."""
    index = start + tl.arange(0, CANDIDATES_AT_A_TIME)
    box = tl.load(candidates + index, mask=index < num_candidates, other=0)
    return box, index < num_candidates, _keys(seed, box)


@jit
def _least_key(candidates, num_candidates, seed, limit):
    """Return the least of the `limit` largest keys; 0 if there are no more keys than that."""
    least, step = tl.full([], 0, tl.int64), tl.full([], HIGHEST_BIT, tl.int64)
    if num_candidates > limit:
        for _bit in range(KEY_BITS):
            reached = 0
            for start in range(0, num_candidates, CANDIDATES_AT_A_TIME):
                _, is_real, keys = _candidates(candidates, num_candidates, seed, start)
                reached += tl.sum(((keys >= (least | step)) & is_real).to(tl.int32), axis=0)
            least = tl.where(reached >= limit, least | step, least)
            step = step >> 1
    return least


@jit
def _take(index, candidates, num_candidates, seed, limit):
    """Return how many candidates are drawn, `limit` at most, and write them to `index` in their order."""
    least = _least_key(candidates, num_candidates, seed, limit)
    taken = 0
    for start in range(0, num_candidates, CANDIDATES_AT_A_TIME):
        box, is_real, keys = _candidates(candidates, num_candidates, seed, start)
        is_drawn = is_real & (keys >= least)
        to = taken + tl.cumsum(is_drawn.to(tl.int32), axis=0) - 1
        tl.store(index + to, box.to(tl.int64), mask=is_drawn & (to < limit))
        taken += tl.sum(is_drawn.to(tl.int32), axis=0)
    return tl.minimum(taken, limit)


@jit(do_not_specialize=["count", "max_positive", "num_samples"])
def _pick(sample, found, seeds, count, max_positive, num_samples, SLOTS: tl.constexpr):
    """One program: the sample of one image."""
    image = tl.program_id(0).to(tl.int64)
    seed, index, candidates = tl.load(seeds + image), sample[0] + image * SLOTS, found[0] + image * 2 * count
    num_positive = _take(index, candidates, tl.load(found[1] + image * 2), seed, max_positive)
    room, num_negative = num_samples - num_positive, tl.load(found[1] + image * 2 + 1)
    num_drawn = num_positive + _take(index + num_positive, candidates + count, num_negative, seed, room)
    slot = tl.arange(0, triton.next_power_of_2(SLOTS))
    to = image * SLOTS + slot
    tl.store(sample[0] + to, tl.zeros_like(to), mask=(slot < SLOTS) & (slot >= num_drawn))
    tl.store(sample[1] + to, slot < num_positive, mask=slot < SLOTS)
    tl.store(sample[2] + to, slot < num_drawn, mask=slot < SLOTS)
