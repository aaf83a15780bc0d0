"""How long work takes on a device, by the device's own clock where it has one."""

import time
from collections.abc import Callable

import torch

SPIN_CYCLES = 20_000_000  # some milliseconds in which the host gets ahead, so that its launches are not what is timed


def milliseconds_of(work: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Return the milliseconds of one call, the mean of `calls` in a row."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - start) * 1000 / calls
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    torch.cuda._sleep(SPIN_CYCLES)
    before.record()
    for _ in range(calls):
        work()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / calls


def wall_milliseconds_of(work: Callable[[], object], device: torch.device, calls: int) -> float:
    """Return the milliseconds of one of `calls` in a row, from the first on the host to the last on the device."""
    wait_for(device)
    start = time.perf_counter()
    for _ in range(calls):
        work()
    wait_for(device)
    return (time.perf_counter() - start) * 1000 / calls


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_in_turn(measures: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Return what each side measured, A B A B ...: a card that slows down slows both down."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(repeats):
        for name, measure in measures.items():
            found[name].append(measure())
    return found
