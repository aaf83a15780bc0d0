"""Detections of a whole validation split as COCO results, over all processes."""

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from maskperf.data.raw_pictures import images_on_device
from maskperf.engine.distributed import Topology, gather_to_first
from maskperf.evaluation.detect import detect
from maskperf.evaluation.results import (
    BoxResults,
    MaskResults,
    ResultTable,
    joined,
    to_coco_results,
    without_repeats,
)
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.structures import Detections, EvaluationBatch, to_device

CODING_THREADS = 2
MOST_WAITING = 8  # batches; a slower coder holds the model up rather than filling the memory


def predict(
    model: MaskRcnn, batches: Iterable[EvaluationBatch], category_ids: np.ndarray, topology: Topology
) -> tuple[BoxResults, MaskResults]:
    """Returns box and mask results of all processes' images, by image id, in the first process; none in others.

    Threads turn the detections of one batch into results while the model is at the next ones.
    The model is switched to evaluation and back.
    """
    was_training = model.training
    model.eval()
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
    table = without_repeats(joined(gather_to_first(joined(tables), topology)))
    return BoxResults(table), MaskResults(table)


def _to_host(detections: Detections, device: torch.device) -> tuple[Detections, torch.cuda.Event | None]:
    """Returns the detections in the computer's memory, and what to wait for before they are read."""
    on_host = to_device(detections, torch.device("cpu"))
    if device.type != "cuda":
        return on_host, None
    copied = torch.cuda.Event()
    copied.record()
    return on_host, copied


def _code(
    detections: Detections, copied: torch.cuda.Event | None, batch: EvaluationBatch, category_ids: np.ndarray
) -> ResultTable:
    if copied is not None:
        copied.synchronize()
    boxes, _ = to_coco_results(detections, batch, category_ids)
    return boxes.table
