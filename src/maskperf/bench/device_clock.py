"""Milliseconds of work on a device, and the rates of its simplest work."""

import importlib
import importlib.util
import time
from collections.abc import Callable
from functools import partial

import torch

CALLS = 5  # of one measurement by the clock of the host
PRODUCT_SIDES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
COPIED_NUMBERS = {"cpu": 2**26, "cuda": 2**29}
CEILING_SECONDS = 0.5
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


def ceiling(
    device: torch.device, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return what a device can do at most, each the best of half a second by the clock.

    FLOP/s of a square matrix product in this type, and bytes/s of a large copy: read and written together.
    """

    def best_seconds(work: Callable[[], object]) -> float:
        work()
        best, end = float("inf"), time.perf_counter() + CEILING_SECONDS
        while time.perf_counter() < end:
            start = clock()
            work()
            synchronize(device)
            best = min(best, clock() - start)
        return best

    def product_rate(side: int) -> float:
        left, right, out = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(3))
        return 2 * side**3 / best_seconds(partial(torch.mm, left, right, out=out))

    source, target = (torch.zeros(COPIED_NUMBERS[device.type], device=device) for _ in range(2))
    return {
        "flop_per_second": max(map(product_rate, PRODUCT_SIDES[device.type])),
        "copy_bytes_per_second": 2 * source.nbytes / best_seconds(partial(target.copy_, source)),
    }
