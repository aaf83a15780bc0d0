"""The same work by torchvision on the same card, in turn with ours, by the benchmarks that `--peer` measures.

Not yet run on a GPU.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch

from maskperf.bench.gpu_plan import GpuPlan
from maskperf.bench.plan import CASES, Plan
from maskperf.bench.session import measure_case
from maskperf.errors import ConfigError
from maskperf.recipes import coco

# What matters most comes first, should the time run out.
COMPARED = (
    ("step", "training step"),
    ("infer", "detections"),
    ("roi_align", "7x7 forward+backward"),
    ("roi_align", "7x7 forward"),
    ("roi_align", "14x14 forward+backward"),
    ("nms", "levels"),
    ("nms", "classes"),
    ("mask_targets", "28x28"),
)


def peer_rows(device: torch.device, plan: GpuPlan, cases: tuple[tuple[str, str], ...] = COMPARED) -> Iterator[dict]:
    """Return one row for each case, with both sides; one row that says so where no peer was given.

    A case that one side fails at, for want of memory perhaps, is a row with the error, and the others are measured.
    """
    if not plan.peer_python:
        yield {"left_out": "no peer was given (--peer --peer-python PYTHON: a Python with torchvision for this card)"}
        return
    by_name = {(case.benchmark, case.name): case for case in CASES}
    with tempfile.TemporaryDirectory(prefix="maskperf-bench-gpu-") as folder:
        words = plan_of_session(plan, device, Path(folder))
        for name in cases:
            messages: list[str] = []
            try:
                row = asdict(measure_case(by_name[name], words, Path(folder), messages.append))
            except (ConfigError, RuntimeError) as error:
                yield {"name": " ".join(name), "error": str(error)}
            else:
                yield row | {"messages": messages}


def plan_of_session(plan: GpuPlan, device: torch.device, folder: Path) -> Plan:
    """Return the plan of the benchmarks that are compared elsewhere too, for this card."""
    base = coco()
    config = replace(base, model=plan.model, system=replace(base.system, device=device.type, threads=plan.threads))
    return Plan(
        size_hw=plan.canvases_hw[0],
        objects=plan.objects,
        repeats=plan.repeats,
        threads=plan.threads,
        config=config,
        peer_python=plan.peer_python,
        cache=folder,
        device=device.type,
    )
