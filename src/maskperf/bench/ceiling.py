"""What this machine can do at most, and what this process runs on."""

import time
from collections.abc import Callable

import msgspec
import torch

from maskperf.engine.distributed import init_topology
from maskperf.run.environment import describe_environment

SIDES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}
SECONDS = 0.5


def measure_ceiling(inputs: dict) -> tuple[Callable[[], None], dict]:
    """Return nothing to do and the facts: float32 FLOP/s of the best matrix product, bytes/s of a large copy.

    A copy counts what it reads and what it writes. Each is the best of half a second, by the clock asked for.
    """
    clock = time.perf_counter if inputs["clock"] == "wall" else time.process_time
    torch.set_num_threads(inputs["threads"])
    device = init_topology(inputs["device"]).device
    rates = []
    for side in SIDES[device.type]:
        left, right = (torch.rand(side, side, device=device) for _ in range(2))
        out = torch.empty(side, side, device=device)
        rates.append(2 * side**3 / _best_seconds(lambda x=left, y=right, z=out: torch.mm(x, y, out=z), device, clock))
    source = torch.zeros(COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    copy_seconds = _best_seconds(lambda: target.copy_(source), device, clock)
    facts = {
        "flop_per_second": max(rates),
        "copy_bytes_per_second": 2 * source.numel() * 4 / copy_seconds,
        "device": device.type,
        "environment": msgspec.to_builtins(describe_environment()),
    }
    return _nothing, facts


def _nothing() -> None:
    return None


def _best_seconds(work: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    work()
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, clock() - start)
    return best
