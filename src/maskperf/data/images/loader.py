"""Batches in the right order, made ahead of time by threads."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch

from maskperf.config import DataConfig
from maskperf.data.coco.index import CocoIndex
from maskperf.data.images.augmentation import augmented, is_augmented
from maskperf.data.images.buckets import Buckets, bucket_sizes, group_numbers, image_buckets
from maskperf.data.images.collate import Packing, Sample, make_batch, make_evaluation_batch
from maskperf.data.images.decode import check_images, decode_at
from maskperf.data.images.objects import AnnotatedImage, Objects, packed, unpacked
from maskperf.data.images.raw_images import UploadBuffers
from maskperf.data.images.sampler import Sampling, aspect_groups, bucket_stream, evaluation_order, stream_batches
from maskperf.data.images.transforms import PILLOW_RULES, move_boxes, move_points, target_size_hw
from maskperf.errors import DataError, Problem
from maskperf.seeds import derive_seed
from maskperf.structures import Batch, EvaluationBatch, pinned
from maskperf.techniques import active

PREFETCH_BATCHES = 2  # made ahead by each thread
CHECK_LIMIT_SECONDS = 60.0


def load_sample(index: CocoIndex, position: int, *, data: DataConfig, seed: int, epoch: int, training: bool) -> Sample:
    """Return one image and its targets; what is random about it depends on seed, epoch and image id alone.

    Errors: DataError when the image cannot be used.
    """
    image_id = int(index.image_ids[position])
    draw = partial(_uniform, seed, epoch, image_id)
    is_mirrored = training and draw("flip") < data.flip_probability
    if training and is_augmented(data):
        read = partial(_read, index, data=data)
        image, size_hw = augmented(read, position, num_images=len(index.image_ids), data=data, draw=draw)
        bgr, old_hw = image.bgr, image.size_hw
        objects = packed(image.objects, with_runs=index.run_ends is not None or data.copy_paste > 0)
    else:
        bgr = decode_at(index, position, max_pixels=data.max_image_pixels, channels="BGR")
        old_hw, objects = (bgr.shape[0], bgr.shape[1]), Objects(**index.objects_at(position))
        size_hw = target_size_hw(old_hw, data.short_side, data.long_side, data.resize)
    moved = replace(
        objects,
        boxes=move_boxes(objects.boxes, old_hw, size_hw, is_mirrored=is_mirrored, rule=data.resize),
        points=move_points(objects.points, old_hw, size_hw, is_mirrored=is_mirrored, rule=data.resize),
    )
    return Sample(
        **vars(moved),
        bgr=bgr,
        size_hw=size_hw,
        is_mirrored=is_mirrored,
        means_bgr=data.pixel_means_bgr,
        resize=data.resize,
        image_id=image_id,
        sample_seed=derive_seed(seed, "sample", epoch, image_id),
        original_size_hw=old_hw,
    )


def _read(index: CocoIndex, position: int, *, data: DataConfig) -> AnnotatedImage:
    bgr = decode_at(index, position, max_pixels=data.max_image_pixels, channels="BGR")
    return AnnotatedImage(bgr, unpacked(Objects(**index.objects_at(position))))


def _uniform(seed: int, epoch: int, image_id: int, purpose: str, *more: int) -> float:
    """Return a number from 0 to below 1 for one purpose, the same whenever it is asked for."""
    return (derive_seed(seed, purpose, epoch, image_id, *more) >> 9) / 2**53  # 53 bits: exact, and below 1


@dataclass(frozen=True, kw_only=True)
class Feeding:
    """How images come together and are handed over. The defaults are the reference's way."""

    aspect_buckets: bool = False  # batches of images of one bucket, not only of wide or of others
    static_sizes: bool = False  # every batch is full and fills a bucket, the same in all processes: few shapes
    raw_images: bool = False  # images as decoded, for `prepare_images`


def feeding_for(device: torch.device) -> Feeding:
    """Return what the active techniques mean for this device: few sizes and raw images are for a GPU alone."""
    techniques, is_cuda = active(), device.type == "cuda"
    return Feeding(
        aspect_buckets=techniques.aspect_buckets,
        static_sizes=techniques.aspect_buckets and is_cuda,
        raw_images=techniques.device_preprocessing and is_cuda,
    )


def static_buckets(data: DataConfig, feeding: Feeding) -> Buckets:
    """Return the padded sizes that training batches have; none where each is as large as its images need."""
    return bucket_sizes(data) if feeding.static_sizes and data.group_by_aspect else ()


AS_THE_REFERENCE = Feeding()


