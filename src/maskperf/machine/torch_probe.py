"""Loads torch, measures it, and prints the results as one line of JSON.

The doctor starts this file as a process of its own, so that a torch or a driver that hangs or crashes does not take the
doctor down. It therefore imports nothing of maskperf.
"""

import json
from typing import Any

SIZE_ON_CPU = 1024
SIZE_ON_GPU = 4096
SECONDS = 0.4


def probe() -> dict[str, object]:
    """Return the GPUs that torch sees and float32 GFLOP/s of matrix products on them and on the CPU."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = [torch.device("cuda", index) for index in range(count)]
    return {
        "gpu_names": [torch.cuda.get_device_name(device) for device in devices],
        "gpu_gflops": [_gflops(device, SIZE_ON_GPU) for device in devices],
        "cpu_gflops": _gflops(torch.device("cpu"), SIZE_ON_CPU),
        "cpu_threads": torch.get_num_threads(),
    }


def _gflops(device: Any, size: int) -> float:
    import torch
    from torch.utils.benchmark import Timer

    names = {name: torch.rand(size, size, device=device) for name in ("left", "right")}
    timer = Timer("left @ right", globals=names, num_threads=torch.get_num_threads())
    with torch.cuda.device(-1 if device.index is None else device.index):  # the one that the timer waits for
        return 2 * size**3 / min(timer.blocked_autorange(min_run_time=SECONDS).times) / 1e9


if __name__ == "__main__":
    print(json.dumps(probe()))
