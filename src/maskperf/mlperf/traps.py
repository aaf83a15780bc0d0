"""What is wrong with a log although MLPerf's checkers accept it, and what a log means as a submission.

Each of these was tried on the checkers of mlperf-logging with ruleset 3.1.0: they pass it and count wrongly afterwards.
"""

import json
import math
import struct
from collections.abc import Iterable, Iterator

from maskperf.guard.targets import has_targets, meets_targets
from maskperf.mlperf.log_lines import Record
from maskperf.mlperf.read import BOX_TARGET, MASK_TARGET, BenchmarkLog
from maskperf.mlperf.verdicts import Finding, Verdict

CHECKER = "maskperf's own checks"
DEMO = "demo"
CLOCK_TOLERANCE_MS = 1000  # several writers of one log may be out of order by milliseconds
# The RCP checker looks for these words anywhere in a line, and then takes the line for one of that key.
WORDS_WITH_A_KEY = ("global_batch_size", "submission_benchmark", "eval_accuracy", "eval_error")
LARGEST_FLOAT_COUNTABLE = 2**24  # above it, 32-bit floats no longer hold every whole number
ONE_WRITER = "Let one process write the log, whole lines at a time, and run again."
SIZES = {"min_image_size": 800, "max_image_size": 1333}
DECAY_IMAGES = (96_000, 128_000)  # (60000, 80000) * 16 / 10: the decay steps times the batch are multiples of these


def check_traps(log: BenchmarkLog) -> Verdict:
    """Returns the verdict of maskperf's own checks; notes do not refuse."""
    findings = [
        *_form(log),
        *_clock(log.records),
        *_order(log.records),
        *_words(log.records),
        *_not_finite(log.records),
        *_targets(log),
        *_seeds(log),
        *_reviewed_rules(log),
    ]
    refused = any(finding.refuses for finding in findings)
    return Verdict(checker=CHECKER, accepted=not refused, findings=tuple(findings))


def is_submission(log: BenchmarkLog) -> bool:
    """Returns whether a log can be part of a submission: of this benchmark, with its targets, and not a demo."""
    return log.benchmark == "maskrcnn" and log.recipe != DEMO and log.targets == (BOX_TARGET, MASK_TARGET)


def meanings(log: BenchmarkLog) -> list[str]:
    """Returns what has to be said about the nature of a log: a demo, other targets, the open division."""
    texts = []
    if log.benchmark != "maskrcnn":
        texts.append(f"benchmark {log.benchmark or '(none)'}: only maskrcnn is judged in full here.")
    if log.recipe == DEMO:
        texts.append(
            "a demo is not a submission: it has made-up pictures and its own targets. Only the form of its log counts."
        )
    elif log.targets != (BOX_TARGET, MASK_TARGET):
        own = f"the targets were {log.targets[0]:g} and {log.targets[1]:g}"
        texts.append(
            f"not a submission: {own if has_targets(*log.targets) else 'the run had no targets'}, and the benchmark "
            f"asks for {BOX_TARGET} box AP and {MASK_TARGET} mask AP."
        )
    if log.division == "open":
        texts.append(
            "open division: model and settings are free, and the checker asks neither for the targets nor for as many "
            "epochs as the reference needs. The time does not compare with the closed division "
            "(mlperf.division=closed, chosen before a run)."
        )
    return texts


def _note(text: str, explanation: str, mend: str) -> Finding:
    return Finding(text=text, refuses=False, explanation=explanation, mend=mend)


def _refusal(text: str, explanation: str, mend: str) -> Finding:
    return Finding(text=text, refuses=True, explanation=explanation, mend=mend)


def _form(log: BenchmarkLog) -> Iterator[Finding]:
    for problem in log.problems:
        yield _refusal(problem, "The official tools lose or refuse what is on this line.", ONE_WRITER)


def _clock(records: Iterable[Record]) -> Iterator[Finding]:
    previous = None
    for record in records:
        if record.time_ms is None:
            continue
        if previous is not None and record.time_ms < previous.time_ms - CLOCK_TOLERANCE_MS:
            seconds = (previous.time_ms - record.time_ms) / 1000
            yield _refusal(
                f"line {record.line}: the time of {record.key} is {seconds:g} s before that of line {previous.line}",
                "The clock went backwards, so no duration of this log can be trusted. The official tools miss it.",
                "Take times from a clock that only goes forward, and run again.",
            )
        previous = record
    for key, which in (("run_start", "later"), ("run_stop", "first")):
        found = [record for record in records if record.key == key and record.time_ms is not None]
        if found and found[-1].time_ms - found[0].time_ms > CLOCK_TOLERANCE_MS:
            lines = ", ".join(str(record.line) for record in found)
            yield _refusal(
                f"lines {lines}: {key} is logged {len(found)} times, at different times",
                f"The official tools only warn, and then measure the time with the {which} one: the score is wrong. "
                "The clock of a run may not be set back, also not when it is taken up again.",
                "Log it once and count the whole time, and run again.",
            )


