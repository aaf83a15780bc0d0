"""Collapse of a training: a loss that is not finite, or a training that is lost although its loss is finite."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TypeGuard

from maskperf.schema import WINDOW_STEPS, GuardEvent, GuardState, SeriesState, Window

STRIDE_STEPS = 10  # a live run is checked this often; divides WINDOW_STEPS
LEVEL_WINDOWS = 5
DRIFT_WINDOWS = 8
NOISE_WINDOWS = 40
FEWEST_WINDOWS = 6  # before a rise is named
LOWEST_WORKING_AP = 0.05
LOST_AP_FRACTION = 0.1
FEW_CHANGES = 10.0  # so many changes between windows may look half as noisy as they are
SPIKE_FACTOR = 4.0  # a live step above this many times the median of its ten counts as this many
SMALLEST_LOSS = 1e-30  # keeps a loss of zero out of quotients
NORMAL_PER_MEDIAN_DEVIATION = 1.4826  # standard deviation of normal noise per median absolute deviation


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Where the rule draws its lines. Rises are factors of the level; noise is in standard deviations of a window.

    Margins on the 109 successes of MLPerf Training v3.1: sustained rise at most 1.157, drift at most 1.125, not one
    frozen window. The five collapses end in a window 1.318 to 36.8 times above the level.
    """

    first_step: int = 300  # the steep and noisy beginning before it is only checked for finiteness
    sustained_rise: float = 1.35
    sustained_noise: float = 4.5
    drift_rise: float = 1.5
    drift_noise: float = 4.0
    frozen_rise: float = 1.1
    frozen_noise: float = 2.0
    frozen_windows: int = 3


LIMITS = Limits()


