"""What a run leaves behind when it ends: results, pictures, the table on the screen."""

import sys
from dataclasses import asdict, dataclass

import msgspec

from maskperf.data.coco.categories import with_written_ids
from maskperf.data.coco.document import CategoryRow
from maskperf.data.coco.index import read_annotations
from maskperf.evaluation.table import score_entries
from maskperf.files import pretty_json
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.model.weights import load_model_weights, save_reference_state
from maskperf.pictures.best_worst import write_picture_entries
from maskperf.pictures.pictures import grid_from_results
from maskperf.run.evaluator import Judgement
from maskperf.run.memory import peak_memory_gib
from maskperf.run.session import BEST_WEIGHTS_FILE, WEIGHTS_FILE, OpenedData, Session
from maskperf.run.step_recorder import StepRecorder
from maskperf.run.summary import best_record, final_table

PICTURES = 8


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run achieved."""

    status: str  # "success", "done" (a run without targets came to its end) or "aborted"
    reason: str  # why it was aborted; empty otherwise
    epochs: int
    seconds: float  # run_start to run_stop
    box_ap: float | None  # None before the first evaluation
    mask_ap: float | None
    engine_differences: tuple[str, ...]  # numbers in which the fast engine and the official one differ


def finish(
    session: Session, data: OpenedData, model: MaskRcnn, *, recorder: StepRecorder, judgement: Judgement
) -> RunResult:
    """Return what the run achieved; the first process also writes the files of the run and shows its table."""
    result = save_results(session, recorder, reason=_reason(judgement), judgement=judgement)
    if session.folder is not None:
        _write_files(session, data, model, judgement)
        for difference in judgement.differences:
            session.say(f"the fast engine and the official one differ: {difference}; the run is not a success")
        drift = session.log.wall_clock_drift_seconds()
        if abs(drift) > 1:
            session.say(f"the wall clock was moved by {drift:.1f} s during the run; no time given here depends on it")
        final_table(
            recorder.records,
            box_target=session.config.evaluation.box_target,
            mask_target=session.config.evaluation.mask_target,
            status=judgement.status,
            total_seconds=result.seconds,
            run_folder=session.folder,
            stream=sys.stdout,
        )
    return result


def _reason(judgement: Judgement) -> str:
    """Return why the run is aborted; empty where it is not."""
    if judgement.differences:
        return "the fast COCO engine and the official one do not agree"
    if judgement.status == "aborted":
        return "the steps of the recipe are used up and a target is not met"
    return ""


def save_results(
    session: Session, recorder: StepRecorder, *, reason: str, judgement: Judgement | None = None
) -> RunResult:
    """Return what the run achieved, after the first process wrote it to results.json.

    Without a judgement the run was cut short, for `reason`.
    """
    session.account.stop()
    last, best = recorder.records[-1] if recorder.records else None, best_record(recorder.records)
    scores = judgement.scores if judgement else None
    result = RunResult(
        status=judgement.status if judgement else "aborted",
        reason=reason,
        epochs=last.epoch if last else 0,
        seconds=session.account.total_seconds(),
        box_ap=last.box_ap if last else None,
        mask_ap=last.mask_ap if last else None,
        engine_differences=judgement.differences if judgement else (),
    )
    entries = {
        **asdict(result),
        "box_target": session.config.evaluation.box_target,
        "mask_target": session.config.evaluation.mask_target,
        **({"engine": scores.engine, **score_entries(scores)} if scores else {}),
        "epochs_table": [asdict(record) for record in recorder.records],
        "best": {**asdict(best), "weights": BEST_WEIGHTS_FILE} if best else None,
        "notices": session.notices,
        "time_account": session.account.phases(),
        "peak_memory_gib": peak_memory_gib(),
        "guard": {
            "steps_checked": recorder.steps_checked,
            "events": [asdict(event) for event in recorder.events],
        },
    }
    session.write("results.json", pretty_json(entries))
    return result


def _write_files(session: Session, data: OpenedData, model: MaskRcnn, judgement: Judgement) -> None:
    config, folder = session.config, session.folder
    boxes, masks = (with_written_ids(results, data.categories) for results in judgement.found)
    for name, results in (("detections_bbox.json", boxes), ("detections_segm.json", masks)):
        session.write(name, msgspec.json.encode(data.val.with_image_keys(results)).decode())
    if config.model.batch_norm == "frozen":
        load_model_weights(model, folder / WEIGHTS_FILE)  # those that were judged; training may have gone on from them
        save_reference_state(model, folder / "model.pth")
    document, images = read_annotations(data.val), data.paths.val_images
    written_ids = data.categories.written_ids
    document.categories = [
        CategoryRow(id=written_ids[identity], name=name) for identity, name in data.categories.names.items()
    ]
    grid_from_results(document, images, boxes, masks, num_images=PICTURES, path=folder / "predictions.png")
    write_picture_entries(document, images, boxes, masks, folder=folder)
