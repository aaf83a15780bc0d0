"""Steps whose mask head had too few slots are repeated with slots for all masks; no step waits for the device.

The number of positive RoIs of a batch is known to the device alone. A step on few slots therefore leaves the weights as
they are where these were too few, and counts the masks without a slot. The count is read while the device is at the
next step already, and the batch is then trained on once more, with the learning rate of its own step. So every batch
has its update, some one step late, in the same order in all processes.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maskperf.engine.step import StepResult
from maskperf.structures import Batch, begin_copy_to_host

STEPS_UNDER_WAY = 1  # besides the newest, so that the device has work while a count is read


@dataclass(frozen=True)
class Step:
    """A step, and how long it waited for its batches."""

    update: int
    epoch: int
    result: StepResult
    wait_seconds: float


class StepsUnderWay:
    """The newest steps, until it is certain that no mask was dropped. `train` takes batches, update and all_masks."""

    def __init__(self, train: Callable[..., StepResult], *, may_drop_masks: bool):
        self._train = train
        self._may_drop_masks = may_drop_masks
        self._steps: deque[tuple[Step, list[Batch], Tensor, torch.cuda.Event | None]] = deque()

    def add(self, step: Step, batches: list[Batch]) -> list[Step]:
        """Take the newest step and its batches; return the steps that are certain now, in their order."""
        if not self._may_drop_masks:
            return [step]
        self._steps.append((step, batches, *begin_copy_to_host(step.result.dropped_masks)))
        return self._settle(most=STEPS_UNDER_WAY)

    def rest(self) -> list[Step]:
        """Return all steps that are left, which are certain then."""
        return self._settle(most=0)

    def _settle(self, most: int) -> list[Step]:
        settled = []
        while len(self._steps) > most:
            step, batches, dropped, copied = self._steps.popleft()
            if copied is not None:
                copied.synchronize()  # before that `dropped`, on the host, is not there
            if int(dropped):
                step = replace(step, result=self._train(batches, update=step.update, all_masks=True))
            settled.append(step)
        return settled
