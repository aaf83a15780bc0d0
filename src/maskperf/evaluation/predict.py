"""Detections of a whole validation split as COCO results, over all processes."""

from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields

import numpy as np
import torch

from maskperf.config import EvaluationConfig
from maskperf.data.raw_pictures import images_on_device
from maskperf.engine.distributed import Topology, gather_to_first
from maskperf.evaluation.detect import detect
from maskperf.evaluation.results import (
    BoxResults,
    MaskResults,
    PackedTable,
    ResultTable,
    joined,
    packed,
    to_coco_results,
    unpacked,
    without_repeats,
)
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.structures import Detections, EvaluationBatch

GPU_BATCH_SIZE = 16  # on a GPU one image costs as many launches as many; on a CPU padding only adds work
CODING_THREADS = 2
MOST_WAITING = 8  # batches; a slower coder holds the model up rather than filling the memory


def batch_size_for(config: EvaluationConfig, device: torch.device) -> int:
    """Returns the images of one forward pass."""
    return config.batch_size or (GPU_BATCH_SIZE if device.type == "cuda" else 1)


def predict(
    model: MaskRcnn, batches: Iterable[EvaluationBatch], category_ids: np.ndarray, topology: Topology
) -> tuple[BoxResults, MaskResults]:
    """Returns box and mask results of all processes' images, by image id, in the first process; none in others."""
    return collected(gather_detections(model, batches, category_ids, topology))


def collected(tables: Sequence[PackedTable]) -> tuple[BoxResults, MaskResults]:
    """Returns box and mask results by image id, from what `gather_detections` returned; needs no device."""
    table = without_repeats(joined([unpacked(table) for table in tables]))
    return BoxResults(table), MaskResults(table)


def gather_detections(
    model: MaskRcnn, batches: Iterable[EvaluationBatch], category_ids: np.ndarray, topology: Topology
) -> list[PackedTable]:
    """Returns the detections of each process in the first one; an empty list in the others.

    Threads turn the detections of one batch into results while the model is at the next ones.
    The model is switched to evaluation and back. cuDNN's search is off meanwhile: an evaluation meets many sizes of
    canvas, each a few times only, and a search costs more than it finds.
    """
    was_training, was_searching = model.training, torch.backends.cudnn.benchmark
    model.eval()
    torch.backends.cudnn.benchmark = False
    coders = ThreadPoolExecutor(CODING_THREADS, thread_name_prefix="maskperf-coder")
    waiting: deque[Future] = deque()
    tables = []
    try:
        for batch in batches:
            images = images_on_device(batch.images, topology.device, kernels=model.speed.triton_kernels)
            detections = detect(model, images)
            waiting.append(coders.submit(_code, *_to_host(detections, topology.device), batch, category_ids))
            if len(waiting) > MOST_WAITING:
                tables.append(waiting.popleft().result())
        tables.extend(future.result() for future in waiting)
    finally:
        coders.shutdown(wait=True, cancel_futures=True)
        model.train(was_training)
        torch.backends.cudnn.benchmark = was_searching
    return gather_to_first(packed(joined(tables)), topology)


def _to_host(detections: Detections, device: torch.device) -> tuple[Detections, torch.cuda.Event | None]:
    """Returns the detections in the computer's memory, and what to wait for before they are read."""
    if device.type != "cuda":
        return detections, None
    on_host = Detections(**{entry.name: _pinned(getattr(detections, entry.name)) for entry in fields(detections)})
    copied = torch.cuda.Event()
    copied.record()
    return on_host, copied


def _pinned(value: torch.Tensor) -> torch.Tensor:
    """Returns a copy on its way to pinned memory, which alone the host needs not wait for at once."""
    return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)


def _code(
    detections: Detections, copied: torch.cuda.Event | None, batch: EvaluationBatch, category_ids: np.ndarray
) -> ResultTable:
    if copied is not None:
        copied.synchronize()
    boxes, _ = to_coco_results(detections, batch, category_ids)
    return boxes.table