class CollapseGuard:
    """Takes the total loss of every step of a run, and names a collapse once; `state` goes on where it was.

    Five interleaved series of windows, each ten steps after the other, follow the same rule: a lasting jump to 1.6
    times is named within 100 steps wherever it falls, later where the losses are noisy.
    """

    def __init__(self, state: GuardState | None = None):
        self.state = state or GuardState(series=[SeriesState() for _ in range(WINDOW_STEPS // STRIDE_STEPS)])

    def add(self, step: int, total_loss: float | None) -> GuardEvent | None:
        """Return the collapse that this step's loss reveals, or None. After a collapse only non-finite losses speak.

        Steps rise by one; a series may begin at any step, for example after a resume. None is a loss not finite.
        """
        state = self.state
        if not _is_finite(total_loss):
            return _not_finite(step, step)
        if state.named:
            return None
        state.stride_losses.append(total_loss)
        if len(state.stride_losses) < STRIDE_STEPS:
            return None
        ending, state.stride_losses = state.stride_losses, []
        state.stride_means = [*state.stride_means, _mean_without_spikes(ending)][-len(state.series) :]
        if len(state.stride_means) < len(state.series):
            return None
        loss = sum(state.stride_means) / len(state.stride_means)
        window = Window(first_step=step - WINDOW_STEPS + 1, last_step=step, loss=loss, ending=median(ending))
        found = _Series(state.series[state.turn], LIMITS).add(window)
        state.turn = (state.turn + 1) % len(state.series)
        state.named = found is not None
        return found


def windows_from_cumulative(steps: Sequence[int], cumulative_means: Sequence[float | None]) -> list[Window]:
    """Return the mean loss between the logged steps from means over all steps so far; windows of at least 50 steps.

    The steps rise from 1. A mean that is None or not finite gives a window whose loss is None.
    """
    windows = []
    begin, begin_mean = 0, 0.0
    for step, mean in zip(steps, cumulative_means, strict=True):
        if not _is_finite(mean):
            windows.append(Window(first_step=begin + 1, last_step=step, loss=None))
        elif step - begin >= WINDOW_STEPS:
            loss = (mean * step - begin_mean * begin) / (step - begin)
            frozen = begin > 0 and mean == begin_mean
            windows.append(Window(first_step=begin + 1, last_step=step, loss=loss, frozen=frozen))
            begin, begin_mean = step, mean
    return windows


def find_collapse(windows: Sequence[Window], limits: Limits = LIMITS) -> GuardEvent | None:
    """Return the first collapse in a series of windows, or None. `step` of the event is the end of a window."""
    series = _Series(SeriesState(), limits)
    return next((found for found in map(series.add, windows) if found is not None), None)


def evaluation_collapse(evaluations: Sequence[tuple[int, float | None, float | None]]) -> GuardEvent | None:
    """Return the first evaluation (epoch, box AP, mask AP) that shows a lost model, or None.

    Lost: both APs are 0, or under a tenth of the best before, after both had been above 0.05. None for an AP that is
    unknown; such an evaluation is passed over.
    """
    best_box = best_mask = 0.0
    for epoch, box_ap, mask_ap in evaluations:
        if box_ap is None or mask_ap is None:
            continue
        worked = min(best_box, best_mask) > LOWEST_WORKING_AP
        if worked and box_ap < LOST_AP_FRACTION * best_box and mask_ap < LOST_AP_FRACTION * best_mask:
            text = (
                f"epoch {epoch}: box AP fell to {box_ap:.4f} from a best of {best_box:.4f}, "
                f"mask AP to {mask_ap:.4f} from {best_mask:.4f}; the model is lost"
            )
            return GuardEvent(event="collapse", epoch=epoch, text=text)
        best_box, best_mask = max(best_box, box_ap), max(best_mask, mask_ap)
    return None


class _Series:
    """The rule, for windows one after the other, each against the level (median of the five windows before it).

    Signs, all beyond the noise of the series itself: not finite, at any step; a sustained rise of two windows in a row;
    a drift of the median of eight windows above the lowest such median; and, in logs of trainers that leave losses out
    of their mean when they are not finite, a mean that is frozen.
    """

    def __init__(self, state: SeriesState, limits: Limits):
        self._state, self._limits = state, limits
        self._windows = state.windows
        self._losses = [window.loss for window in state.windows if _is_finite(window.loss)]

    def add(self, window: Window) -> GuardEvent | None:
        if not _is_finite(window.loss):
            return _not_finite(window.first_step, window.last_step)
        if window.frozen:
            self._state.frozen.append(window)
            return self._find_frozen(self._state.frozen)
        self._state.frozen.clear()
        self._windows.append(window)
        self._losses.append(window.loss)
        for kept in (self._windows, self._losses):
            del kept[: -(NOISE_WINDOWS + 2)]
        return self._find_rise() or self._find_drift()

    def _find_frozen(self, frozen: Sequence[Window]) -> GuardEvent | None:
        rise = self._rise(newest=1)
        risen = rise > self._line(self._limits.frozen_rise, self._limits.frozen_noise, newest=1)
        if not risen and len(frozen) < self._limits.frozen_windows:
            return None
        first, last = frozen[0], frozen[-1]
        before = f", after a window {rise:.2f} times above the level before it" if risen else ""
        text = (
            f"steps {first.first_step} to {last.last_step}: the mean of all losses so far does not move{before}, "
            "as when losses are not finite and the log leaves them out"
        )
        return GuardEvent(event="collapse", step=last.last_step, text=text)

    def _find_rise(self) -> GuardEvent | None:
        rise = self._rise(newest=2)
        if rise <= self._limits.sustained_rise:  # the noise is costly to find, and can only raise the line
            return None
        line = self._line(self._limits.sustained_rise, self._limits.sustained_noise, newest=2)
        first, last = self._windows[-2], self._windows[-1]
        level = self._level(newest=2)
        # A spike across two windows is over when the second ends. Ten steps are noisy, so half way is enough for them.
        if rise <= line or (last.ending is not None and last.ending < math.sqrt(line) * level):
            return None
        text = (
            f"steps {first.first_step} to {last.last_step}: the loss rose to {first.loss:.4g} and {last.loss:.4g} "
            f"from {level:.4g} before and stayed there"
        )
        return GuardEvent(event="collapse", step=last.last_step, text=text)

    def _find_drift(self) -> GuardEvent | None:
        if len(self._losses) < DRIFT_WINDOWS:
            return None
        smoothed = median(self._losses[-DRIFT_WINDOWS:])
        lowest = smoothed if self._state.lowest_median is None else self._state.lowest_median
        self._state.lowest_median = min(lowest, smoothed)
        first, last = self._windows[-DRIFT_WINDOWS], self._windows[-1]
        if smoothed <= self._limits.drift_rise * lowest or first.last_step <= self._limits.first_step:
            return None
        if smoothed <= self._line(self._limits.drift_rise, self._limits.drift_noise, newest=0) * lowest:
            return None
        text = (
            f"steps {first.first_step} to {last.last_step}: the loss is {smoothed:.4g} (median of {DRIFT_WINDOWS} "
            f"windows), {smoothed / lowest:.2f} times the lowest such median, {lowest:.4g}"
        )
        return GuardEvent(event="collapse", step=last.last_step, text=text)

    def _level(self, *, newest: int) -> float:
        return median(self._losses[-newest - LEVEL_WINDOWS : -newest])

    def _rise(self, *, newest: int) -> float:
        """Return the lowest of the newest windows over the level before them; 0 where it is too early to tell."""
        if len(self._losses) < FEWEST_WINDOWS + newest or self._windows[-newest].last_step <= self._limits.first_step:
            return 0.0
        return min(self._losses[-newest:]) / max(self._level(newest=newest), SMALLEST_LOSS)

    def _line(self, rise: float, noise: float, *, newest: int) -> float:
        """Return the factor that a rise must pass: `rise`, or more where the windows before the newest are noisy."""
        return max(rise, math.exp(noise * _relative_noise(self._losses[: len(self._losses) - newest])))


def _relative_noise(losses: Sequence[float]) -> float:
    """Return the standard deviation of one window's noise, as a fraction.

    From the median of the changes between neighbours, so that neither a falling loss nor one spike counts as noise. Few
    windows may look calm by chance, hence the allowance for their number.
    """
    changes = [math.log(max(after, SMALLEST_LOSS) / max(before, SMALLEST_LOSS)) for before, after in pairwise(losses)]
    if not changes:
        return 0.0
    middle = median(changes)
    spread = NORMAL_PER_MEDIAN_DEVIATION * median(abs(change - middle) for change in changes)
    return spread / math.sqrt(2.0) * (1.0 + FEW_CHANGES / len(changes))


def _mean_without_spikes(losses: Sequence[float]) -> float:
    """Return the mean, with single values limited: one odd image is no collapse, and most of the ten are not odd."""
    ceiling = SPIKE_FACTOR * median(losses)
    return sum(min(loss, ceiling) for loss in losses) / len(losses)


def _is_finite(loss: float | None) -> TypeGuard[float]:
    return loss is not None and math.isfinite(loss)


def _not_finite(first_step: int, last_step: int) -> GuardEvent:
    where = f"step {last_step}" if first_step == last_step else f"steps {first_step} to {last_step}"
    return GuardEvent(event="non-finite", step=last_step, text=f"{where}: the total loss is not a finite number")
