"""Loads torch, measures it, and prints the results as one line of JSON.

The doctor starts this file as a process of its own, so that a torch or a driver that hangs or crashes does not take the
doctor down. It therefore imports nothing of maskperf.
"""

import json
import time
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

    left, right = (torch.rand(size, size, device=device) for _ in range(2))

    def seconds_of_one() -> float:
        start = time.perf_counter()
        _ = left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    seconds_of_one()  # the first one also sets things up
    end = time.perf_counter() + SECONDS
    best = seconds_of_one()
    while time.perf_counter() < end:
        best = min(best, seconds_of_one())
    return 2 * size**3 / best / 1e9


if __name__ == "__main__":
    print(json.dumps(probe()))