@dataclass(frozen=True, eq=False)
class TrainingLoader:
    """The training batches of one rank, in pinned memory where they go to a CUDA device."""

    index: CocoIndex
    data: DataConfig
    _: KW_ONLY
    seed: int
    rank: int
    world: int
    images_per_rank: int
    pin_memory: bool = False
    feeding: Feeding = AS_THE_REFERENCE

    def batches(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        """Yield the batches of steps first_step, first_step + 1, ... (counted from 0), made ahead by threads.

        Raw images become ready by `prepare_images`; other batches pass through it.
        Close the iterator (or use it up) to end its threads.
        Errors: DataError when an image cannot be used; it then lists the problems of all images of the folder.
        """
        shared = {name: getattr(self, name) for name in ("seed", "rank", "world", "images_per_rank")}
        sampling = Sampling(**shared, shuffle=self.data.shuffle)
        if static_buckets(self.data, self.feeding):
            sizes = image_buckets(self.index.sizes_hw, self.data, min_images=self.world * self.images_per_rank)
            stream = bucket_stream(group_numbers(sizes), sampling)
        else:
            sizes, stream = None, stream_batches(self.groups(), sampling)
        packing = _packing(self.feeding, self.data, self.pin_memory)
        steps = islice(stream, first_step, first_step + num_steps)
        jobs = (partial(self._make, passes, positions, sizes, packing) for passes, positions in steps)
        return _run_ahead(jobs, self.index, self.data)

    def groups(self) -> np.ndarray:
        """Return a number for each image; images of different numbers are never in one batch."""
        if not self.data.group_by_aspect:
            return np.zeros(len(self.index.sizes_hw), np.int64)
        if self.feeding.aspect_buckets:
            return group_numbers(image_buckets(self.index.sizes_hw, self.data))
        return aspect_groups(self.index.sizes_hw)

    def _make(self, passes: np.ndarray, positions: np.ndarray, sizes: np.ndarray | None, packing: Packing) -> Batch:
        """Return the batch of these images, each with the random draws of its pass, in the one bucket of `sizes`."""
        load = partial(load_sample, self.index, data=self.data, seed=self.seed, training=True)
        drawn = zip(positions.tolist(), passes.tolist(), strict=True)
        samples = [load(position, epoch=number) for position, number in drawn]
        if sizes is not None:
            packing = replace(packing, buckets=(tuple(sizes[positions[0]].tolist()),))
        batch = make_batch(samples, self.data.size_divisor, packing)
        return pinned(batch) if self.pin_memory else batch


def evaluation_batches(
    index: CocoIndex,
    data: DataConfig,
    *,
    batch_size: int,
    rank: int,
    world: int,
    pin_memory: bool = False,
    feeding: Feeding = AS_THE_REFERENCE,
) -> Iterator[EvaluationBatch]:
    """Yield this rank's batches, made ahead by threads; over all ranks every image comes exactly once.

    Each is as large as its largest image needs, never a bucket: scores must not depend on the feeding.
    Errors: DataError when an image cannot be used; it then lists the problems of all images of the folder.
    """
    packing = _packing(feeding, data, pin_memory)

    def make(positions: np.ndarray) -> EvaluationBatch:
        load = partial(load_sample, index, data=data, seed=0, epoch=0, training=False)
        samples = [load(position) for position in positions.tolist()]
        batch = make_evaluation_batch(samples, data.size_divisor, packing)
        return pinned(batch) if pin_memory else batch

    order = evaluation_order(index.sizes_hw, batch_size=batch_size, rank=rank, world=world)
    return _run_ahead((partial(make, positions) for positions in order), index, data)


def hands_over_bytes(feeding: Feeding, data: DataConfig) -> bool:
    """Return whether images go to the device as they were decoded: there they are resized by Pillow's rule alone."""
    return feeding.raw_images and data.resize in PILLOW_RULES


def _packing(feeding: Feeding, data: DataConfig, pin_memory: bool) -> Packing:
    max_waiting = (1 + PREFETCH_BATCHES) * data.loader_threads
    is_raw = hands_over_bytes(feeding, data)
    buffers = UploadBuffers(max_waiting=max_waiting, pin_memory=pin_memory) if is_raw else None
    return Packing(pin_memory=pin_memory, buffers=buffers)


def _run_ahead(jobs: Iterator[Callable[[], Any]], index: CocoIndex, data: DataConfig) -> Iterator[Any]:
    """Yield the jobs' results in order; enough jobs are in progress to keep all threads busy."""
    num_threads = max(data.loader_threads, 1)
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="maskperf-loader")
    pending: deque[Future] = deque()
    try:
        pending.extend(pool.submit(job) for job in islice(jobs, PREFETCH_BATCHES * num_threads))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(job) for job in islice(jobs, 1))
            yield result
    except DataError as error:
        raise DataError(_all_image_problems(error.problems, index, data)) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _all_image_problems(first_problems: list[Problem], index: CocoIndex, data: DataConfig) -> list[Problem]:
    """Return the problems that stopped the loader, then those of the other images as far as the time limit allows."""
    positions = range(len(index.image_ids))
    others, num_unchecked = check_images(
        index, positions, max_pixels=data.max_image_pixels, limit_seconds=CHECK_LIMIT_SECONDS
    )
    problems = [*first_problems, *(problem for _, problem in others if problem not in first_problems)]
    value = f"{num_unchecked} of {len(positions)}"
    message = f"The check of all images stopped after {CHECK_LIMIT_SECONDS:g} s; so many were not checked."
    fix = "Correct the errors listed, then run maskperf doctor, which checks all images."
    at = {"file": str(index.image_folder), "where": "all images", "field": "file"}
    return [*problems, Problem(**at, value=value, message=message, fix=fix)] if num_unchecked else problems
