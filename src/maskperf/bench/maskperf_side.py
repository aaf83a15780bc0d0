"""The process of maskperf's own side: python -m maskperf.bench.maskperf_side"""

import time
from collections.abc import Callable

import msgspec
import torch

from maskperf.bench.device_clock import copy_rate, product_rate, synchronize
from maskperf.bench.maskperf_data import detected, index, loader, scored
from maskperf.bench.maskperf_network import demo_chunk, infer, step
from maskperf.bench.maskperf_operators import mask_targets, nms, roi_align
from maskperf.bench.peers.serve import serve
from maskperf.bench.peers.torch_work import with_threads
from maskperf.engine.distributed import init_topology
from maskperf.run.environment import describe_environment

SIDES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
COPIED_NUMBERS = {"cpu": 2**26, "cuda": 2**29}
CEILING_SECONDS = 0.5


def ceiling(inputs: dict) -> tuple[Callable[[], None], dict]:
    """Return work of no interest, and as facts what this machine can do at most and the environment.

    The facts are float32 FLOP/s of the best matrix product and bytes/s of a large copy, each the best of half a
    second by the clock of the inputs.
    """
    clock = time.perf_counter if inputs["clock"] == "wall" else time.process_time
    device = init_topology(inputs["device"]).device

    def best_seconds(work: Callable[[], object]) -> float:
        work()
        best, end = float("inf"), time.perf_counter() + CEILING_SECONDS
        while time.perf_counter() < end:
            start = clock()
            work()
            synchronize(device)
            best = min(best, clock() - start)
        return best

    return lambda: None, {
        "flop_per_second": max(product_rate(best_seconds, side, device, torch.float32) for side in SIDES[device.type]),
        "copy_bytes_per_second": copy_rate(best_seconds, COPIED_NUMBERS[device.type], device),
        "device": device.type,
        "environment": msgspec.to_builtins(describe_environment()),
    }


def main() -> None:
    """Serve requests until the parent closes its end."""
    work = (ceiling, step, infer, roi_align, nms, mask_targets, loader, index, scored, detected, demo_chunk)
    benchmarks = {make_work.__name__: with_threads(make_work) for make_work in work}
    serve(benchmarks, torch.cuda if torch.cuda.is_available() else None)


if __name__ == "__main__":
    main()
