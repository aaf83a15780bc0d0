"""The plateau rule against the evaluations of MLPerf Training v3.1, and against synthetic curves."""

import gzip
import json
import re
from functools import cache
from pathlib import Path

import pytest

from maskperf.run.plateau import find_plateau

TRACES_FILE = Path(__file__).parent / "mlperf_v3_1_loss_traces.json.gz"
TRAIN_IMAGES = 117_266
LAST_DECAY_STEPS = {48: 32_000, 88: 16_000, 96: 16_000, 110: 16_000}  # by global batch size; two schedules have 256:
LAST_DECAY_STEPS_256 = {"NVIDIA/eos_n8_ngc23.04_pytorch": 8_000, "NVIDIA/eos_n48_ngc23.04_pytorch": 7_500}
STUCK_RUN = "xFusion/G5500V7x8L40/result_2"
SLOWEST_SUCCESS = "Quanta_Cloud_Technology/D74H-7U/result_4"
TARGETS = {"box_target": 0.377, "mask_target": 0.339}


@cache
def published_runs():
    """Return {run: (status, evaluations, steps per epoch, last decay step)} of all 115 runs."""
    runs = {}
    for trace in json.loads(gzip.decompress(TRACES_FILE.read_bytes())):
        system = trace["run"].rsplit("/", 1)[0]
        batch_size = trace["global_batch_size"]
        decay = LAST_DECAY_STEPS_256[system] if batch_size == 256 else LAST_DECAY_STEPS[batch_size]
        evaluations = [tuple(entry) for entry in trace["evaluations"]]
        runs[trace["run"]] = (trace["status"], evaluations, TRAIN_IMAGES / batch_size, decay)
    return runs


def named_at(run):
    """Return the counts of evaluations after which a plateau is named, each with the plateau."""
    _, evaluations, steps_per_epoch, decay = published_runs()[run]
    found = {}
    for count in range(1, len(evaluations) + 1):
        plateau = find_plateau(evaluations[:count], **TARGETS, steps_per_epoch=steps_per_epoch, last_decay_step=decay)
        if plateau is not None:
            found[count] = plateau
    return found


def plateau_of(box_aps, *, mask_ap=0.35, last_decay_step=1000, targets=TARGETS):
    """Return what is found when the box AP takes these values in epochs of 100 steps, the first of them epoch 11."""
    evaluations = [(epoch, box_ap, mask_ap) for epoch, box_ap in enumerate(box_aps, start=11)]
    return find_plateau(evaluations, **targets, steps_per_epoch=100, last_decay_step=last_decay_step)


def names_of(plateau):
    return plateau and re.findall(r"(\w+ AP) is ", plateau.text)


# The published round


def test_the_published_plateau_is_named_eleven_evaluations_before_its_end():
    named = named_at(STUCK_RUN)
    assert len(published_runs()[STUCK_RUN][1]) == 29
    assert min(named) == 18 and len(named) == 11  # of the last 12; one good value at 28 makes the slope look better
    assert all(names_of(plateau) == ["box AP"] for plateau in named.values())
    assert all(plateau.text.endswith("exhausted since epoch 13") for plateau in named.values())


def test_of_the_other_published_runs_the_slowest_success_is_named_while_on_its_plateau():
    runs = {run: (status, len(evaluations)) for run, (status, evaluations, *_) in published_runs().items()}
    assert sum(count <= 16 for _, count in runs.values()) == 95  # of usual length
    assert sum(status == "success" and count >= 17 for status, count in runs.values()) == 14
    named = {run: list(named_at(run)) for run in runs.keys() - {STUCK_RUN} if named_at(run)}
    assert named == {SLOWEST_SUCCESS: [18, 19, 20]}  # of 22 evaluations; no collapse among them


# Synthetic curves


