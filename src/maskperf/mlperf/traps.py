"""What is wrong with a log although MLPerf's checkers accept it, and what a log means as a submission.

Each of these was tried on the checkers of mlperf-logging with ruleset 3.1.0: they pass it and count wrongly afterwards.
"""

import json
import math
import shlex
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from maskperf.config import (
    BENCHMARK,
    BOX_TARGET,
    MASK_TARGET,
    NUM_TRAIN_FILES,
    NUM_TRAIN_IMAGES,
    NUM_VAL_IMAGES,
    has_targets,
    meets_targets,
)
from maskperf.mlperf.attempts import Attempt, Attempts, find_attempts
from maskperf.mlperf.clock import check_clock
from maskperf.mlperf.findings import Finding, Verdict, note, refusal
from maskperf.mlperf.read import RESUMED_KEY, TOKEN, BenchmarkLog, whole_number
from maskperf.mlperf.rules import DECAY_IMAGES_PER_TENTH

CHECKER = "maskperf's own checks"
DEMO = "demo"
COCO_TARGETS = (BOX_TARGET, MASK_TARGET)
# The RCP checker looks for these keys anywhere in a line, and then takes the line for one of that key.
KEYS_FOUND_ANYWHERE = ("global_batch_size", "submission_benchmark", "eval_accuracy", "eval_error")
FLOAT_INTEGERS = 2**24  # 32-bit floats hold each whole number up to it, then those with a smaller odd part
STEPS_SEEN = "Published logs of round v3.1 have this number here: their limit of steps, not a number of images."
SAMPLES = {  # key: its value in the reference, and what those images are
    "train_samples": (NUM_TRAIN_IMAGES, "trains on the images of train2017 that have annotations"),
    "eval_samples": (NUM_VAL_IMAGES, "evaluates all images of val2017"),
}
SAMPLES_SEEN = {  # what a number that others logged is
    ("train_samples", NUM_TRAIN_FILES): f"{NUM_TRAIN_FILES:,} is all of train2017, with the "
    f"{NUM_TRAIN_FILES - NUM_TRAIN_IMAGES:,} images without annotations that the reference leaves out.",
    ("train_samples", 40_000): STEPS_SEEN,
    ("train_samples", 20_000): STEPS_SEEN,
    ("eval_samples", 1): "Published logs of round v3.1 have 1 here, which is no number of images.",
}
FORM_FIX = "Let one process write the log, whole lines at a time, and run again."
SIZES = {"min_image_size": 800, "max_image_size": 1333}


def check_traps(log: BenchmarkLog) -> Verdict:
    """Return the verdict of maskperf's own checks; notes do not refuse."""
    lost = "The official tools lose or refuse what is on this line."
    findings = (
        *several_runs(log, find_attempts(log.records)),
        *(refusal(problem, lost, FORM_FIX) for problem in log.problems),
        *check_clock(log, trains_coco=is_submission(log)),
        *(finding for check in (_stops, _misread, _not_finite, _targets, _seeds) for finding in check(log)),
        *(_samples(log) if is_submission(log) else ()),  # else the log is openly of other data
        *(_reviewed_rules(log) if log.division == "closed" else ()),
    )
    return Verdict(checker=CHECKER, accepted=not any(finding.refuses for finding in findings), findings=findings)


def is_submission(log: BenchmarkLog) -> bool:
    """Return whether a log can be part of a submission: of this benchmark, with its targets, and not a demo."""
    return log.benchmark == BENCHMARK and log.recipe != DEMO and log.targets == COCO_TARGETS


def meanings(log: BenchmarkLog) -> list[str]:
    """Return remarks on the nature of a log: a demo, other targets, the open division."""
    own = f"the targets were {log.targets[0]:g} and {log.targets[1]:g}"
    texts = {
        f"benchmark {log.benchmark or '(none)'}: only {BENCHMARK} is checked in full here.": log.benchmark != BENCHMARK,
        "a demo is not a submission: its images are synthetic. Only the form of its log counts.": log.recipe == DEMO,
        f"not a submission: {own if has_targets(*log.targets) else 'the run had no targets'}, and the benchmark asks "
        f"for {BOX_TARGET} box AP and {MASK_TARGET} mask AP.": log.recipe != DEMO and log.targets != COCO_TARGETS,
        "open division: model, settings, targets and number of epochs are free. The time does not compare with the "
        "closed division (mlperf.division=closed, chosen before a run).": log.division == "open",
    }
    return [text for text, applies in texts.items() if applies]


