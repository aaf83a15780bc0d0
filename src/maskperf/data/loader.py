"""Batches in the right order, made ahead of time by threads."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from maskperf.config import DataConfig
from maskperf.data.coco import CocoIndex
from maskperf.data.collate import Sample, make_batch, make_evaluation_batch
from maskperf.data.decode import check_images, decode_image
from maskperf.data.sampler import evaluation_order, stream_batches
from maskperf.data.transforms import (
    flip_boxes,
    flip_points,
    resize_and_mirror,
    resize_boxes,
    resize_points,
    target_size_hw,
)
from maskperf.errors import DataError
from maskperf.seeds import derive_seed
from maskperf.structures import Batch, EvaluationBatch

CHECK_LIMIT_SECONDS = 60.0


def load_sample(index: CocoIndex, position: int, *, data: DataConfig, seed: int, epoch: int, training: bool) -> Sample:
    """Returns one image ready for the network; what is random about it depends on seed, epoch and image id alone.

    Errors: DataError when the image cannot be used.
    """
    image_id = int(index.image_ids[position])
    original_size_hw = (int(index.sizes_hw[position, 0]), int(index.sizes_hw[position, 1]))
    size_hw = target_size_hw(original_size_hw, data.short_side, data.long_side)
    path, is_mirrored = index.image_path(position), False
    if training:
        is_mirrored = is_flipped(seed, epoch, image_id, data.flip_probability)
    bgr = decode_image(path, image_id=image_id, expected_size_hw=original_size_hw, channels="BGR")
    objects = slice(index.object_offsets[position], index.object_offsets[position + 1])
    ring_offsets = index.ring_offsets[objects.start : objects.stop + 1]
    point_offsets = index.point_offsets[ring_offsets[0] : ring_offsets[-1] + 1]
    boxes = resize_boxes(index.boxes[objects], original_size_hw, size_hw)
    points = resize_points(index.points[point_offsets[0] : point_offsets[-1]], original_size_hw, size_hw)
    if is_mirrored:
        boxes, points = flip_boxes(boxes, size_hw[1]), flip_points(points, size_hw[1])
    return Sample(
        bgr=resize_and_mirror(bgr, size_hw, is_mirrored=is_mirrored),
        means_bgr=data.pixel_means_bgr,
        boxes=boxes,
        labels=index.labels[objects],
        ring_offsets=ring_offsets - ring_offsets[0],
        point_offsets=point_offsets - point_offsets[0],
        points=points,
        image_id=image_id,
        sample_seed=derive_seed(seed, "sample", epoch, image_id),
        original_size_hw=original_size_hw,
    )


def is_flipped(seed: int, epoch: int, image_id: int, probability: float) -> bool:
    """Returns whether this image is mirrored in this epoch."""
    uniform = (derive_seed(seed, "flip", epoch, image_id) >> 9) / 2**53  # 53 bits: exact, and below 1
    return uniform < probability


class TrainingLoader:
    """The training batches of one rank, in pinned memory where they go to a CUDA device."""

    def __init__(
        self,
        index: CocoIndex,
        data: DataConfig,
        *,
        seed: int,
        rank: int,
        world: int,
        images_per_rank: int,
        pin_memory: bool = False,
    ):
        self.index = index
        self.data = data
        self.seed = seed
        self.rank = rank
        self.world = world
        self.images_per_rank = images_per_rank
        self.pin_memory = pin_memory

    def batches(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        """Returns the batches of steps first_step, first_step + 1, ... (counted from 0), each made ahead by threads.

        Close the iterator (or use it up) to end its threads.
        Errors: DataError when an image cannot be used; it then lists the faults of all images of the folder.
        """
        stream = stream_batches(
            self.index.sizes_hw,
            seed=self.seed,
            rank=self.rank,
            world=self.world,
            images_per_rank=self.images_per_rank,
            shuffle=self.data.shuffle,
            group_by_aspect=self.data.group_by_aspect,
            first_step=first_step,
        )
        jobs = (partial(self._make, epoch, positions) for epoch, positions in islice(stream, num_steps))
        return _run_ahead(jobs, self.index, self.data)

    def _make(self, epoch: int, positions: np.ndarray) -> Batch:
        load = partial(load_sample, self.index, data=self.data, seed=self.seed, epoch=epoch, training=True)
        samples = [load(int(position)) for position in positions]
        return make_batch(samples, self.data.size_divisor, pin_memory=self.pin_memory)


def evaluation_batches(
    index: CocoIndex, data: DataConfig, *, batch_size: int, rank: int, world: int, pin_memory: bool = False
) -> Iterator[EvaluationBatch]:
    """Returns this rank's batches, made ahead by threads; over all ranks every image comes exactly once.

    Errors: DataError when an image cannot be used; it then lists the faults of all images of the folder.
    """

    def make(positions: np.ndarray) -> EvaluationBatch:
        load = partial(load_sample, index, data=data, seed=0, epoch=0, training=False)
        samples = [load(int(position)) for position in positions]
        return make_evaluation_batch(samples, data.size_divisor, pin_memory=pin_memory)

    order = evaluation_order(index.sizes_hw, batch_size=batch_size, rank=rank, world=world)
    return _run_ahead((partial(make, positions) for positions in order), index, data)


def _run_ahead(jobs: Iterator[Callable[[], Any]], index: CocoIndex, data: DataConfig) -> Iterator[Any]:
    """Returns the jobs' results in order; enough jobs are under way to keep all threads busy."""
    num_threads = max(data.loader_threads, 1)
    num_ahead = max(data.prefetch_batches, num_threads)
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="maskperf-loader")
    pending: deque[Future] = deque()
    try:
        for job in islice(jobs, num_ahead):
            pending.append(pool.submit(job))
        while pending:
            result = pending.popleft().result()
            for job in islice(jobs, 1):
                pending.append(pool.submit(job))
            yield result
    except DataError as error:
        raise DataError(_all_image_faults(error.faults, index)) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _all_image_faults(first_faults: list, index: CocoIndex) -> list:
    """Returns the faults that stopped the loader, then those of the folder's other images."""
    others = check_images(index, CHECK_LIMIT_SECONDS)
    return [*first_faults, *(fault for fault in others if fault not in first_faults)]
