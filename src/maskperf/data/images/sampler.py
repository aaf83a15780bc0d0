"""Which images come in which step: a pure function of the seed, so any part of a run can be replayed."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from jaxtyping import Int

from maskperf.seeds import derive_seed

Groups = Int[np.ndarray, " images"]  # images of different groups never share a batch


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What the order of images depends on, besides their groups."""

    seed: int
    rank: int
    world: int
    images_per_rank: int
    shuffle: bool

    def order(self, num_images: int, pass_number: int) -> Int[np.ndarray, " images"]:
        """Return the positions of all images in the order of this pass, the same for all ranks."""
        if not self.shuffle:
            return np.arange(num_images)
        return np.random.default_rng(derive_seed(self.seed, "order", pass_number)).permutation(num_images)


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Return the optimizer steps between two evaluations, the reference's count."""
    return num_images // batch_size + 1


def aspect_groups(sizes_hw: Int[np.ndarray, "images 2"]) -> Groups:
    """Return 0 for wide images (height < width) and 1 for the others, the reference's two groups."""
    return (sizes_hw[:, 0] >= sizes_hw[:, 1]).astype(np.int64)


def rank_batches(groups: Groups, sampling: Sampling, pass_number: int) -> list[np.ndarray]:
    """Return the batches of one rank in one pass over the images, as arrays of positions.

    All ranks share one permutation; its first entries are repeated up to a multiple of `world`, and each rank takes
    one block. A group's last batch may be short. Batches come in the order of their first images.
    Source: the reference's distributed and grouped batch samplers.
    """
    block_length = -(-len(groups) // sampling.world)
    padded = np.resize(sampling.order(len(groups), pass_number), (sampling.world, block_length))
    block = padded[sampling.rank]
    batches = []  # of indices into the block
    for group in np.unique(groups[block]):
        indices = np.flatnonzero(groups[block] == group)
        batches += np.split(indices, range(sampling.images_per_rank, len(indices), sampling.images_per_rank))
    batches.sort(key=lambda indices: indices[0])
    return [block[indices] for indices in batches]


def stream_batches(groups: Groups, sampling: Sampling) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (passes, positions) of the images of each batch of one rank, from pass to pass without end.

    Passes count from 1.
    """
    for pass_number in count(1):
        for positions in rank_batches(groups, sampling, pass_number):
            yield np.full_like(positions, pass_number), positions


def bucket_stream(groups: Groups, sampling: Sampling) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (passes, positions) of the images of one rank's block of each batch, one per step, without end.

    The images of a pass come in the order of a permutation, and each joins the open batch of its group, which ends
    when it is full. Batches left open by a pass are filled by the next, so that no batch is short, each image comes
    once for each pass, and fewer than groups times batch size wait at any time. In each step the images of all ranks
    are of one group. Passes count from 1.
    Source: the benchmark allows batches that mix two passes.
    """
    batch_size = sampling.world * sampling.images_per_rank
    block = slice(sampling.rank * sampling.images_per_rank, (sampling.rank + 1) * sampling.images_per_rank)
    waiting = np.empty((0, 2), np.int64)  # (pass, position) of the images in open batches
    for pass_number in count(1):
        order = sampling.order(len(groups), pass_number)
        drawn = np.concatenate([waiting, np.stack([np.full_like(order, pass_number), order], axis=1)])
        group_of_drawn = groups[drawn[:, 1]]
        batches, is_open = [], np.zeros(len(drawn), bool)
        for group in range(groups.max() + 1):
            indices = np.flatnonzero(group_of_drawn == group)
            num_full = len(indices) // batch_size * batch_size
            batches += list(indices[:num_full].reshape(-1, batch_size))
            is_open[indices[num_full:]] = True
        waiting = drawn[is_open]
        batches.sort(key=lambda indices: indices[-1])
        for indices in batches:
            passes, positions = drawn[indices[block]].T
            yield passes, positions


def evaluation_order(
    sizes_hw: Int[np.ndarray, "images 2"], *, batch_size: int, rank: int, world: int
) -> list[np.ndarray]:
    """Return one rank's batches of positions: over all ranks every image once, neighbours of like aspect together."""
    order = np.argsort(sizes_hw[:, 0] / sizes_hw[:, 1], kind="stable")
    return np.split(order, range(batch_size, len(order), batch_size))[rank::world]
