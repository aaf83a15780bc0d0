"""Means over a fixed number of steps, for logs that must stay small."""

from maskperf.schema import WINDOW_STEPS, LossWindow


class LossWindows:
    """Gathers steps into windows of `WINDOW_STEPS`."""

    def __init__(self, world: int):
        self._world = world
        self._steps: list[dict[str, float]] = []
        self._images = 0
        self._seconds = 0.0
        self._complete: list[LossWindow] = []

    def add(
        self, step: int, epoch: int, losses: dict[str, float], learning_rate: float, images: int, seconds: float
    ) -> None:
        self._steps.append(losses)
        self._images += images * self._world
        self._seconds += seconds
        if len(self._steps) == WINDOW_STEPS:
            means = {name: sum(terms[name] for terms in self._steps) / WINDOW_STEPS for name in losses}
            speed = self._images / max(self._seconds, 1e-9)
            window = LossWindow(
                step=step, epoch=epoch, losses=means, learning_rate=learning_rate, images_per_second=speed
            )
            self._complete.append(window)
            self._steps, self._images, self._seconds = [], 0, 0.0

    def take(self) -> list[LossWindow]:
        """Return the windows completed since the last call."""
        complete, self._complete = self._complete, []
        return complete
