"""Milliseconds of work on a device, and the rates of its simplest work."""

import importlib
import importlib.util
import time
from collections.abc import Callable

import torch

CALLS = 5  # of one measurement by the clock of the host
WARM_UP_MILLISECONDS, MEASURED_MILLISECONDS = 2, 10  # of one measurement by Triton


def milliseconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the milliseconds of one call: on a GPU with Triton the median by the device's clock, L2 cache flushed."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        do_bench = importlib.import_module("triton.testing").do_bench
        return do_bench(work, warmup=WARM_UP_MILLISECONDS, rep=MEASURED_MILLISECONDS, return_mode="median")
    return wall_milliseconds_of(work, device, CALLS)


def wall_milliseconds_of(work: Callable[[], object], device: torch.device, calls: int) -> float:
    """Return the milliseconds of one of `calls` in a row, from the first on the host to the last on the device."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        work()
    synchronize(device)
    return (time.perf_counter() - start) * 1000 / calls


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product_rate(seconds_of: Callable[[Callable], float], side: int, device: torch.device, dtype: torch.dtype) -> float:
    """Return FLOP/s of a square matrix product; `seconds_of` times one call of the work it is given."""
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * side**3 / seconds_of(lambda: torch.mm(left, right, out=out))


def copy_rate(seconds_of: Callable[[Callable], float], numbers: int, device: torch.device) -> float:
    """Return bytes/s of a copy of float32 numbers: what is read and what is written together."""
    source = torch.zeros(numbers, device=device)
    target = torch.empty_like(source)
    return 2 * 4 * numbers / seconds_of(lambda: target.copy_(source))
