"""The boxes of best scores. Of equal scores any may be taken; the Triton kernels take the first."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maskperf.ops.kernels.selection import has_kernel


@has_kernel("ranking")
def best_anchors(
    logits: Float[Tensor, "images anchors"], level_counts: tuple[int, ...], limit: int
) -> tuple[Float[Tensor, "images levels limit"], Int[Tensor, "images levels limit"]]:
    """Return the sigmoid scores of each level's best anchors, falling, and their indices; else -1 and 0."""
    all_scores, all_indices = [], []
    start = 0
    for count in level_counts:
        scores, index = logits[:, start : start + count].sigmoid().topk(min(limit, count), dim=1)
        short = limit - scores.shape[1]
        all_scores.append(F.pad(scores, (0, short), value=-1.0))
        all_indices.append(F.pad(index + start, (0, short)))
        start += count
    return torch.stack(all_scores, dim=1), torch.stack(all_indices, dim=1)


@has_kernel("ranking")
def best_mask(scores: Float[Tensor, "groups boxes"], quota: int) -> Bool[Tensor, "groups boxes"]:
    """Return a mask of the `quota` best entries of each group, without those below 0."""
    best, index = scores.topk(min(quota, scores.shape[1]), dim=1)
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, index, best >= 0)
