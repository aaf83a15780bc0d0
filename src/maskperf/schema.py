"""What a run writes to disk, once for the writer and every reader."""

from dataclasses import dataclass

WINDOW_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class LossWindow:
    """The means of the steps up to and including `step`."""

    step: int
    epoch: int
    losses: dict[str, float]
    learning_rate: float  # of the last step
    images_per_second: float