def _order(records: tuple[Record, ...]) -> Iterator[Finding]:
    stops = [record.line for record in records if record.key == "run_stop"]
    late = [record.line for record in records if record.key == "eval_accuracy" and stops and record.line > stops[0]]
    if late:
        yield _refusal(
            f"line {late[-1]}: eval_accuracy stands behind run_stop of line {stops[0]}",
            "The RCP checker counts the epochs up to run_stop only, and so one too few.",
            "Log run_stop after the last evaluation, and run again.",
        )


def _words(records: Iterable[Record]) -> Iterator[Finding]:
    for record in records:
        text = json.dumps([record.key, record.value, record.metadata])
        for word in WORDS_WITH_A_KEY:
            if word in text and record.key != word:
                yield _refusal(
                    f"line {record.line}: the record {record.key} contains the word {word}",
                    f"The RCP checker looks for this word anywhere in a line and takes the record for {word}: it "
                    "reads a wrong value or stops.",
                    f"Do not write {word} into other records, and run again.",
                )


def _not_finite(records: Iterable[Record]) -> Iterator[Finding]:
    for record in records:
        if _has_not_finite(record.value) or _has_not_finite(record.metadata):
            yield Finding(
                text=f"line {record.line}: {record.key} holds a number that is not finite (NaN or Infinity)",
                refuses=record.key == "eval_accuracy",
                explanation="This is not JSON, although the official tools read it, and mostly means that training "
                "went wrong.",
                mend="Look at the losses around this line; write null for such numbers.",
            )


def _has_not_finite(value: object) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(_has_not_finite(entry) for entry in value.values())
    return isinstance(value, list) and any(_has_not_finite(entry) for entry in value)


def _targets(log: BenchmarkLog) -> Iterator[Finding]:
    box_target, mask_target = log.targets
    reached = any(
        evaluation.box_ap is not None
        and evaluation.mask_ap is not None
        and meets_targets(evaluation.box_ap, evaluation.mask_ap, box_target=box_target, mask_target=mask_target)
        for evaluation in log.evaluations
    )
    if log.status == "success" and not reached:
        yield _refusal(
            "run_stop says success",
            f"No evaluation has box AP {box_target:g} and mask AP {mask_target:g} at once, the targets of this run.",
            "Log success only when both are met at one evaluation, and run again.",
        )
    epochs = [evaluation.epoch for evaluation in log.evaluations if evaluation.epoch is not None]
    if epochs and min(epochs) < 1:
        yield _refusal(
            f"the first evaluation is of epoch {min(epochs)}",
            "Epochs are counted from 1; the RCP checker now counts too few.",
            "Count epochs from 1, and run again.",
        )


def _seeds(log: BenchmarkLog) -> Iterator[Finding]:
    for seed in log.seeds:
        if abs(seed) > LARGEST_FLOAT_COUNTABLE and _is_float32(seed):
            yield _note(
                f"seed {seed}",
                "A 32-bit float can hold this seed exactly, as only 1 in 256 or fewer can by chance: it was perhaps "
                "rounded on its way, as the reference does it, and other runs can get the same seed.",
                "Where all runs show this, pass the seed on as a whole number. One alone may be chance.",
            )


def _is_float32(number: int) -> bool:
    try:
        return int(struct.unpack("f", struct.pack("f", number))[0]) == number
    except OverflowError:
        return False


def _reviewed_rules(log: BenchmarkLog) -> Iterator[Finding]:
    """Returns notes about values of a closed run that no checker looks at, but a person reviewing it may."""
    if log.division != "closed":
        return
    explanation = "The official checker does not look at this value of the closed division; a review may."
    for key, wanted in SIZES.items():
        if key in log.settings and log.settings[key] != wanted:
            mend = f"Train with {wanted}, as the reference does."
            yield _note(f"{key} is {log.settings[key]!r}, not {wanted}", explanation, mend)
    steps, batch_size = log.settings.get("opt_learning_rate_decay_steps"), log.settings.get("global_batch_size")
    if _are_numbers(steps) and _are_numbers([batch_size, 0]) and not _is_decay_rule(steps, batch_size):
        yield _note(
            f"opt_learning_rate_decay_steps is {steps} at batch size {batch_size}",
            explanation,
            "Take (60000, 80000) * (1 + K/10) * 16 / batch size with a whole K, for example that of the reference.",
        )


def _are_numbers(values: object) -> bool:
    return isinstance(values, list) and len(values) == 2 and all(type(value) in (int, float) for value in values)


def _is_decay_rule(steps: list, batch_size: int | float) -> bool:
    """Returns whether both steps are, to the rounding of steps, one multiple of the reference's."""
    tenths = [round(step * batch_size / images) for step, images in zip(steps, DECAY_IMAGES, strict=True)]
    exact = [tenths[0] * images / batch_size for images in DECAY_IMAGES] if batch_size > 0 else [-2.0, -2.0]
    return tenths[0] >= 1 and all(abs(step - wanted) <= 1 for step, wanted in zip(steps, exact, strict=True))
