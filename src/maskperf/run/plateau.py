"""A plateau: the last drop of the learning rate is past, a target is missed, and the AP has stopped rising."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression

from maskperf.config import has_targets, meets_targets
from maskperf.run.collapse import evaluation_collapse

SLOPE_EVALUATIONS = 5
PATIENCE_EVALUATIONS = 5  # a target that the slope reaches within as many is no plateau
FLAT_FRACTION = 0.01  # of the target; a larger rise over five evaluations is on its way, however far it is
SMALLEST_SLOPE = 1e-6  # a tenth of the last digit that logs give an AP; less is no rise


@dataclass(frozen=True, kw_only=True)
class MissingMetric:
    """One target that is not reached. APs are fractions, as the targets."""

    name: str  # "box AP" or "mask AP"
    target: float | int
    average_precision: float  # of the newest evaluation
    slope_per_evaluation: float  # least squares over the last five
    evaluations_needed: int | None  # at that slope, from the fitted line; None: never

    @property
    def sentence(self) -> str:
        outlook = "the target is never reached at that slope"
        if self.evaluations_needed is not None:
            outlook = f"the target needs {self.evaluations_needed} more evaluations at that slope"
        return (
            f"{self.name} is {self.target - self.average_precision:.5f} short of {self.target:g}, slope over the last "
            f"{SLOPE_EVALUATIONS} evaluations {self.slope_per_evaluation:+.5f} per evaluation: {outlook}"
        )

    @property
    def is_stuck(self) -> bool:
        flat = self.slope_per_evaluation * SLOPE_EVALUATIONS < FLAT_FRACTION * self.target
        return flat and (self.evaluations_needed is None or self.evaluations_needed > PATIENCE_EVALUATIONS)


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """A plateau as the newest evaluation shows it."""

    epoch: int
    exhausted_epoch: int | None  # the epoch in which the learning rate last fell; None: it never falls
    missing: tuple[MissingMetric, ...]  # those on the plateau

    @property
    def sentence(self) -> str:
        exhausted = "the learning rate never falls"
        if self.exhausted_epoch is not None:
            exhausted = f"learning rate exhausted since epoch {self.exhausted_epoch}"
        return f"epoch {self.epoch}: {'; '.join(metric.sentence for metric in self.missing)}; {exhausted}"


def find_plateau(
    evaluations: Sequence[tuple[int, float | None, float | None]],
    *,
    box_target: float | int,
    mask_target: float | int,
    steps_per_epoch: int | float,
    last_decay_step: int,
) -> Plateau | None:
    """Return the plateau that the evaluations so far (epoch, box AP, mask AP) end in, or None.

    It takes five evaluations after the last drop of the learning rate, a target that the newest of them misses, and a
    slope over those five that is flat (less than a hundredth of the target) and would not reach it within five more. A
    run that reached its targets at once is done, one without targets misses none, and a lost model
    (`evaluation_collapse`, or nothing but zeros) is no plateau. Evaluations with an unknown AP (None) are passed over.
    `last_decay_step` is 0 where the rate never falls.
    """
    known = [(epoch, box, mask) for epoch, box, mask in evaluations if box is not None and mask is not None]
    if not has_targets(box_target, mask_target) or evaluation_collapse(known):
        return None
    if any(meets_targets(box, mask, box_target=box_target, mask_target=mask_target) for _, box, mask in known):
        return None
    newest = [entry for entry in known if entry[0] * steps_per_epoch > last_decay_step][-SLOPE_EVALUATIONS:]
    if len(newest) < SLOPE_EVALUATIONS or not any(box or mask for _, box, mask in newest):
        return None
    metrics = (
        _missing_metric("box AP", box_target, [box for _, box, _ in newest]),
        _missing_metric("mask AP", mask_target, [mask for _, _, mask in newest]),
    )
    stuck = tuple(metric for metric in metrics if metric is not None and metric.is_stuck)
    if not stuck:
        return None
    exhausted = math.floor(last_decay_step / steps_per_epoch) + 1 if last_decay_step > 0 else None
    return Plateau(epoch=newest[-1][0], exhausted_epoch=exhausted, missing=stuck)


def _missing_metric(name: str, target: float | int, values: Sequence[float]) -> MissingMetric | None:
    """Return how far the newest value is from its target and how fast the values rise, or None where it is reached."""
    if values[-1] >= target:
        return None
    slope, intercept = linear_regression(range(len(values)), values)
    fitted_newest = intercept + slope * (len(values) - 1)
    needed = max(1, math.ceil((target - fitted_newest) / slope)) if slope > SMALLEST_SLOPE else None
    return MissingMetric(
        name=name,
        target=target,
        average_precision=values[-1],
        slope_per_evaluation=slope,
        evaluations_needed=needed,
    )
