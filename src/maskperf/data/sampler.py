"""Which images come in which step: a pure function of the seed, so any part of a run can be replayed."""

from collections.abc import Iterator
from itertools import count

import numpy as np
from jaxtyping import Int

from maskperf.seeds import derive_seed


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Returns the optimizer steps between two evaluations, the reference's count."""
    return num_images // batch_size + 1


def aspect_groups(sizes_hw: Int[np.ndarray, "images 2"]) -> Int[np.ndarray, " images"]:
    """Returns 0 for wide images (height < width) and 1 for the others, the reference's two groups."""
    return (sizes_hw[:, 0] >= sizes_hw[:, 1]).astype(np.int64)


def rank_batches(
    groups: Int[np.ndarray, " images"],
    *,
    seed: int,
    pass_number: int,
    rank: int,
    world: int,
    images_per_rank: int,
    shuffle: bool,
) -> list[np.ndarray]:
    """Returns the batches of one rank in one pass over the images, as arrays of positions.

    All ranks share one permutation; its first entries are repeated up to a multiple of `world`, and each rank takes
    one block. Images of different groups are not mixed; a group's short last batch is kept.
    Batches come in the order of their first images.
    Source: the reference's distributed and grouped batch samplers.
    """
    num_images = len(groups)
    order = np.arange(num_images)
    if shuffle:
        order = np.random.default_rng(derive_seed(seed, "order", pass_number)).permutation(num_images)
    block_length = -(-num_images // world)
    block = np.resize(order, block_length * world)[rank * block_length : (rank + 1) * block_length]
    batches = []  # each as places in the block
    for group in np.unique(groups[block]):
        places = np.flatnonzero(groups[block] == group)
        batches += [places[start : start + images_per_rank] for start in range(0, len(places), images_per_rank)]
    batches.sort(key=lambda places: places[0])
    return [block[places] for places in batches]


def stream_batches(
    groups: Int[np.ndarray, " images"],
    *,
    seed: int,
    rank: int,
    world: int,
    images_per_rank: int,
    shuffle: bool,
    first_step: int,
) -> Iterator[tuple[int, np.ndarray]]:
    """Returns an endless iterator of (pass number, positions), one per step, from pass to pass without a pause.

    `first_step` counts from 0: the number of batches to leave out. Passes count from 1.
    """
    to_skip = first_step
    for pass_number in count(1):
        batches = rank_batches(
            groups,
            seed=seed,
            pass_number=pass_number,
            rank=rank,
            world=world,
            images_per_rank=images_per_rank,
            shuffle=shuffle,
        )
        for positions in batches[to_skip:]:
            yield pass_number, positions
        to_skip = max(to_skip - len(batches), 0)


def evaluation_order(
    sizes_hw: Int[np.ndarray, "images 2"], *, batch_size: int, rank: int, world: int
) -> list[np.ndarray]:
    """Returns one rank's batches of positions: over all ranks every image once, neighbours of like aspect together."""
    order = np.argsort(sizes_hw[:, 0] / sizes_hw[:, 1], kind="stable")
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return batches[rank::world]
