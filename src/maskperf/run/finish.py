"""The end of a run: what it leaves behind, also where it is lost."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

import msgspec
import numpy as np
import torch

from maskperf.data.coco.categories import with_written_ids
from maskperf.engine.distributed import gather_to_first, share_from_first
from maskperf.errors import LostRunError, StorageError
from maskperf.evaluation.scores import score_entries
from maskperf.files import pretty_json
from maskperf.model.weights import load_model_weights, save_reference_state
from maskperf.run.black_box import Facts, polygon_limits, save_black_box
from maskperf.run.data import OpenedData, micro_batches
from maskperf.run.evaluations import ENGINES_DIFFER, Scored, Training, Verdict, best_row
from maskperf.run.progress import peak_memory_gib
from maskperf.run.recorder import StepRecorder
from maskperf.run.resume import CHECKPOINTS
from maskperf.run.session import BEST_WEIGHTS_FILE, WEIGHTS_FILE, Session
from maskperf.schema import RESULTS_FILE, BestEpoch, GuardResults, Results
from maskperf.structures import Batch, to_device

BLACK_BOX = "black_box"
TARGETS_MISSED = "the steps of the recipe are used up and a target is not met"
SHOWN_IMAGE_IDS = 32


@dataclass(frozen=True)
class FinishedRun:
    """A run that came to its end; what it found is in the first process only."""

    results: Results
    session: Session  # closed
    data: OpenedData
    found: tuple[list[dict], list[dict]] | None  # boxes and masks as entries of COCO's results, with the written ids
    scored: Scored | None  # the same with the ids of the training

    @property
    def folder(self) -> Path | None:
        """The folder of the run, in the first process."""
        return self.session.folder


def finish(session: Session, training: Training, verdict: Verdict) -> FinishedRun:
    """Return what the run achieved; the first process also writes results, detections and reference weights."""
    reason = (verdict.reason or TARGETS_MISSED) if verdict.status == "aborted" else ""
    reason = ENGINES_DIFFER if verdict.differences else reason
    results = save_results(session, training.recorder, reason=reason, verdict=verdict)
    if session.folder is None or verdict.scored is None:
        return FinishedRun(results, session, training.data, None, None)
    boxes, masks = (with_written_ids(found, training.data.categories) for found in verdict.scored.found)
    for name, found in (("detections_bbox.json", boxes), ("detections_segm.json", masks)):
        session.write(name, msgspec.json.encode(training.data.val.with_image_keys(found)).decode())
    if session.config.model.batch_norm == "frozen":
        # Those that were evaluated: training may have gone on from them.
        load_model_weights(training.model, session.folder / WEIGHTS_FILE)
        save_reference_state(training.model, session.folder / "model.pth")
    for difference in verdict.differences:
        session.say(f"the fast engine and the official one differ: {difference}; the run is not a success")
    rmtree(session.folder / CHECKPOINTS, ignore_errors=True)  # nothing is left to go on with
    drift = session.log.wall_clock_drift_seconds()
    if abs(drift) > 1:
        session.say(f"the wall clock was moved by {drift:.1f} s during the run; no time given here depends on it")
    return FinishedRun(results, session, training.data, (boxes, masks), verdict.scored)


def save_results(session: Session, recorder: StepRecorder, *, reason: str, verdict: Verdict | None = None) -> Results:
    """Return what the run achieved, after the first process wrote it to results.json.

    Without a verdict the run was cut short, for `reason`.
    """
    session.account.stop()
    last, best = (recorder.counted.rows[-1], best_row(recorder.counted.rows)) if recorder.counted.rows else (None, None)
    scored = verdict.scored if verdict else None
    scores = score_entries(scored.scores) if scored else {}
    aps = {"box_ap": last.box_ap if last else None, "mask_ap": last.mask_ap if last else None}
    results = Results(
        status=verdict.status if verdict else "aborted",
        reason=reason,
        epochs=last.epoch if last else 0,
        seconds=session.account.total_seconds(),
        engine_differences=verdict.differences if verdict else (),
        box_target=session.config.evaluation.box_target,
        mask_target=session.config.evaluation.mask_target,
        engine=scored.scores.engine if scored else "",
        **{**aps, **scores},
        epochs_table=tuple(recorder.counted.rows),
        best=BestEpoch(**msgspec.structs.asdict(best), weights=BEST_WEIGHTS_FILE) if best else None,
        notices=tuple(session.notices),
        resumed_at_steps=session.resumed_at_steps,
        time_account=session.account.phases(),
        peak_memory_gib=peak_memory_gib(),
        guard=GuardResults(steps_checked=recorder.counted.steps_checked, events=tuple(recorder.counted.events)),
    )
    session.write(RESULTS_FILE, pretty_json(results))
    return results


@contextmanager
def saves_lost_run(session: Session, training: Training, rescues: Callable[[int], bool]) -> Iterator[None]:
    """Turn a lost run inside the `with` block into a black box, a reason in the log, and results; raise it again.

    Unless `rescues` says that the run had succeeded before this step, by weights that were still being evaluated: then
    the block just ends. Every process comes here at the same step, because all of them saw the same numbers.
    """
    try:
        yield
    except LostRunError as error:
        if rescues(error.step):
            return
        text, image_ids = _save_black_box(session, training, error)
        metadata = {"step": error.step, "event": error.event, "image_ids": image_ids[:SHOWN_IMAGE_IDS]}
        session.log.abort(text, metadata)
        save_results(session, training.recorder, reason=text)
        session.writer.wait()
        text = share_from_first(text, session.topology)  # nobody leaves before the first process has written all
        raise type(error)(text, step=error.step) from error


def _save_black_box(session: Session, training: Training, error: LostRunError) -> tuple[str, list[int]]:
    """Return the whole message and the ids of the images of the step, after the black box was written."""
    own = next(micro_batches(session.config, session.topology, training.data.train, error.step - 1, 1))
    gathered = gather_to_first([to_device(batch, torch.device("cpu")) for batch in own], session.topology)
    batches: list[Batch] = [batch for of_process in gathered for batch in of_process]
    image_ids = [batch.image_ids.tolist() for batch in batches]
    flat_ids = [image_id for ids in image_ids for image_id in ids]
    positions = np.searchsorted(training.data.train.image_ids, flat_ids[:SHOWN_IMAGE_IDS])
    shown = ", ".join(str(training.data.train.image_key(int(position))) for position in positions)
    more = f" and {len(flat_ids) - SHOWN_IMAGE_IDS} more" if len(flat_ids) > SHOWN_IMAGE_IDS else ""
    text = f"{error} Image ids: {shown}{more}."
    if session.folder is None:
        return text, flat_ids
    facts = Facts(
        event=error.event,
        text=text,
        update=error.step,
        epoch=-(-error.step // training.steps_per_epoch),
        processes=session.topology.world,
        accumulation_steps=session.config.optimizer.accumulation_steps,
        image_ids=image_ids,
        polygon_limits=[polygon_limits(batch) for batch in batches],
        weights_are_from_before_the_step=error.event == "non-finite",
    )
    folder = session.folder / BLACK_BOX
    try:
        save_black_box(folder, training.model, training.optimizer, batches, facts=facts, config=session.config)
    except (OSError, StorageError) as problem:
        return f"{text} The black box could not be written to {folder} ({problem}).", flat_ids
    fix = "lower optimizer.learning_rate or lengthen optimizer.warmup_steps; to see the step again:"
    return f"{text} Fix: {fix} maskperf replay {folder}", flat_ids
