import threading
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import pytest
import torch

from maskperf.config import SpeedConfig, TechniqueName
from maskperf.ops.products import own_class_logits
from maskperf.techniques import TECHNIQUE_NAMES, Techniques, active, chosen_techniques, plain, using


def names_of(techniques):
    return {name for name in TECHNIQUE_NAMES if getattr(techniques, name)}


@pytest.mark.parametrize(
    ("speed", "off"),
    [
        (SpeedConfig(), ()),
        (SpeedConfig(without=("triton_kernels", "packed_positives")), ("triton_kernels", "packed_positives")),
        (SpeedConfig(without=("all",)), TECHNIQUE_NAMES),
        (SpeedConfig(without=("triton_kernels", "all")), TECHNIQUE_NAMES),
    ],
)
def test_a_configuration_chooses_the_techniques(speed, off):
    assert names_of(chosen_techniques(speed)) == set(TECHNIQUE_NAMES) - set(off)


def test_the_configuration_knows_every_technique():
    assert get_args(TechniqueName) == TECHNIQUE_NAMES


def test_blocks_nest_and_an_error_ends_its_block():
    assert active() == Techniques()
    with using(plain()):
        with pytest.raises(KeyError), using(Techniques()):
            raise KeyError
        assert active() == plain()
    assert active() == Techniques()


def test_threads_have_techniques_of_their_own():
    both_are_inside = threading.Barrier(2, timeout=30)

    def work(techniques):
        before = active()
        with using(techniques):
            both_are_inside.wait()
            inside = active()
            both_are_inside.wait()
        return before, inside

    chosen = (plain(), Techniques().without("triton_kernels"))
    with using(chosen[0]), ThreadPoolExecutor(2) as threads:  # a thread inherits nothing
        found = list(threads.map(work, chosen))
        assert active() == chosen[0]
    assert found == [(Techniques(), techniques) for techniques in chosen]


def test_a_backward_follows_its_forward_and_not_the_thread_that_runs_it(monkeypatch):
    asked = []
    monkeypatch.setattr("maskperf.ops.products.uses_kernels", lambda device: bool(asked.append(active())))
    rows, weight = torch.ones(1, 2, 3, dtype=torch.bfloat16, requires_grad=True), torch.ones(2, 3, dtype=torch.bfloat16)
    with using(plain()):
        logits = own_class_logits(rows, weight, torch.zeros(2), torch.tensor([1]))
    with ThreadPoolExecutor(1) as threads:
        threads.submit(logits.sum().backward).result()
    assert asked == [plain()] and rows.grad is not None
