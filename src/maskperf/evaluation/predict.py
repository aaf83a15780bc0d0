"""Detections of a whole validation split as COCO results, over all processes."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from maskperf.config import EvaluationConfig
from maskperf.data.images.raw_images import images_on_device
from maskperf.engine.distributed import Topology, gather_to_first
from maskperf.evaluation.detect import detect
from maskperf.evaluation.results import (
    Results,
    ResultTable,
    box_and_mask_results,
    joined,
    result_table,
    without_repeats,
)
from maskperf.model.conventions import Conventions
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.structures import Detections, EvaluationBatch, Images, begin_copy_to_host

GPU_BATCH_SIZE = 16  # on a GPU one image costs as many launches as many; on a CPU padding only adds work
CODING_THREADS = 2
MAX_WAITING = 64  # batches; a slower coder holds the model up rather than filling the memory


def batch_size_for(config: EvaluationConfig, device: torch.device) -> int:
    """Return the images of one forward pass."""
    return config.batch_size or (GPU_BATCH_SIZE if device.type == "cuda" else 1)


def predict(
    model: MaskRcnn, batches: Iterable[EvaluationBatch], category_ids: np.ndarray, topology: Topology
) -> tuple[Results, Results]:
    """Return box and mask results of all processes' images, by image id, in the first process; none in others."""
    return collected(gathered(detect_all(model, batches, category_ids, topology.device), topology))


def detect_all(
    model: MaskRcnn, batches: Iterable[EvaluationBatch], category_ids: np.ndarray, device: torch.device
) -> "list[Future[ResultTable]]":
    """Return the results of each batch, some of them still in progress: the model has done its part of all.

    Threads turn the detections of one batch into results while the model is at the next ones, and beyond the end.
    The model is switched to evaluation and back.
    """
    was_training = model.training
    model.eval()
    coders = ThreadPoolExecutor(CODING_THREADS, thread_name_prefix="maskperf-coder")
    tables: list[Future[ResultTable]] = []
    try:
        for batch in batches:
            images = images_on_device(batch.images, device, dtype=model.compute_dtype)
            on_host = begin_copy_to_host(detect(model, images))
            tables.append(coders.submit(_code, *on_host, _without_pixels(batch), category_ids, model.conventions))
            if len(tables) > MAX_WAITING:
                tables[-1 - MAX_WAITING].result()
    except BaseException:
        coders.shutdown(wait=True, cancel_futures=True)
        raise
    finally:
        model.train(was_training)
    coders.shutdown(wait=False)  # its threads end when their work is done
    return tables


def gathered(tables: "Sequence[Future[ResultTable]]", topology: Topology) -> list[ResultTable]:
    """Return the results of all processes in the first one, when they are made; an empty list in the others."""
    of_processes = gather_to_first([table.result() for table in tables], topology)
    return [table for of_process in of_processes for table in of_process]


def collected(tables: Sequence[ResultTable]) -> tuple[Results, Results]:
    """Return box and mask results by image id; needs neither the device nor the other processes."""
    return box_and_mask_results(without_repeats(joined(tables)))


def _without_pixels(batch: EvaluationBatch) -> EvaluationBatch:
    """Return the batch as a coder needs it: while it waits, its images must not fill the memory."""
    sizes_hw = batch.images.sizes_hw
    return replace(batch, images=Images(pixels=torch.empty(len(sizes_hw), 3, 0, 0), sizes_hw=sizes_hw))


def _code(
    detections: Detections,
    copied: torch.cuda.Event | None,
    batch: EvaluationBatch,
    category_ids: np.ndarray,
    conventions: Conventions,
) -> ResultTable:
    if copied is not None:
        copied.synchronize()
    return result_table(detections, batch, category_ids, conventions)
