"""Random choice without generator state: keys from a counter, so a draw depends on nothing but its seed."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

_GOLDEN_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64 (SplitMix64, Steele et al. 2014)
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def random_keys(seeds: Int[Tensor, " images"], count: int) -> Int[Tensor, "images count"]:
    """Returns uniform integers in [0, 2**62), `count` for each seed: the same on every device and in every batch."""
    counter = torch.arange(1, count + 1, device=seeds.device)
    x = seeds[:, None] + counter * _GOLDEN_GAMMA
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return _shift_right(x ^ _shift_right(x, 31), 2)


def choose_random(
    eligible: Bool[Tensor, "images boxes"], keys: Int[Tensor, "images boxes"], limit: int, count: Int[Tensor, " images"]
) -> Bool[Tensor, "images boxes"]:
    """Returns a mask of `count` (at most `limit`) eligible boxes per image, or all eligible ones if there are fewer.

    The boxes of the largest keys are taken, so with uniform keys every subset is equally likely.
    """
    index, taken = _draw(eligible, keys, limit, count)
    return torch.zeros_like(eligible).scatter(1, index, taken)


def _draw(eligible: Tensor, keys: Tensor, limit: int, count: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `limit` places per image: the indices of the eligible boxes of largest keys, and which are chosen."""
    limit = min(limit, eligible.shape[1])
    best, index = torch.where(eligible, keys, -1).topk(limit, dim=1)
    return index, (best >= 0) & (torch.arange(limit, device=keys.device) < count[:, None])


def sample_balanced(
    positive: Bool[Tensor, "images boxes"],
    negative: Bool[Tensor, "images boxes"],
    seeds: Int[Tensor, " images"],
    *,
    num_samples: int,
    positive_fraction: float,
) -> tuple[Bool[Tensor, "images boxes"], Bool[Tensor, "images boxes"]]:
    """Returns the sampled positives and negatives: at most `positive_fraction` positives, negatives fill the rest.

    Source: `modeling/balanced_positive_negative_sampler.py`, equal in law.
    """
    keys = random_keys(seeds, positive.shape[1])
    max_positive = int(num_samples * positive_fraction)
    chosen_positive = choose_random(positive, keys, max_positive, seeds.new_full(seeds.shape, max_positive))
    room = num_samples - chosen_positive.sum(dim=1)
    chosen_negative = choose_random(negative, keys, num_samples, room)
    return chosen_positive, chosen_negative


@dataclass(frozen=True)
class Sample:
    """The boxes drawn from each image, in a fixed number of places: positives, then negatives, then empty places."""

    index: Int[Tensor, "images places"]
    positive: Bool[Tensor, "images places"]
    valid: Bool[Tensor, "images places"]


def draw_balanced(
    positive: Bool[Tensor, "images boxes"],
    negative: Bool[Tensor, "images boxes"],
    seeds: Int[Tensor, " images"],
    *,
    num_samples: int,
    positive_fraction: float,
) -> Sample:
    """Returns the boxes that `sample_balanced` chooses, as indices."""
    keys = random_keys(seeds, positive.shape[1])
    max_positive = int(num_samples * positive_fraction)
    positives, is_positive = _draw(positive, keys, max_positive, seeds.new_full(seeds.shape, max_positive))
    negatives, is_negative = _draw(negative, keys, num_samples, num_samples - is_positive.sum(dim=1))
    valid = torch.cat([is_positive, is_negative], dim=1)
    order = compact(valid, min(num_samples, positive.shape[1]))
    return Sample(
        index=torch.cat([positives, negatives], dim=1).gather(1, order),
        positive=torch.cat([is_positive, torch.zeros_like(is_negative)], dim=1).gather(1, order),
        valid=valid.gather(1, order),
    )


def compact(keep: Bool[Tensor, "images boxes"], slots: int) -> Int[Tensor, "images slots"]:
    """Returns the indices of the kept boxes in their order, then those of others, cut to `slots` per image."""
    return torch.argsort(~keep, dim=1, stable=True)[:, :slots]