def test_the_sentence_says_what_is_missing_and_since_when_nothing_changes():
    plateau = plateau_of([0.3753, 0.3754, 0.3755, 0.3754, 0.3755])
    # The fitted line ends at 0.3755: 0.0015 / 0.00004, rounded up.
    assert plateau.text == (
        "epoch 15: box AP is 0.00150 short of 0.377, slope over the last 5 evaluations +0.00004 per evaluation: "
        "the target needs 38 more evaluations at that slope; learning rate exhausted since epoch 11"
    )


@pytest.mark.parametrize(
    ("box_aps", "needed"),
    [
        ([0.37] * 5, None),
        ([0.374, 0.3735, 0.373, 0.3725, 0.372], None),  # falling
        ([0.37, 0.37, 0.37, 0.37, 0.370001], None),
        ([0.3700, 0.3704, 0.3708, 0.3712, 0.3717], 13),
        ([0.10, 0.30, 0.36, 0.37, 0.37, 0.37, 0.37, 0.37], None),  # the slope is that of the last five
        ([0.37, None, 0.37, 0.37, 0.37, 0.37], None),  # an evaluation without an AP is passed over
    ],
)
def test_a_flat_curve_arrives_late_or_never(box_aps, needed):
    plateau = plateau_of(box_aps)
    assert plateau.epoch == 10 + len(box_aps)
    assert ("is never reached" if needed is None else f"needs {needed} more evaluations") in plateau.text


@pytest.mark.parametrize(
    ("box_aps", "mask_ap"),
    [
        ([], 0.35),
        ([0.370, 0.371, 0.372, 0.373, 0.374], 0.35),  # three more evaluations
        ([0.38, 0.37, 0.37, 0.37, 0.37, 0.37], 0.35),  # had reached its targets
        ([0.37] * 4 + [0.377], 0.339),
        ([0.37, None, 0.37, 0.37, 0.37], 0.35),  # passed over
        ([0.0] * 6, 0.0),  # a lost model
        ([0.3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 0.0),
    ],
)
def test_what_is_no_plateau(box_aps, mask_ap):
    assert plateau_of(box_aps, mask_ap=mask_ap) is None


def test_a_curve_that_rises_steadily_is_no_plateau_however_far_its_target_is():
    rising = [0.02 * number for number in range(1, 15)]
    assert all(plateau_of(rising[:count], last_decay_step=0) is None for count in range(1, 15))


@pytest.mark.parametrize(("last_decay_step", "exhausted"), [(1200, ""), (5000, ""), (1199, 12), (1100, 12), (0, None)])
def test_only_evaluations_after_the_last_decay_count(last_decay_step, exhausted):
    plateau = plateau_of([0.37] * 6, last_decay_step=last_decay_step)
    assert (plateau is None) == (exhausted == "")
    end = f"exhausted since epoch {exhausted}" if exhausted else "the learning rate never falls"
    assert plateau is None or plateau.text.endswith(end)


@pytest.mark.parametrize(
    ("targets", "box_ap", "mask_ap", "stuck"),
    [
        ((0.377, 0.339), 0.37, 0.33, ["box AP", "mask AP"]),
        ((0.377, 0.339), 0.38, 0.33, ["mask AP"]),
        ((0, 0), 0.37, 0.33, None),  # a target of 0 is never missed
        ((0, 0.339), 0.37, 0.33, ["mask AP"]),
        ((0.377, 0), 0.37, 0.33, ["box AP"]),
        ((0, 0.32), 0.37, 0.33, None),
        ((0.36, 0), 0.37, 0.33, None),
    ],
)
def test_every_metric_that_misses_its_target_is_named(targets, box_ap, mask_ap, stuck):
    wanted = {"box_target": targets[0], "mask_target": targets[1]}
    plateau = plateau_of([box_ap] * 5, mask_ap=mask_ap, targets=wanted)
    assert names_of(plateau) == stuck
    assert plateau is None or "mask AP" not in stuck or "mask AP is 0.00900 short of 0.339" in plateau.text
