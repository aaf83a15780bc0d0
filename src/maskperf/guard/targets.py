"""The targets of a run. One that is 0 is no target; one that is None is not known."""


def has_targets(box_target: float | int | None, mask_target: float | int | None) -> bool:
    """Returns whether there is anything to reach; a run without targets trains to its end."""
    return box_target != 0 or mask_target != 0


def meets_targets(
    box_ap: float | int, mask_ap: float | int, *, box_target: float | int | None, mask_target: float | int | None
) -> bool:
    """Returns whether an evaluation meets every target there is, unrounded; without targets none does."""
    pairs = ((box_ap, box_target), (mask_ap, mask_target))
    met = [target is None or ap >= target for ap, target in pairs if target != 0]
    return bool(met) and all(met)
