"""A plateau: the last drop of the learning rate is past, a target is missed, and the AP has stopped rising."""

import math
from collections.abc import Sequence
from statistics import linear_regression

from maskperf.config import has_targets, meets_targets
from maskperf.run.collapse import evaluation_collapse
from maskperf.schema import GuardEvent

SLOPE_EVALUATIONS = 5
PATIENCE_EVALUATIONS = 5  # a target that the slope reaches within as many is no plateau
FLAT_FRACTION = 0.01  # of the target; a larger rise over five evaluations is on its way, however far it is
SMALLEST_SLOPE = 1e-6  # a tenth of the last digit that logs give an AP; less is no rise


def find_plateau(
    evaluations: Sequence[tuple[int, float | None, float | None]],
    *,
    box_target: float | int,
    mask_target: float | int,
    steps_per_epoch: int | float,
    last_decay_step: int,
) -> GuardEvent | None:
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
    metrics = (("box AP", box_target, 1), ("mask AP", mask_target, 2))
    stuck = [_shortfall(name, target, [entry[place] for entry in newest]) for name, target, place in metrics]
    if not any(stuck):
        return None
    exhausted = "the learning rate never falls"
    if last_decay_step > 0:
        exhausted = f"learning rate exhausted since epoch {math.floor(last_decay_step / steps_per_epoch) + 1}"
    epoch = newest[-1][0]
    return GuardEvent(
        event="plateau", epoch=epoch, text=f"epoch {epoch}: {'; '.join([*filter(None, stuck), exhausted])}"
    )


def _shortfall(name: str, target: float | int, values: Sequence[float]) -> str:
    """Return how far a target is that an AP no longer approaches, empty text where it is reached or on its way."""
    if values[-1] >= target:
        return ""
    slope, intercept = linear_regression(range(len(values)), values)
    fitted_newest = intercept + slope * (len(values) - 1)
    needed = max(1, math.ceil((target - fitted_newest) / slope)) if slope > SMALLEST_SLOPE else None
    is_near = needed is not None and needed <= PATIENCE_EVALUATIONS
    if is_near or slope * SLOPE_EVALUATIONS >= FLAT_FRACTION * target:
        return ""
    outlook = "is never reached" if needed is None else f"needs {needed} more evaluations"
    return (
        f"{name} is {target - values[-1]:.5f} short of {target:g}, slope over the last {SLOPE_EVALUATIONS} evaluations "
        f"{slope:+.5f} per evaluation: the target {outlook} at that slope"
    )
