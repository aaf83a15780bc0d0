"""The boxes of best scores as Triton kernels: all images and levels in the same launches.

Twins: ops/ranking.py. The least score to be taken is found digit by digit: four times the numbers that begin with the
digits found so far are counted by their next digit of 8 bits.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from maskperf.ops.kernels.values import ordered

SCORES_AT_A_TIME = 4096
BLOCK = tl.constexpr(SCORES_AT_A_TIME)
NUM_DIGITS, NUM_ROUNDS = 256, 4
DIGITS = tl.constexpr(NUM_DIGITS)
ROUNDS = tl.constexpr(NUM_ROUNDS)
BLOCKS_AT_A_TIME = tl.constexpr(64)


def best_anchors(
    logits: Float32[Tensor, "images anchors"], level_counts: tuple[int, ...], limit: int
) -> tuple[Float32[Tensor, "images levels limit"], Int64[Tensor, "images levels limit"]]:
    """Return the sigmoid scores of each level's best anchors, falling, and their indices; else -1 and 0.

    Of equal scores the first are taken, and come in their order.
    """
    shape = (len(logits), len(level_counts), limit)
    scores = torch.empty(shape, device=logits.device)
    index = torch.empty(shape, device=logits.device, dtype=torch.int64)
    _select(logits.sigmoid().contiguous(), level_counts, limit, (index, scores))
    scores, order = scores.sort(dim=2, descending=True, stable=True)
    return scores, index.gather(2, order)


def best_mask(scores: Float32[Tensor, "groups boxes"], quota: int) -> Bool[Tensor, "groups boxes"]:
    """Return a mask of the `quota` best entries of each group, without those below 0; of equal scores the first."""
    chosen = torch.empty_like(scores, dtype=torch.bool, memory_format=torch.contiguous_format)
    _select(scores.contiguous(), (scores.shape[1],), quota, (chosen,))
    return chosen


def _select(values: Tensor, counts: tuple[int, ...], limit: int, outputs: tuple[Tensor, ...]) -> None:
    """Write the best values of each part of a row: index and value, or a mask of all."""
    groups = len(values) * len(counts)
    if values.numel() == 0 or limit == 0:
        for output in outputs:
            output.zero_()
        return
    blocks = triton.cdiv(max(*counts, limit), SCORES_AT_A_TIME)
    # Floats, because Triton would compile a new kernel for every pattern of integers; float32 holds these exactly.
    parts = tuple((float(sum(counts[:part])), float(count)) for part, count in enumerate(counts))
    digits = torch.zeros((NUM_ROUNDS, groups, NUM_DIGITS), device=values.device, dtype=torch.int32)
    sizes = torch.empty((groups, blocks, 2), device=values.device, dtype=torch.int32)
    grid, row = (blocks, groups), values.shape[1]
    for number in range(NUM_ROUNDS):
        _count_digits[grid](digits, values, parts, row, limit, number, num_warps=8)
    _count_best[grid](sizes, digits, values, parts, row, limit, num_warps=8)
    _write[grid](outputs, sizes, digits, values, parts, row, limit, num_warps=8)


@triton.jit
@no_type_check
def _part_of(parts, group, row):
    """Return where the numbers of a group begin, counted from the first of all and of its row, and how many it has."""
    part, first, count = group % len(parts), 0, 0
    for number in tl.static_range(len(parts)):
        first = tl.where(part == number, tl.cast(parts[number][0], tl.int32), first)
        count = tl.where(part == number, tl.cast(parts[number][1], tl.int32), count)
    return (group // len(parts)).to(tl.int64) * row + first, first, count


@triton.jit
@no_type_check
def _from_zero(values):
    """Return whole numbers from 0 below 2**32 in the order of the values."""
    return ordered(values).to(tl.int64) + (1 << 31)


@triton.jit
@no_type_check
def _least(digits, group, wanted, NUMBER: tl.constexpr):
    """Return the first digits of the least number to be taken, and how many that begin with them are to be taken."""
    digit = tl.arange(0, DIGITS)
    least = tl.full([], 0, tl.int64)
    for number in tl.static_range(NUMBER):
        row = (number * tl.num_programs(1) + group) * DIGITS
        size = tl.load(digits + row + digit)
        reached = tl.cumsum(size, axis=0, reverse=True) >= wanted
        found = tl.sum(reached.to(tl.int32), axis=0) - 1
        wanted -= tl.sum(tl.where(digit > found, size, 0), axis=0)
        least = (least << 8) | found
    return least, wanted


@triton.jit(do_not_specialize=["row", "limit"])
@no_type_check
def _count_digits(digits, values, parts, row, limit, NUMBER: tl.constexpr):
    """One program: counts the next digit of 4096 numbers of a group."""
    group = tl.program_id(1)
    first, _, count = _part_of(parts, group, row)
    if tl.program_id(0) * BLOCK >= count:
        return
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    order = _from_zero(tl.load(values + first + place, mask=place < count, other=0.0))
    least, _ = _least(digits, group, tl.minimum(limit, count), NUMBER)
    begins_so = (place < count) & ((order >> (32 - 8 * NUMBER)) == least)
    size = tl.histogram(((order >> (24 - 8 * NUMBER)) & 255).to(tl.int32), DIGITS, mask=begins_so)
    to = (NUMBER * tl.num_programs(1) + group) * DIGITS + tl.arange(0, DIGITS)
    tl.atomic_add(digits + to, size, mask=size > 0, sem="relaxed")


@triton.jit(do_not_specialize=["row", "limit"])
@no_type_check
def _count_best(sizes, digits, values, parts, row, limit):
    """One program: how many of 4096 numbers are above the least to be taken, and how many equal to it."""
    group = tl.program_id(1)
    first, _, count = _part_of(parts, group, row)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    order = _from_zero(tl.load(values + first + place, mask=place < count, other=0.0))
    least, _ = _least(digits, group, tl.minimum(limit, count), ROUNDS)
    to = sizes + (group * tl.num_programs(0) + tl.program_id(0)) * 2
    tl.store(to, tl.sum(((order > least) & (place < count)).to(tl.int32), axis=0))
    tl.store(to + 1, tl.sum(((order == least) & (place < count)).to(tl.int32), axis=0))


@triton.jit
@no_type_check
def _before(sizes, group):
    """Return how many numbers the programs before this one have above the least, and equal to it."""
    above, equal = 0, 0
    for start in range(0, tl.program_id(0), BLOCKS_AT_A_TIME):
        other = start + tl.arange(0, BLOCKS_AT_A_TIME)
        size = sizes + (group * tl.num_programs(0) + other) * 2
        above += tl.sum(tl.load(size, mask=other < tl.program_id(0), other=0), axis=0)
        equal += tl.sum(tl.load(size + 1, mask=other < tl.program_id(0), other=0), axis=0)
    return above, equal


@triton.jit(do_not_specialize=["row", "limit"])
@no_type_check
def _write(outputs, sizes, digits, values, parts, row, limit):
    """One program: writes what is taken of 4096 numbers, as a mask or in its places, behind that of other programs."""
    group = tl.program_id(1)
    first, first_of_row, count = _part_of(parts, group, row)
    wanted = tl.minimum(limit, count)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(values + first + place, mask=place < count, other=0.0)
    order = _from_zero(value)
    least, num_equal = _least(digits, group, wanted, ROUNDS)
    above_before, equal_before = _before(sizes, group)
    is_equal = (order == least) & (place < count)
    number = equal_before + tl.cumsum(is_equal.to(tl.int32), axis=0)
    is_best = ((order > least) & (place < count)) | (is_equal & (number <= num_equal))
    if len(outputs) == 1:
        tl.store(outputs[0] + first + place, is_best & (value >= 0.0), mask=place < count)
    else:
        to = above_before + tl.minimum(equal_before, num_equal) + tl.cumsum(is_best.to(tl.int32), axis=0) - 1
        to += group * limit
        tl.store(outputs[0] + to, (first_of_row + place).to(tl.int64), mask=is_best)
        tl.store(outputs[1] + to, value, mask=is_best)
        left = wanted + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(outputs[0] + group * limit + left, tl.zeros([BLOCK], tl.int64), mask=left < limit)
        tl.store(outputs[1] + group * limit + left, tl.full([BLOCK], -1.0, tl.float32), mask=left < limit)
