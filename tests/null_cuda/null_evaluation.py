"""Detections of full-size pictures on the null CUDA: python null_evaluation.py, JSON on the last line."""

import json
import threading

import numpy as np
import torch
from null_command_line import ignore_numbers
from null_device import recording
from null_steps import CANVAS_HW

from maskperf.bench.plan import GpuPlan
from maskperf.config import EvaluationConfig
from maskperf.engine.build import build_model
from maskperf.engine.distributed import Topology, claim_gpu
from maskperf.engine.precision import set_precision
from maskperf.evaluation.predict import batch_size_for, predict
from maskperf.structures import EvaluationBatch, Images

BATCHES = 3


def batch_of(images: int) -> EvaluationBatch:
    """Return pictures in pinned memory, as the loader makes them."""
    pixels = torch.zeros(images, 3, *CANVAS_HW).contiguous(memory_format=torch.channels_last)
    return EvaluationBatch(
        images=Images(pixels=pixels.pin_memory(), sizes_hw=torch.tensor([CANVAS_HW] * images).pin_memory()),
        image_ids=torch.arange(images),
        original_sizes_hw=torch.tensor([(60, 100)] * images),
    )


def counts() -> dict[str, object]:
    """Return what some batches cost, once nothing is new any more."""
    device = claim_gpu(torch.device("cuda"))
    model, _ = build_model(GpuPlan().model, 1)
    set_precision(model.to(device), "auto", device, lambda line: None)
    images = batch_size_for(EvaluationConfig(), device)
    topology, category_ids = Topology(device=device), np.arange(1, 91)
    batch = batch_of(images)
    predict(model, [batch], category_ids, topology)
    with recording() as calls:
        predict(model, [batch] * BATCHES, category_ids, topology)
    main = threading.get_native_id()
    return {
        "images": images,
        "launches_an_image": calls.launches() / (images * BATCHES),
        # The threads that turn detections into results wait for the copies of theirs; the model's thread goes on.
        "waits_a_batch": sum(call.kind == "sync" and call.thread == main for call in calls.calls) / BATCHES,
        "copies": calls.named("copy"),
        "plans": calls.number("plan"),
        "violations": calls.named("violation"),
    }


if __name__ == "__main__":
    ignore_numbers()
    print(json.dumps(counts()))