def several_runs(log: BenchmarkLog, attempts: Attempts) -> Iterator[Finding]:
    """Yield a finding about a file that holds more than one run, or one with an interruption."""
    resumed = [record for record in log.records if record.key == RESUMED_KEY]
    if resumed:
        places = ", ".join(f"line {record.line} after step {record.value}" for record in resumed)
        yield refusal(
            f"{places}: the run was taken up again here from a checkpoint",
            "A run of the benchmark is of one piece, so this is no result. The weights are as good as those of one.",
            "For a result of the benchmark, run again without an interruption.",
        )
    elif attempts.mixed is not None:
        lines = f"lines {attempts.mixed.first_line} and {attempts.mixed.second_line}"
        yield refusal(
            f"{lines}: the lines of two runs are mixed in this file: {attempts.mixed.sign}",
            "Two programs, or two processes of one, wrote into it at the same time. No line names its program, so the "
            "file cannot be cut into two, and counts over all of it mean nothing.",
            "Run again, with a file of its own for each run and one process that writes it.",
        )
    elif len(attempts.runs) > 1:
        yield _one_after_the_other(log, attempts)
    elif attempts.resumed and sum(record.key == "run_start" for record in log.records) == 1:
        yield note(
            f"line {attempts.resumed[0]}: the run was taken up again here",
            "A run of the benchmark is of one piece; a review may ask about this one.",
            "Run again without an interruption.",
        )


def _one_after_the_other(log: BenchmarkLog, attempts: Attempts) -> Finding:
    runs = attempts.runs
    lines = f"line{'s' * (len(runs) > 2)} {', '.join(str(run.first_line) for run in runs[1:])}"
    begin = "a second run begins" if len(runs) == 2 else "further runs begin"
    effect = "Only one of them began to train, so its time and its epochs are counted rightly."
    if attempts.are_several:
        effect = "The official tools take all of it for one run."
    outcomes, commands = list[str](), list[str]()
    for index, (run, (first, last)) in enumerate(zip(runs, attempts.line_ranges, strict=True)):
        copied = next((other for other in runs[:index] if _contents(run) == _contents(other)), None)
        outcome = _outcome(run) if copied is None else f"a copy of those from line {copied.first_line} on"
        outcomes.append(f"lines {first} to {last or 'the end'}: {outcome}")
        if run.is_whole and copied is None:
            is_torn = any(problem.startswith(f"line {first}: ") for problem in log.problems)
            torn = f" | sed '1s/.*{TOKEN}/{TOKEN}/'" if is_torn else ""  # the last record of the run before
            name = f"run_{len(commands) + 1}.txt"
            commands.append(f"sed -n '{first},{last or '$'}p' {shlex.quote(str(log.path))}{torn} > {name}")
    fix = "None of them is whole: run again, with a file for each run."
    if attempts.shared_lines:
        shared = ", ".join(map(str, attempts.shared_lines))
        fix = f"Line {shared} has records of both: put a line break in front of each {TOKEN.strip()}, and check again."
    elif commands:
        fix = f"Cut at {lines}, and change nothing else: {'; '.join(commands)}"
    text = f"{lines}: {begin}; this file holds {len(runs)} runs"
    return Finding(text, f"{effect} {'; '.join(outcomes).capitalize()}.", fix, refuses=attempts.are_several)


def _contents(run: Attempt) -> list[tuple]:
    return [(entry.time_ms, entry.key, entry.value) for entry in run.records]


def _outcome(run: Attempt) -> str:
    head = "" if "init_start" in run.keys else "no head, "
    if not run.has_begun:
        return f"{head}stopped before the training began"
    where = f"epoch {run.epochs[-1]:g}" if run.epochs else "the first epoch"
    stops = [record.status for record in run.records if record.key == "run_stop"]
    if not stops:
        return f"{head}stopped in {where}, no run_stop"
    return f"{head}{'success' if stops[-1] == 'success' else 'aborted'} in {where}"


def _stops(log: BenchmarkLog) -> Iterator[Finding]:
    """Yield findings about an evaluation behind run_stop, and about a success that was taken back."""
    clock = [record for record in log.records if record.key in ("run_start", "run_stop")]
    stop = next((record.line for record in clock if record.key == "run_stop"), math.inf)
    late = [record.line for record in log.records if record.key == "eval_accuracy" and record.line > stop]
    if late:
        yield refusal(
            f"line {late[-1]}: eval_accuracy stands behind run_stop of line {stop}",
            "The RCP checker counts the epochs up to run_stop only, and so one too few.",
            "Log run_stop after the last evaluation, and run again.",
        )
    for first, other in pairwise(clock):
        if first.key == other.key == "run_stop" and first.status == "success" != other.status:
            yield refusal(
                f"line {other.line}: the success of line {first.line} was taken back: {other.value}",
                "This run is no success, although the official tools count its time by the first run_stop.",
                "Find out why, and run again.",
            )


