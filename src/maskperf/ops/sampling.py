"""Random choice without generator state: keys from a counter, so a draw depends on nothing but its seed."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from maskperf.ops.kernels.selection import has_kernel

GOLDEN_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64 (SplitMix64, Steele et al. 2014)
MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def random_keys(seeds: Int[Tensor, " images"], count: int) -> Int[Tensor, "images count"]:
    """Return uniform integers in [0, 2**62), `count` for each seed: the same on every device and in every batch."""
    counter = torch.arange(1, count + 1, device=seeds.device)
    x = seeds[:, None] + counter * GOLDEN_GAMMA
    x = (x ^ _shift_right(x, 30)) * MIX_1
    x = (x ^ _shift_right(x, 27)) * MIX_2
    return _shift_right(x ^ _shift_right(x, 31), 2)


@dataclass(frozen=True)
class Sample:
    """The boxes drawn from each image, in a fixed number of slots.

    First positives, then negatives, both in order of their indices; index 0 in the slots that are left.
    """

    index: Int[Tensor, "images samples"]
    positive: Bool[Tensor, "images samples"]
    valid: Bool[Tensor, "images samples"]


@has_kernel("sampling")
def draw_balanced(
    positive: Bool[Tensor, "images boxes"],
    negative: Bool[Tensor, "images boxes"],
    seeds: Int[Tensor, " images"],
    *,
    num_samples: int,
    max_positive: int,
) -> Sample:
    """Return the boxes drawn at random: at most `max_positive` positives, negatives fill the rest. No box is both.

    The boxes of the largest keys are taken, so every subset is equally likely.
    Source: `modeling/balanced_positive_negative_sampler.py`, equal in law.
    """
    count = positive.shape[1]
    keys = random_keys(seeds, count)
    positives, is_positive = _draw(positive, keys, max_positive, seeds.new_full(seeds.shape, max_positive))
    negatives, is_negative = _draw(negative, keys, num_samples, num_samples - is_positive.sum(dim=1))
    # A positive ranks by its index, a negative behind all positives, and nothing behind both.
    ranks = [positives.masked_fill(~is_positive, 2 * count), (negatives + count).masked_fill(~is_negative, 2 * count)]
    rank = torch.cat(ranks, dim=1).sort(dim=1).values[:, : min(num_samples, count)]
    valid = rank < 2 * count
    return Sample(index=torch.where(rank < count, rank, rank - count) * valid, positive=rank < count, valid=valid)


def _draw(eligible: Tensor, keys: Tensor, limit: int, count: Tensor) -> tuple[Tensor, Tensor]:
    """Return `limit` indices per image, those of the eligible boxes of largest keys, and which `count` are chosen."""
    limit = min(limit, eligible.shape[1])
    best, index = torch.where(eligible, keys, -1).topk(limit, dim=1)
    return index, (best >= 0) & (torch.arange(limit, device=keys.device) < count[:, None])


@has_kernel("sampling")
def compact(keep: Bool[Tensor, "images boxes"], slots: int) -> Int[Tensor, "images slots"]:
    """Return the indices of the kept boxes in their order, then those of others, cut to `slots` per image."""
    return torch.argsort(~keep, dim=1, stable=True)[:, :slots]
