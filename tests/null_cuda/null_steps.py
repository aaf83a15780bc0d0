"""Training steps on the null CUDA: python null_steps.py IMAGES OBJECTS plain|captured, JSON on the last line.

Runs in a process of its own (see conftest.py).
"""

import json
import sys
from dataclasses import replace

import torch
from null_device import peak_bytes, recording, reset_peak

from maskperf.bench.gpu_steps import make_stepper, synthetic_batch
from maskperf.bench.maskperf_network import Stepper
from maskperf.bench.plan import GpuPlan
from maskperf.config import SpeedConfig
from maskperf.engine.distributed import claim_gpu

CANVAS_HW = (800, 1344)
PROPOSALS = 6000
WARM_UP_STEPS = 5  # plain, recorded and replayed for the first time
GIB = 2**30


def made_stepper(images: int, objects: int, *, captured: bool) -> Stepper:
    """Return training steps of the full size on synthetic pictures, with as many proposals as batches of 16 have."""
    device = claim_gpu(torch.device("cuda"))
    plan = GpuPlan(objects=objects, model=replace(GpuPlan().model, proposals_train=PROPOSALS))
    batch = synthetic_batch(plan, CANVAS_HW, images, device)
    return make_stepper(plan, SpeedConfig(without=() if captured else ("captured_steps",)), batch, device)


def counts(images: int, objects: int, *, captured: bool) -> dict[str, object]:
    """Return what one step does, once nothing is new any more, and what happened before."""
    stepper = made_stepper(images, objects, captured=captured)
    torch.cuda.reset_peak_memory_stats()
    reset_peak()
    with recording() as before:
        for _ in range(WARM_UP_STEPS):
            stepper.step()
    peak_allocated_gib = torch.cuda.max_memory_allocated() / GIB
    with recording() as step:
        stepper.step()
    return {
        "is_captured": stepper.is_captured,
        "messages": stepper.messages,
        "warm_up_violations": before.named("violation"),
        "warm_up_plans": before.number("plan"),
        "violations": step.named("violation"),
        "syncs": step.named("sync"),
        "plans": step.number("plan"),
        "allocations": step.named("allocation"),
        "copies": step.named("copy"),
        "launches": step.launches(),
        "graph_nodes": step.graph_nodes(),
        "peak_allocated_gib": peak_allocated_gib,
        "peak_device_gib": peak_bytes() / GIB,
    }


if __name__ == "__main__":
    images, objects, way = sys.argv[1:]
    print(json.dumps(counts(int(images), int(objects), captured=way == "captured")))
