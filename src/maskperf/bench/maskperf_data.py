"""maskperf in the benchmarks of data: images to batches, annotations to an index, detections to scores."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import torch
from pycocotools import mask as coco_masks

from maskperf.bench.peers.torch_work import read_arrays
from maskperf.data.coco.index import read_coco
from maskperf.data.images.loader import Feeding, TrainingLoader
from maskperf.evaluation.results import ResultTable, box_and_mask_results, joined, result_table, without_repeats
from maskperf.evaluation.scores import GroundTruth, score
from maskperf.overrides import from_json_text
from maskperf.structures import Detections, EvaluationBatch, Images, RawImages
from maskperf.techniques import chosen_techniques

READ_ONCE = (
    "import sys; from pathlib import Path; from maskperf.data.coco.index import read_coco; "
    "read_coco(Path(sys.argv[1]), Path('.'), training=True)"
)
READ_SECONDS = 900.0


def loader(inputs: dict) -> tuple[Callable[[], None], dict]:
    """Return one pass over all images by one thread: to batches of a CPU, or only decoded, as for a GPU."""
    torch.set_num_threads(1)
    config = from_json_text(inputs["config"])
    images_per_batch = inputs["images_per_batch"]
    path = Path(inputs["pictures_json"])
    index = read_coco(path, path.parent, training=True)
    data = replace(config.data, loader_threads=1)
    aspect_buckets = chosen_techniques(config.speed).aspect_buckets
    feeding = Feeding(aspect_buckets=aspect_buckets, raw_images=inputs["case"] == "decoded alone")
    batches = TrainingLoader(index, data, seed=1, rank=0, world=1, images_per_rank=images_per_batch, feeding=feeding)
    steps = len(index.image_ids) // images_per_batch

    def work() -> None:
        for batch in batches.batches(0, steps):
            assert len(batch.image_ids) == images_per_batch
            if isinstance(batch.images, RawImages):
                batch.images.release(None)

    return work, {"items": steps * images_per_batch, "item": "images"}


def index(inputs: dict) -> tuple[Callable[[], None], dict]:
    """Return one reading of a large JSON: under a new name, or under one that was read before."""
    path = Path(inputs["large_json"])
    facts = {"mib": path.stat().st_size / 2**20}

    def read_again() -> None:
        read_coco(path, path.parent, training=True)

    def read_first() -> None:
        # The folder lies beside the file: a hard link costs nothing there, and is a name that no cache knows.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            link = Path(folder) / path.name
            os.link(path, link)
            read_coco(link, path.parent, training=True)

    if inputs["case"] == "first read":
        return read_first, facts
    # In another process: the memory of the first reading must not count here.
    subprocess.run([sys.executable, "-c", READ_ONCE, str(path)], check=True, timeout=READ_SECONDS)
    return read_again, facts


def scored(inputs: dict) -> tuple[Callable[[], dict], dict]:
    """Return one evaluation of the box and mask results of a whole validation split."""
    truth, seconds = _ground_truth(inputs)
    table = _read_results(inputs["boxes"], inputs["masks"])
    facts = {"items": len(truth.image_sizes_hw), "item": "images", "truth_seconds": seconds}
    return lambda: _aps(truth, table), facts


def _ground_truth(inputs: dict) -> tuple[GroundTruth, float]:
    """Return the ground truth and the seconds of reading it, with what is only read when it is needed."""
    start = time.perf_counter()
    truth = GroundTruth(inputs["large_json"])
    score(truth, [], [], engine="fast")
    return truth, time.perf_counter() - start


def _aps(truth: GroundTruth, table: ResultTable) -> dict[str, float]:
    scores = score(truth, *box_and_mask_results(table), engine="fast")
    return {"box_ap": scores.box_ap, "mask_ap": scores.mask_ap}


def _read_results(box_file: str, mask_file: str) -> ResultTable:
    """Return the results in the form of the network's predictions."""
    boxes = msgspec.json.decode(Path(box_file).read_bytes())
    masks = [entry["segmentation"] for entry in msgspec.json.decode(Path(mask_file).read_bytes())]
    # Trap: pycocotools' area fails for more than 255 masks at once.
    areas = [coco_masks.area(masks[start : start + 100]) for start in range(0, len(masks), 100)]
    return ResultTable(
        image_ids=np.array([entry["image_id"] for entry in boxes]),
        category_ids=np.array([entry["category_id"] for entry in boxes]),
        scores=np.array([entry["score"] for entry in boxes]),
        boxes_xywh=np.array([entry["bbox"] for entry in boxes]),
        mask_areas=np.concatenate(areas).astype(np.int64),
        sizes_hw=np.array([mask["size"] for mask in masks]),
        codes=np.array([mask["counts"] for mask in masks], object),
    )


def detected(inputs: dict) -> tuple[Callable[[], dict], dict]:
    """Return one pass over all detections, from the network's output to the scores of boxes and masks."""
    truth, _ = _ground_truth(inputs)
    found = {name: rows.split(1) for name, rows in read_arrays(inputs["detections"]).items()}
    outputs = [_output(dict(zip(found, rows, strict=True))) for rows in zip(*found.values(), strict=True)]
    category_ids = np.array(sorted(truth.category_names))

    def work() -> dict:
        start = time.perf_counter()
        tables = [result_table(*output, category_ids) for output in outputs]
        table = without_repeats(joined(tables))
        coded_seconds = time.perf_counter() - start
        return _aps(truth, table) | {"coded_seconds": coded_seconds}

    return work, {"items": len(outputs), "item": "images"}


def _output(rows: dict[str, torch.Tensor]) -> tuple[Detections, EvaluationBatch]:
    """Return the network's output for one image; the pixels themselves are not needed any more."""
    detections = Detections(
        boxes=rows["boxes"],
        scores=rows["scores"],
        labels=rows["labels"],
        valid=torch.ones_like(rows["labels"], dtype=torch.bool),
        mask_probs=rows["probabilities"],
    )
    images = Images(pixels=torch.zeros(1, 3, 1, 1), sizes_hw=rows["sizes_hw"])
    return detections, EvaluationBatch(images=images, image_ids=rows["image_ids"], original_sizes_hw=rows["sizes_hw"])