def _misread(log: BenchmarkLog) -> Iterator[Finding]:
    for record in log.records:
        text = json.dumps([record.key, record.value, record.metadata])
        for key in KEYS_FOUND_ANYWHERE:
            if key in text and record.key != key:
                yield refusal(
                    f"line {record.line}: the record {record.key} contains the text {key}",
                    f"The RCP checker takes any line with this text for {key}: it reads a wrong value or stops.",
                    f"Do not write {key} into other records, and run again.",
                )


def _not_finite(log: BenchmarkLog) -> Iterator[Finding]:
    for record in log.records:
        try:
            json.dumps([record.value, record.metadata], allow_nan=False)
        except ValueError:
            yield Finding(
                f"line {record.line}: {record.key} holds a number that is not finite (NaN or Infinity)",
                "This is not JSON, although the official tools read it, and mostly means that training went wrong.",
                "Look at the losses around this line; write null for such numbers.",
                refuses=record.key == "eval_accuracy",
            )


def _targets(log: BenchmarkLog) -> Iterator[Finding]:
    box_target, mask_target = log.targets
    reached = any(
        meets_targets(entry.box_ap, entry.mask_ap, box_target=box_target, mask_target=mask_target)
        for entry in log.evaluations
        if entry.box_ap is not None and entry.mask_ap is not None
    )
    if log.status == "success" and not reached:
        yield refusal(
            "run_stop reports success",
            f"No evaluation has box AP {box_target:g} and mask AP {mask_target:g} at once, the targets of this run.",
            "Log success only when both are met at one evaluation, and run again.",
        )
    first = min((entry.epoch for entry in log.evaluations if entry.epoch is not None), default=1)
    if first < 1:
        yield refusal(
            f"the first evaluation is of epoch {first}",
            "Epochs are counted from 1; the RCP checker now counts too few.",
            "Count epochs from 1, and run again.",
        )


def _seeds(log: BenchmarkLog) -> Iterator[Finding]:
    for seed in log.seeds:
        odd_part = abs(seed) // (seed & -seed or 1)
        if odd_part < FLOAT_INTEGERS < abs(seed) < 2**128:
            yield note(
                f"seed {seed}",
                "A 32-bit float can hold it exactly, which is so of 1 in 256 by chance: perhaps it was rounded on its "
                "way, as in the reference, and other runs can get the same seed.",
                "Where all runs show this, pass the seed on as a whole number. One alone may be chance.",
            )


def _samples(log: BenchmarkLog) -> Iterator[Finding]:
    """Yield notes about numbers of images that are not COCO's."""
    usual = "The official checker takes any number; a run on other images is no submission."
    for key, (wanted, images) in SAMPLES.items():
        found = next((record for record in log.records if record.key == key), None)
        number = wanted if found is None else whole_number(found.value)
        if found is not None and number != wanted:
            yield note(
                f"line {found.line}: {key} is {json.dumps(found.value)}; the reference {images}: {wanted:,}",
                SAMPLES_SEEN.get((key, number or 0), usual),
                f"Run again with those {wanted:,}; where only the number is another one, log {wanted} from now on.",
            )


def _reviewed_rules(log: BenchmarkLog) -> Iterator[Finding]:
    """Yield notes about values of a closed run that no checker looks at, but a person reviewing it may."""
    explanation = "The official checker does not look at this value of the closed division; a review may."
    for key, wanted in SIZES.items():
        if key in log.settings and log.settings[key] != wanted:
            fix = f"Train with {wanted}, as the reference does."
            yield note(f"{key} is {log.settings[key]!r}, not {wanted}", explanation, fix)
    steps, batch_size = log.settings.get("opt_learning_rate_decay_steps"), log.settings.get("global_batch_size")
    if not _is_decay_rule(steps, batch_size):
        yield note(
            f"opt_learning_rate_decay_steps is {steps} at batch size {batch_size}",
            explanation,
            "Take (60000, 80000) * (1 + K/10) * 16 / batch size with a whole K, for example that of the reference.",
        )


def _is_decay_rule(steps: Any, batch_size: Any) -> bool:
    """Return whether two steps are, to the rounding of steps, one multiple of the reference's; True for odd values."""
    numbers = [*steps, batch_size] if isinstance(steps, list) else []
    if len(numbers) != 3 or not all(type(number) in (int, float) and abs(number) < 1e15 for number in numbers):
        return True
    tenths = round(steps[0] * batch_size / DECAY_IMAGES_PER_TENTH[0])
    pairs = zip(steps, DECAY_IMAGES_PER_TENTH, strict=True)
    return tenths >= 1 and all(abs(step - tenths * images / batch_size) <= 1 for step, images in pairs)
