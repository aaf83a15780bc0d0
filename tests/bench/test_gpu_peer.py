import io
import os
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from test_gpu import CPU, TINY

from maskperf.bench import gpu_peer
from maskperf.bench.gpu_peer import COMPARED, peer_rows, plan_of_session
from maskperf.bench.gpu_view import show
from maskperf.bench.plan import CASES
from maskperf.bench.session import CaseResult

PEER = os.environ.get("MASKPERF_PEER_PYTHON", "")


def test_without_a_peer_one_row_says_so():
    rows = list(peer_rows(CPU, TINY))
    assert len(rows) == 1
    assert "--peer-python" in rows[0]["left_out"]


def test_every_case_that_is_compared_exists_with_torchvision_as_its_peer():
    peers = {(case.benchmark, case.name): [peer.name for peer in case.peers] for case in CASES}
    assert all("torchvision" in peers[name] for name in COMPARED)


def test_the_session_is_told_device_model_and_sizes(tmp_path):
    plan = plan_of_session(replace(TINY, peer_python="/peer/python"), torch.device("cuda", 0), tmp_path)
    assert (plan.device, plan.config.system.device) == ("cuda", "cuda")
    assert (plan.size_hw, plan.objects, plan.peer_python) == ((64, 96), 2, "/peer/python")
    assert plan.config.model == TINY.model


def test_a_case_that_fails_is_a_row_and_the_others_are_measured(monkeypatch):
    def measure(case, plan, folder, say):
        if case.benchmark == "step":
            raise RuntimeError("torchvision failed:\nTraceback\nOutOfMemoryError: full")
        say("a word")
        return CaseResult(benchmark=case.benchmark, case=case.name, sides=[])

    monkeypatch.setattr(gpu_peer, "measure_case", measure)
    failed, measured = peer_rows(CPU, replace(TINY, peer_python="/peer/python"), COMPARED[:2])
    assert failed["name"] == "step training step" and failed["error"].endswith("OutOfMemoryError: full")
    assert measured == {"benchmark": "infer", "case": "detections", "sides": [], "messages": ["a word"]}
    console = Console(file=io.StringIO(), width=200)
    show(console, {"sections": {"peer": {"rows": [failed], "error": "", "seconds": 1.0}}})
    assert console.file.getvalue().strip() == "peer, step training step: OutOfMemoryError: full"


@pytest.mark.skipif(not PEER, reason="MASKPERF_PEER_PYTHON names no Python with torchvision")
def test_a_case_is_measured_on_both_sides():
    rows = list(peer_rows(CPU, replace(TINY, peer_python=PEER), (("nms", "classes"),)))
    assert [side["name"] for side in rows[0]["sides"]] == ["maskperf", "torchvision"]
    assert rows[0]["sides"][1]["times_as_long"]["median"] > 0
