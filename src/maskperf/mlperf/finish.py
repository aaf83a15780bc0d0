"""What a run leaves behind when it ends: results, pictures, the table on the screen."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import msgspec

from maskperf.evaluation.scores import STAT_NAMES, Scores
from maskperf.mlperf.judge import Judgement
from maskperf.mlperf.session import OpenedData, Session
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.model.weights import save_reference_state
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


def finish(
    session: Session,
    data: OpenedData,
    model: MaskRcnn,
    *,
    records: Sequence[EpochRecord],
    judgement: Judgement,
    result: RunResult,
) -> None:
    """Writes the files of a finished run and shows its table; does nothing in all processes but the first."""
    folder = session.folder
    scores = judgement.scores
    if folder is None or scores is None:
        return
    config = session.config
    session.write("results.json", _pretty(_results(config.evaluation, records, scores, result)))
    boxes, masks = judgement.results
    session.write("detections_bbox.json", msgspec.json.encode(boxes).decode())
    session.write("detections_segm.json", msgspec.json.encode(masks).decode())
    if config.model.batch_norm == "frozen":
        save_reference_state(model, folder / "model.pth")
    grid_from_results(
        data.paths.val_json, data.paths.val_images, boxes, masks, num_images=PICTURES, path=folder / "predictions.png"
    )
    final_table(
        records,
        box_target=config.evaluation.box_target,
        mask_target=config.evaluation.mask_target,
        reached=result.status == "success",
        total_seconds=result.seconds,
        run_folder=folder,
        stream=sys.stdout,
    )


def _results(targets, records: Sequence[EpochRecord], scores: Scores, result: RunResult) -> dict:
    return {
        **asdict(result),
        "box_target": targets.box_target,
        "mask_target": targets.mask_target,
        "engine": scores.engine,
        "box_stats": dict(zip(STAT_NAMES, scores.box_stats, strict=True)),
        "mask_stats": dict(zip(STAT_NAMES, scores.mask_stats, strict=True)),
        "box_ap_per_category": scores.box_ap_per_category,
        "mask_ap_per_category": scores.mask_ap_per_category,
        "epochs_table": [asdict(record) for record in records],
    }


def _pretty(value) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"
