import time

import pytest
import torch

from maskperf.engine.stopwatch import Stopwatch


def test_phases_have_their_own_time_and_repeated_ones_add_up():
    start = time.perf_counter()
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        time.sleep(0.01)
        watch.mark("forward")
        time.sleep(0.02)
        watch.mark("backward")
    whole = time.perf_counter() - start
    seconds = watch.seconds()
    assert list(seconds) == ["forward", "backward"]
    assert seconds["forward"] >= 0.02 and seconds["backward"] >= 0.04
    assert sum(seconds.values()) <= whole


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_on_a_gpu_the_phases_are_those_of_the_device():
    device = torch.device("cuda")
    matrix = torch.randn(4096, 4096, device=device)
    watch = Stopwatch(device)
    for _ in range(20):
        matrix = matrix @ matrix * 1e-4
    watch.mark("forward")
    watch.mark("backward")
    torch.cuda.synchronize()
    seconds = watch.seconds()
    assert seconds["forward"] > 10 * seconds["backward"] > 0
