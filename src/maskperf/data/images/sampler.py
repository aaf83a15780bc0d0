"""Which images come in which step: a pure function of the seed, so any part of a run can be replayed."""

from collections.abc import Iterator
from itertools import count

import numpy as np
from jaxtyping import Int

from maskperf.seeds import derive_seed


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Return the optimizer steps between two evaluations, the reference's count."""
    return num_images // batch_size + 1


def aspect_groups(sizes_hw: Int[np.ndarray, "images 2"]) -> Int[np.ndarray, " images"]:
    """Return 0 for wide images (height < width) and 1 for the others, the reference's two groups."""
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
    order = _order(num_images, seed, pass_number, shuffle)
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


def canvas_batches(
    groups: Int[np.ndarray, " images"], *, seed: int, pass_number: int, batch_size: int, shuffle: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the batches of all ranks together that are filled in one pass, as (passes, positions) of their images.

    The images of a pass come in the order of a permutation. Each joins the open batch of its group, which is handed
    out when it is full. What is open at the end of a pass stays open in the next: so no batch is short, each image
    comes once for each pass that it was drawn in, and fewer images than groups times batch_size wait at any time.
    Source: the benchmark allows batches that mix two passes.
    """
    counts = np.bincount(groups)
    waiting = (pass_number - 1) * counts % batch_size  # of each group, when this pass begins
    drawn = []  # (passes, positions): this pass, then those before it from which some images still wait
    for passes_ago in range(pass_number):
        is_needed = waiting > (passes_ago - 1) * counts
        if not is_needed.any():
            break
        order = _order(len(groups), seed, pass_number - passes_ago, shuffle)
        order = order[is_needed[groups[order]]]
        drawn.append((np.full(len(order), pass_number - passes_ago), order))
    passes, positions = (np.concatenate(arrays[::-1]) for arrays in zip(*drawn, strict=True))
    batches = []  # each as places in those two
    for group in np.flatnonzero(counts):
        places = np.flatnonzero(groups[positions] == group)
        places = places[len(places) - counts[group] - waiting[group] :]
        batches += [*places[: len(places) // batch_size * batch_size].reshape(-1, batch_size)]
    batches.sort(key=lambda places: places[-1])
    return [(passes[places], positions[places]) for places in batches]


def canvas_stream(
    groups: Int[np.ndarray, " images"],
    *,
    seed: int,
    rank: int,
    world: int,
    images_per_rank: int,
    shuffle: bool,
    first_step: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Returns an endless iterator of one rank's blocks of the batches of `canvas_batches`, one per step.

    So in each step the images of all ranks are of one group. `first_step` counts from 0, passes from 1.
    """
    batch_size = world * images_per_rank
    counts = np.bincount(groups)
    block = slice(rank * images_per_rank, (rank + 1) * images_per_rank)
    for pass_number in count(1):
        steps_before, steps_through = (
            (number * counts // batch_size).sum() for number in (pass_number - 1, pass_number)
        )
        if steps_through <= first_step:
            continue
        batches = canvas_batches(groups, seed=seed, pass_number=pass_number, batch_size=batch_size, shuffle=shuffle)
        for passes, positions in batches[max(first_step - steps_before, 0) :]:
            yield passes[block], positions[block]


def _order(num_images: int, seed: int, pass_number: int, shuffle: bool) -> np.ndarray:
    """Return all positions in the order of this pass."""
    if not shuffle:
        return np.arange(num_images)
    return np.random.default_rng(derive_seed(seed, "order", pass_number)).permutation(num_images)


def evaluation_order(
    sizes_hw: Int[np.ndarray, "images 2"], *, batch_size: int, rank: int, world: int
) -> list[np.ndarray]:
    """Returns one rank's batches of positions: over all ranks every image once, neighbours of like aspect together."""
    order = np.argsort(sizes_hw[:, 0] / sizes_hw[:, 1], kind="stable")
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return batches[rank::world]
