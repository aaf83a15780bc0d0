"""Started by torchrun in test_distributed.py: one training step, each process with its own image.

The second word says how: "plain", or "buffer" for gradients that are exchanged from one buffer piece by piece.
"""

import os
import sys
from pathlib import Path

import torch
from small_batches import small_batch, small_model

from maskperf.config import OptimizerConfig
from maskperf.engine.distributed import broadcast_tensors, close_topology, init_topology
from maskperf.engine.gradients import Gradients
from maskperf.engine.graphs import CapturedSteps
from maskperf.engine.optimizer import build_optimizer
from maskperf.engine.step import train_step


class NoRecorder:
    """Is never asked: there is no capacity, so every step is plain."""

    def warm_up(self, work) -> None:
        raise AssertionError

    def record(self, work):
        raise AssertionError


def main() -> None:
    topology = init_topology("cpu")
    model = small_model(seed=topology.rank)  # different on purpose: the first one's must win
    broadcast_tensors(model.state_dict().values(), topology)
    config = OptimizerConfig(batch_size=2, learning_rate=0.01, warmup_steps=0)
    batch = small_batch(topology.rank)
    optimizer = build_optimizer(model, config)
    captured = None
    if sys.argv[2] == "buffer":
        captured = CapturedSteps(model, [], gradients=Gradients(model, topology), recorder=NoRecorder(), say=print)
    result = train_step(model, optimizer, [batch], update=1, config=config, topology=topology, captured=captured)
    torch.save(
        {
            "losses": result.losses,
            "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
            "weights": model.state_dict(),
        },
        Path(sys.argv[1]) / f"rank{topology.rank}.pt",
    )
    close_topology()


main()
os._exit(0)  # as maskperf.__main__ does under torchrun
