"""Detections of a whole validation split as COCO results, over all processes."""

from collections.abc import Iterable

import numpy as np
import torch

from maskperf.engine.distributed import Topology, gather_to_first
from maskperf.evaluation.detect import detect
from maskperf.evaluation.results import drop_duplicates, to_coco_results
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.structures import EvaluationBatch, to_device


def predict(
    model: MaskRcnn, batches: Iterable[EvaluationBatch], category_ids: np.ndarray, topology: Topology
) -> tuple[list[dict], list[dict]]:
    """Returns box and mask results of all processes' images, by image id, in the first process; empty lists in others.

    The model is switched to evaluation and back.
    """
    was_training = model.training
    model.eval()
    boxes, masks = [], []
    try:
        for batch in batches:
            detections = detect(model, to_device(batch.images, topology.device))
            found = to_coco_results(to_device(detections, torch.device("cpu")), batch, category_ids)
            boxes.extend(found[0])
            masks.extend(found[1])
    finally:
        model.train(was_training)
    box_parts = gather_to_first(boxes, topology)
    mask_parts = gather_to_first(masks, topology)
    return _merged(box_parts), _merged(mask_parts)


def _merged(parts: list[list[dict]]) -> list[dict]:
    results = drop_duplicates([entry for part in parts for entry in part])
    return sorted(results, key=lambda entry: entry["image_id"])  # stable: the order within an image stays
