"""Started by torchrun: a small run of two processes in which something is planted.

Arguments: what ("success": the first evaluation meets the targets, known after step 4; or a problem: "loss",
"gradient", "weight"), the process and the update of a problem, a folder for the number of the last step of each
process, then the arguments of the run.
"""

import os
import sys
import threading
from pathlib import Path

import pytest
import torch
from small_runs import change_scores, with_aps

from maskperf.cli.main import main
from maskperf.engine import step as step_module
from maskperf.run import loop as run_module

honest_losses, honest_step = step_module.training_losses, run_module.train_step
planted, victim_rank, victim_update, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
rank, now, is_far_enough = int(os.environ["RANK"]), {"update": 0}, threading.Event()


def is_planted(what):
    return (planted, victim_rank, victim_update) == (what, rank, now["update"])


def step(model, optimizer, batches, *, update, **around):
    now["update"] = update
    if is_planted("weight"):
        with torch.no_grad():
            victim = next(value for value in model.parameters() if value.requires_grad)
            victim[(0,) * victim.dim()] = float("inf")
    result = honest_step(model, optimizer, batches, update=update, **around)
    (folder / f"last_update_{rank}").write_text(str(update))
    if update == 4:
        is_far_enough.set()
    return result


def losses(model, batch):
    result = honest_losses(model, batch)
    if is_planted("loss"):
        object.__setattr__(result, "mask", result.mask * float("inf"))
    if is_planted("gradient"):
        parameter = next(value for value in model.parameters() if value.requires_grad)
        object.__setattr__(result, "mask", result.mask + torch.sqrt(parameter.sum() * 0))
    return result


def success(scores, engine, number):
    assert is_far_enough.wait(200)  # so that the next epoch trains while this one is scored
    return with_aps(scores, 0.5, 0.5)


run_module.train_step, step_module.training_losses = step, losses
if planted == "success":
    change_scores(pytest.MonkeyPatch(), success)
code = main(sys.argv[5:])
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)  # as maskperf.__main__ does under torchrun
