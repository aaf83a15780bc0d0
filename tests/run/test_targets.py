import math

import pytest

from maskperf.config import has_targets, meets_targets


@pytest.mark.parametrize(
    ("box_target", "mask_target", "expected"),
    [(0.377, 0.339, True), (0.377, 0, True), (0, 0.339, True), (0, 0, False), (None, None, True), (0.0, None, True)],
)
def test_a_target_of_0_is_none_and_an_unknown_one_may_be_one(box_target, mask_target, expected):
    assert has_targets(box_target, mask_target) == expected


@pytest.mark.parametrize(
    ("aps", "targets", "expected"),
    [
        ((0.377, 0.339), (0.377, 0.339), True),
        ((math.nextafter(0.377, 0), 0.339), (0.377, 0.339), False),
        ((0.377, math.nextafter(0.339, 0)), (0.377, 0.339), False),
        ((0.377, 0.0), (0.377, 0), True),
        ((0.376, 1.0), (0.377, 0), False),
        ((0.0, 0.339), (0, 0.339), True),
        ((1.0, 0.338), (0, 0.339), False),
        ((1.0, 1.0), (0, 0), False),
        ((0.1, 0.1), (None, None), True),
        ((0.1, 0.4), (None, 0.339), True),
        ((math.nan, 0.4), (0.377, 0.339), False),
    ],
)
def test_an_evaluation_meets_every_target_there_is(aps, targets, expected):
    assert meets_targets(*aps, box_target=targets[0], mask_target=targets[1]) == expected
