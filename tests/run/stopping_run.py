"""Started by torchrun in test_stop.py: a small run in which one process meets a planted problem at one step.

Arguments: the problem ("loss", "gradient", "weight"), the process, the update, then the arguments of the run.
"""

import os
import sys

import torch

from maskperf.cli.main import main
from maskperf.engine import step as step_module
from maskperf.run import loop as run_module

honest_losses, honest_step = step_module.training_losses, run_module.train_step
problem, victim_rank, victim_update = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
now = {"update": 0}


def is_now() -> bool:
    return int(os.environ.get("RANK", "0")) == victim_rank and now["update"] == victim_update


def step(model, optimizer, batches, *, update, **around):
    now["update"] = update
    if problem == "weight" and is_now():
        with torch.no_grad():
            victim = next(value for value in model.parameters() if value.requires_grad)
            victim[(0,) * victim.dim()] = float("inf")
    return honest_step(model, optimizer, batches, update=update, **around)


def losses(model, batch):
    result = honest_losses(model, batch)
    if is_now() and problem == "loss":
        object.__setattr__(result, "mask", result.mask * float("inf"))
    if is_now() and problem == "gradient":
        parameter = next(value for value in model.parameters() if value.requires_grad)
        object.__setattr__(result, "mask", result.mask + torch.sqrt(parameter.sum() * 0))
    return result


run_module.train_step, step_module.training_losses = step, losses
code = main(sys.argv[4:])
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)  # as maskperf.__main__ does under torchrun
