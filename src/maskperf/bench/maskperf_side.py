"""The process of maskperf's own side: python -m maskperf.bench.maskperf_side"""

import time
from collections.abc import Callable

import msgspec
import torch

from maskperf.bench import device_clock
from maskperf.bench.maskperf_data import detected, index, loader, scored
from maskperf.bench.maskperf_network import demo_chunk, infer, step
from maskperf.bench.maskperf_operators import mask_targets, nms, roi_align
from maskperf.bench.peers.serve import serve
from maskperf.bench.peers.torch_work import with_threads
from maskperf.engine.distributed import init_topology
from maskperf.run.environment import describe_environment


def ceiling(inputs: dict) -> tuple[Callable[[], None], dict]:
    """Return work of no interest, and as facts what this machine can do at most in float32, and the environment."""
    clock = time.perf_counter if inputs["clock"] == "wall" else time.process_time
    device = init_topology(inputs["device"]).device
    environment = msgspec.to_builtins(describe_environment())
    facts = {"device": device.type, "environment": environment}
    return lambda: None, device_clock.ceiling(device, torch.float32, clock) | facts


def main() -> None:
    """Serve requests until the parent closes its end."""
    work = (ceiling, step, infer, roi_align, nms, mask_targets, loader, index, scored, detected, demo_chunk)
    benchmarks = {make_work.__name__: with_threads(make_work) for make_work in work}
    serve(benchmarks, torch.cuda if torch.cuda.is_available() else None)


if __name__ == "__main__":
    main()
