import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_batches import small_batch, small_model
from small_runs import small_run_words

from maskperf.config import OptimizerConfig
from maskperf.engine.distributed import Topology
from maskperf.engine.optimizer import build_optimizer
from maskperf.engine.step import train_step
from maskperf.errors import EXIT_DONE

TESTS = Path(__file__).parents[1]
ALONE = Topology(rank=0, world=1, local_rank=0, device=torch.device("cpu"))


def _torchrun(*words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    done = _torchrun(str(TESTS / "engine" / "two_process_step.py"), str(folder))
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def one_process():
    """Returns losses, gradients and weights after a step on the same two images as micro-batches."""
    model = small_model(seed=0)
    config = OptimizerConfig(batch_size=2, accumulation_steps=2, learning_rate=0.01, warmup_steps=0)
    batches = [small_batch(0), small_batch(1)]
    result = train_step(model, build_optimizer(model, config), batches, update=1, config=config, topology=ALONE)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"losses": result.losses, "gradients": gradients, "weights": model.state_dict()}


@pytest.mark.parametrize("what", ["gradients", "weights"])
def test_two_processes_equal_one_with_the_same_images(what, two_processes, one_process):
    for rank in range(2):
        assert two_processes[rank][what].keys() == one_process[what].keys()
        for name, wanted in one_process[what].items():
            scale = float(wanted.abs().max()) or 1.0
            torch.testing.assert_close(two_processes[rank][what][name], wanted, rtol=1e-4, atol=1e-5 * scale)


def test_losses_are_means_over_the_processes(two_processes, one_process):
    for rank in range(2):
        torch.testing.assert_close(two_processes[rank]["losses"], one_process["losses"], rtol=1e-5, atol=1e-6)


def test_the_demo_runs_under_torchrun_on_two_processes(tmp_path):
    words = small_run_words(tmp_path, "evaluation.box_target=0", "evaluation.mask_target=0")
    done = _torchrun("-m", "maskperf", *words)
    assert done.returncode == EXIT_DONE, done.stderr
    assert done.stdout.count("done, without targets") == 1  # one process speaks
    assert (tmp_path / "run" / "results.json").is_file()
