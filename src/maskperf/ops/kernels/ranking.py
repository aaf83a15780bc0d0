"""The boxes of best scores as Triton kernels: all images and levels in the same launches.

References: ops/ranking.py. The least score to be taken is found digit by digit: four times the scores that begin with
the digits found so far are counted by their next digit of 8 bits.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from maskperf.ops.kernels.values import jit, ordered

SCORES_AT_A_TIME = 4096
BLOCK = tl.constexpr(SCORES_AT_A_TIME)
DIGITS, ROUNDS = tl.constexpr(256), tl.constexpr(4)
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
    digits = torch.zeros((ROUNDS.value, groups, DIGITS.value), device=values.device, dtype=torch.int32)
    sizes = torch.empty((groups, blocks, 2), device=values.device, dtype=torch.int32)
    grid, inputs = (blocks, groups), (values, parts, values.shape[1], limit)
    for number in range(ROUNDS.value):
        _count_digits[grid](digits, *inputs, number, num_warps=8)
    _count_best[grid](sizes, digits, *inputs, num_warps=8)
    _write[grid](outputs, sizes, digits, *inputs, num_warps=8)


@jit
def _part_of(parts, row):
    """Return where the scores of a program's group begin, counted from the first of all and of its row, and how many
    the group has."""
    group, first, count = tl.program_id(1), 0, 0
    part = group % len(parts)
    for number in tl.static_range(len(parts)):
        first = tl.where(part == number, tl.cast(parts[number][0], tl.int32), first)
        count = tl.where(part == number, tl.cast(parts[number][1], tl.int32), count)
    return (group // len(parts)).to(tl.int64) * row + first, first, count


@jit
def _scores(values, count):
    """Return the indices of a program's scores in their group, which are real, and the scores; then these as integers
    from 0 below 2**32 in the same order."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(values + index, mask=index < count, other=0.0)
    return index, index < count, value, ordered(value).to(tl.int64) + (1 << 31)


@jit
def _least(digits, wanted, NUMBER: tl.constexpr):
    """Return the first digits of the least score to be taken, and how many that begin with them are to be taken."""
    digit = tl.arange(0, DIGITS)
    least = tl.full([], 0, tl.int64)
    for number in tl.static_range(NUMBER):
        size = tl.load(digits + (number * tl.num_programs(1) + tl.program_id(1)) * DIGITS + digit)
        reached = tl.cumsum(size, axis=0, reverse=True) >= wanted
        found = tl.sum(reached.to(tl.int32), axis=0) - 1
        wanted -= tl.sum(tl.where(digit > found, size, 0), axis=0)
        least = (least << 8) | found
    return least, wanted


@jit(do_not_specialize=["row", "limit"])
def _count_digits(digits, values, parts, row, limit, NUMBER: tl.constexpr):
    """One program: counts the next digit of 4096 scores of a group."""
    first, _, count = _part_of(parts, row)
    if tl.program_id(0) * BLOCK >= count:
        return
    _, is_real, _, order = _scores(values + first, count)
    least, _ = _least(digits, tl.minimum(limit, count), NUMBER)
    begins_so = is_real & ((order >> (32 - 8 * NUMBER)) == least)
    size = tl.histogram(((order >> (24 - 8 * NUMBER)) & 255).to(tl.int32), DIGITS, mask=begins_so)
    to = (NUMBER * tl.num_programs(1) + tl.program_id(1)) * DIGITS + tl.arange(0, DIGITS)
    tl.atomic_add(digits + to, size, mask=size > 0, sem="relaxed")


@jit(do_not_specialize=["row", "limit"])
def _count_best(sizes, digits, values, parts, row, limit):
    """One program: how many of 4096 scores are above the least to be taken, and how many equal to it."""
    first, _, count = _part_of(parts, row)
    _, is_real, _, order = _scores(values + first, count)
    least, _ = _least(digits, tl.minimum(limit, count), ROUNDS)
    to = sizes + (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * 2
    tl.store(to, tl.sum(((order > least) & is_real).to(tl.int32), axis=0))
    tl.store(to + 1, tl.sum(((order == least) & is_real).to(tl.int32), axis=0))


@jit
def _before(sizes):
    """Return how many scores the programs before this one have above the least, and equal to it."""
    above, equal = 0, 0
    for start in range(0, tl.program_id(0), BLOCKS_AT_A_TIME):
        other = start + tl.arange(0, BLOCKS_AT_A_TIME)
        size = sizes + (tl.program_id(1) * tl.num_programs(0) + other) * 2
        above += tl.sum(tl.load(size, mask=other < tl.program_id(0), other=0), axis=0)
        equal += tl.sum(tl.load(size + 1, mask=other < tl.program_id(0), other=0), axis=0)
    return above, equal


@jit(do_not_specialize=["row", "limit"])
def _write(outputs, sizes, digits, values, parts, row, limit):
    """One program: writes what is taken of 4096 scores, as a mask or in its slots, behind that of other programs."""
    first, first_of_row, count = _part_of(parts, row)
    index, is_real, value, order = _scores(values + first, count)
    wanted = tl.minimum(limit, count)
    least, num_equal = _least(digits, wanted, ROUNDS)
    above_before, equal_before = _before(sizes)
    is_equal = (order == least) & is_real
    number = equal_before + tl.cumsum(is_equal.to(tl.int32), axis=0)
    is_best = ((order > least) & is_real) | (is_equal & (number <= num_equal))
    if len(outputs) == 1:
        tl.store(outputs[0] + first + index, is_best & (value >= 0.0), mask=is_real)
    else:
        slot = tl.program_id(1) * limit
        to = slot + above_before + tl.minimum(equal_before, num_equal) + tl.cumsum(is_best.to(tl.int32), axis=0) - 1
        tl.store(outputs[0] + to, (first_of_row + index).to(tl.int64), mask=is_best)
        tl.store(outputs[1] + to, value, mask=is_best)
        empty = wanted + index
        tl.store(outputs[0] + slot + empty, tl.zeros([BLOCK], tl.int64), mask=empty < limit)
        tl.store(outputs[1] + slot + empty, tl.full([BLOCK], -1.0, tl.float32), mask=empty < limit)
