"""What a run leaves behind when it ends: results, pictures, the table on the screen."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import msgspec

from maskperf.engine.distributed import share_from_first
from maskperf.evaluation.scores import Scores
from maskperf.evaluation.table import score_entries
from maskperf.mlperf.judge import Judgement
from maskperf.mlperf.session import OpenedData, Session
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.model.weights import save_reference_state
from maskperf.records.json_text import pretty_json
from maskperf.records.pictures import grid_from_results
from maskperf.records.summary import EpochRecord, final_table

PICTURES = 8


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run achieved."""

    status: str  # "success" or "aborted"
    epochs: int
    seconds: float  # run_start to run_stop
    box_ap: float
    mask_ap: float
    engine_differences: tuple[str, ...]  # numbers in which the fast engine and the official one differ


def finish(
    session: Session,
    data: OpenedData,
    model: MaskRcnn,
    *,
    records: Sequence[EpochRecord],
    judgement: Judgement,
    seconds: float,
) -> RunResult:
    """Returns what the run achieved; the first process also writes the files of the run and shows its table."""
    result = RunResult(
        status="success" if judgement.reached else "aborted",
        epochs=len(records),
        seconds=seconds,
        box_ap=judgement.box_ap,
        mask_ap=judgement.mask_ap,
        engine_differences=judgement.differences,
    )
    if session.folder is not None and judgement.scores is not None:
        _write_files(session, data, model, records, judgement, result)
        for difference in judgement.differences:
            session.say(f"the fast engine and the official one differ: {difference}; the run is not a success")
        final_table(
            records,
            box_target=session.config.evaluation.box_target,
            mask_target=session.config.evaluation.mask_target,
            reached=judgement.reached,
            total_seconds=seconds,
            run_folder=session.folder,
            stream=sys.stdout,
        )
    share_from_first(None, session.topology)  # nobody leaves the group before the first process is done
    return result


def _write_files(
    session: Session,
    data: OpenedData,
    model: MaskRcnn,
    records: Sequence[EpochRecord],
    judgement: Judgement,
    result: RunResult,
) -> None:
    config, folder = session.config, session.folder
    session.write("results.json", pretty_json(_results(config.evaluation, records, judgement.scores, result)))
    boxes, masks = judgement.results
    session.write("detections_bbox.json", msgspec.json.encode(boxes).decode())
    session.write("detections_segm.json", msgspec.json.encode(masks).decode())
    if config.model.batch_norm == "frozen":
        save_reference_state(model, folder / "model.pth")
    grid_from_results(
        data.paths.val_json, data.paths.val_images, boxes, masks, num_images=PICTURES, path=folder / "predictions.png"
    )


def _results(targets, records: Sequence[EpochRecord], scores: Scores, result: RunResult) -> dict:
    return {
        **asdict(result),
        "box_target": targets.box_target,
        "mask_target": targets.mask_target,
        "engine": scores.engine,
        **score_entries(scores),
        "epochs_table": [asdict(record) for record in records],
    }
