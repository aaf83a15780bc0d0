"""What a run leaves behind when it ends: results, pictures, the table on the screen."""

import sys
from dataclasses import asdict, dataclass

import msgspec

from maskperf.data.coco import read_annotations
from maskperf.engine.distributed import share_from_first
from maskperf.evaluation.scores import Scores
from maskperf.evaluation.table import score_entries
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.model.weights import save_reference_state
from maskperf.records.best_worst import write_picture_entries
from maskperf.records.json_text import pretty_json
from maskperf.records.memory import peak_memory_gib
from maskperf.records.pictures import grid_from_results
from maskperf.records.step_recorder import StepRecorder
from maskperf.records.summary import final_table
from maskperf.report.write import write_report
from maskperf.runner.judge import Judgement
from maskperf.runner.session import OpenedData, Session

PICTURES = 8


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run achieved."""

    status: str  # "success" or "aborted"
    reason: str  # why it was aborted; empty for a success
    epochs: int
    seconds: float  # run_start to run_stop
    box_ap: float | None  # None before the first evaluation
    mask_ap: float | None
    engine_differences: tuple[str, ...]  # numbers in which the fast engine and the official one differ


def finish(
    session: Session, data: OpenedData, model: MaskRcnn, *, recorder: StepRecorder, judgement: Judgement
) -> RunResult:
    """Returns what the run achieved; the first process also writes the files of the run and shows its table."""
    reason = "" if judgement.reached else "the steps of the recipe are used up and a target is not met"
    if judgement.differences:
        reason = "the fast COCO engine and the official one do not agree"
    result = save_results(session, recorder, scores=judgement.scores, reason=reason, judgement=judgement)
    if session.folder is not None:
        _write_files(session, data, model, judgement)
        for difference in judgement.differences:
            session.say(f"the fast engine and the official one differ: {difference}; the run is not a success")
        drift = session.log.wall_clock_drift_seconds()
        if abs(drift) > 1:
            session.say(f"the wall clock was moved by {drift:.1f} s during the run; no time given here depends on it")
        page, _ = write_report(session.folder)
        final_table(
            recorder.records,
            box_target=session.config.evaluation.box_target,
            mask_target=session.config.evaluation.mask_target,
            reached=judgement.reached,
            total_seconds=result.seconds,
            run_folder=session.folder,
            stream=sys.stdout,
        )
        session.say(f"report: {page}")
    share_from_first(None, session.topology)  # nobody leaves the group before the first process is done
    return result


def save_results(
    session: Session, recorder: StepRecorder, *, scores: Scores | None, reason: str, judgement: Judgement | None = None
) -> RunResult:
    """Returns what the run achieved, after the first process wrote it to results.json; `reason` empty: a success."""
    session.account.stop()
    last = recorder.records[-1] if recorder.records else None
    result = RunResult(
        status="aborted" if reason else "success",
        reason=reason,
        epochs=len(recorder.records),
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
    boxes, masks = judgement.results
    session.write("detections_bbox.json", msgspec.json.encode(boxes).decode())
    session.write("detections_segm.json", msgspec.json.encode(masks).decode())
    if config.model.batch_norm == "frozen":
        save_reference_state(model, folder / "model.pth")
    document, images = read_annotations(data.val), data.paths.val_images
    grid_from_results(document, images, boxes, masks, num_images=PICTURES, path=folder / "predictions.png")
    write_picture_entries(document, images, boxes, masks, folder=folder)
