"""Non-maximum suppression as two Triton kernels: overlaps as bits, then the survivors block by block.

Reference: ops/nms.py.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float32
from torch import Tensor

from maskperf.ops.kernels.values import corners, jit, overlap

BITS_OF_WORD = 64
BITS = tl.constexpr(BITS_OF_WORD)  # of a word, and boxes of a block


def nms_sorted(
    boxes: Float32[Tensor, "groups boxes 4"], valid: Bool[Tensor, "groups boxes"], iou_threshold: float
) -> Bool[Tensor, "groups boxes"]:
    """Return which boxes survive, for groups whose boxes are already sorted by falling score.

    Invalid boxes neither survive nor suppress. Memory: one bit for every pair of boxes of a group.
    """
    groups, count = valid.shape
    alive = torch.zeros_like(valid, memory_format=torch.contiguous_format)
    if valid.numel() > 0:
        num_words = triton.cdiv(count, BITS_OF_WORD)
        words = torch.empty(groups, count, num_words, dtype=torch.int64, device=boxes.device)
        grid = (groups, num_words, num_words)
        _overlap_bits[grid](words, boxes.contiguous(), count, iou_threshold, num_warps=8, enable_fp_fusion=False)
        _resolve[(groups,)](alive, words, valid.contiguous(), count, triton.next_power_of_2(num_words))
    return alive


@jit(do_not_specialize=["count", "iou_threshold"])
def _overlap_bits(words, boxes, count, iou_threshold):
    """One program: 64 boxes against 64 earlier ones of a group. Bit j of word w: box 64 w + j overlaps too much."""
    block, word = tl.program_id(1), tl.program_id(2)
    if word > block:
        return  # only earlier boxes suppress
    first_box = tl.program_id(0).to(tl.int64) * count
    bit = tl.arange(0, BITS)
    later, earlier = block * BITS + bit, word * BITS + bit
    box = corners(boxes + (first_box + later[:, None]) * 4, later[:, None] < count)
    earlier_box = corners(boxes + (first_box + earlier[None, :]) * 4, earlier[None, :] < count)
    is_above = (overlap(earlier_box, box) > iou_threshold) & (earlier[None, :] < later[:, None])
    found = tl.sum(tl.where(is_above, (tl.full([BITS], 1, tl.int64) << bit)[None, :], 0), axis=1)
    num_words = tl.cdiv(count, BITS)
    tl.store(words + (first_box + later) * num_words + word, found, mask=later < count)


@jit(do_not_specialize=["count"])
def _resolve(alive, words, valid, count, WORDS: tl.constexpr):
    """One program: all blocks of one group, in order.

    A box of a block is first held against the survivors of the blocks before. Inside the block, "survives if no
    survivor before it overlaps it" is applied to all boxes at once until nothing changes: there is one such set of
    survivors, the greedy one, and each round gets at least one more box right.
    """
    first_box = tl.program_id(0).to(tl.int64) * count
    num_words = tl.cdiv(count, BITS)
    word, bit = tl.arange(0, WORDS), tl.arange(0, BITS)
    flag = tl.full([BITS], 1, tl.int64) << bit
    kept = tl.zeros([WORDS], tl.int64)
    for block in range(num_words):
        box = block * BITS + bit
        is_real = box < count
        row = words + (first_box + box) * num_words
        is_before = is_real[:, None] & (word < block)[None, :]
        overlaps = tl.load(row[:, None] + word[None, :], mask=is_before, other=0)
        suppressed = tl.max(((overlaps & kept[None, :]) != 0).to(tl.int32), axis=1)
        inside = tl.load(row + block, mask=is_real, other=0)
        candidate = (tl.load(valid + first_box + box, mask=is_real, other=0) != 0) & (suppressed == 0)
        survives = candidate
        num_changed = 1
        while num_changed > 0:
            survivors = tl.sum(tl.where(survives, flag, 0), axis=0)
            now = candidate & ((inside & survivors) == 0)
            num_changed = tl.sum((now != survives).to(tl.int32), axis=0)
            survives = now
        kept = tl.where(word == block, tl.sum(tl.where(survives, flag, 0), axis=0), kept)
        tl.store(alive + first_box + box, survives, mask=is_real)
