"""What the collapse guard noticed while a run went on, or would have noticed in a log."""

from collections.abc import Sequence

from maskperf.config import NUM_TRAIN_IMAGES
from maskperf.mlperf.read import BenchmarkLog
from maskperf.report.contents import EvaluationPoint, GuardEntry
from maskperf.report.losses import loss_windows
from maskperf.report.run_files import RunFiles
from maskperf.run.collapse import evaluation_collapse, judge_windows
from maskperf.run.plateau import Plateau, find_plateau
from maskperf.schema import GuardLine


def guard_entries(files: RunFiles, evaluations: Sequence[EvaluationPoint], *, reached: bool) -> tuple[GuardEntry, ...]:
    """Return the guard's record of a run folder, or its judgement of a log; the last entry sums up."""
    if not files.is_folder:
        return () if files.log is None else judge_log(files.log, evaluations, reached=reached)
    results = files.results
    if results is not None and results.guard is not None:
        events = [
            GuardEntry(kind=event.event, step=event.step, epoch=event.epoch, text=event.text)
            for event in results.guard.events
        ]
        found = f"{len(events)} event{'s' if len(events) > 1 else ''}" if events else "nothing noticed"
        return (*events, _summary(f"{results.guard.steps_checked} steps checked: {found}."))
    events = [
        GuardEntry(kind=line.event, step=line.step, epoch=line.epoch, text=line.text)
        for line in files.lines
        if isinstance(line, GuardLine)
    ]
    return tuple(events)


def judge_log(log: BenchmarkLog, evaluations: Sequence[EvaluationPoint], *, reached: bool) -> tuple[GuardEntry, ...]:
    """Return the first collapse and the plateau that the guard finds in a log, and a line that sums up."""
    entries = []
    has_losses = any("loss" in entry.values for entry in log.tracked)
    windows = loss_windows(log) if has_losses else []
    for event in (judge_windows(windows), evaluation_collapse([_triple(point) for point in evaluations])):
        if event is not None:
            entries.append(GuardEntry(kind=event.event, step=event.step, epoch=event.epoch, text=event.text))
    plateau = None if reached or entries else _first_plateau(log, evaluations)
    if plateau is not None:
        entries.append(GuardEntry(kind="plateau", step=None, epoch=plateau.epoch, text=plateau.sentence))
    seen = f"{len(windows)} windows of losses and {len(evaluations)} evaluations judged after the run"
    found = "" if entries else ": no collapse and no plateau" if not reached else ": no collapse"
    return (*entries, _summary(f"{seen}{found}."))


def steps_per_epoch(log: BenchmarkLog) -> int | None:
    """Return the optimizer steps of an epoch, None where the log does not say the batch size."""
    batch_size, train_samples = log.settings.get("global_batch_size"), log.settings.get("train_samples")
    if not isinstance(batch_size, int) or batch_size < 1:
        return None
    # Published logs write something else as train_samples.
    images = train_samples if log.recipe is not None and isinstance(train_samples, int) else NUM_TRAIN_IMAGES
    return images // batch_size + 1


def _first_plateau(log: BenchmarkLog, evaluations: Sequence[EvaluationPoint]) -> Plateau | None:
    """Return the plateau as it could first have been named."""
    decay_steps = log.settings.get("opt_learning_rate_decay_steps")
    steps = steps_per_epoch(log)
    if steps is None or not isinstance(decay_steps, list) or not decay_steps:
        return None
    triples = [_triple(point) for point in evaluations]
    found = (
        find_plateau(
            triples[:count],
            box_target=log.targets[0],
            mask_target=log.targets[1],
            steps_per_epoch=float(steps),
            last_decay_step=int(decay_steps[-1]),
        )
        for count in range(1, len(triples) + 1)
    )
    return next((plateau for plateau in found if plateau is not None), None)


def _triple(point: EvaluationPoint) -> tuple[int, float, float]:
    return point.epoch, point.box_ap, point.mask_ap


def _summary(text: str) -> GuardEntry:
    return GuardEntry(kind="summary", step=None, epoch=None, text=text)
