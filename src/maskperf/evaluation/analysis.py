"""What an evaluation got right and wrong, beyond its AP: the adapter over hotcoco's analyses."""

import math
from collections.abc import Sequence

import hotcoco
import numpy as np

from maskperf.evaluation.scores import (
    ALL_AREAS,
    COCO_DETECTIONS,
    IOU_50,
    IOU_75,
    MOST_DETECTIONS,
    GroundTruth,
    evaluated,
)
from maskperf.schema import Analysis, CalibrationBin, ErrorKind, KindAnalysis

LEAST_IOU = 0.5  # at which a detection is that of an object
BACKGROUND_IOU = 0.1  # below it TIDE calls a detection one of the background
SURE_SCORE = 0.5  # detections below it are not counted as confusions
CALIBRATION_BINS = 10
ERROR_KINDS = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")


def analyze(
    ground_truth: GroundTruth,
    box_results: Sequence[dict],
    mask_results: Sequence[dict],
    *,
    max_detections: int = COCO_DETECTIONS,
) -> Analysis:
    """Return curves, error kinds, calibration and confusions of results that `score` has accepted.

    Confusions are those of boxes: they match the detections of an image with its objects whatever the categories.
    Source: Bolya et al., TIDE (2020), for the kinds of errors.
    """
    boxes = evaluated(ground_truth, box_results, "bbox", "fast", max_detections)
    masks = evaluated(ground_truth, mask_results, "segm", "fast", max_detections)
    confusion = boxes.confusion_matrix(iou_thr=LEAST_IOU, min_score=SURE_SCORE)
    rows, columns = np.nonzero(confusion["matrix"])
    counts = confusion["matrix"][rows, columns]
    return Analysis(
        boxes=_analysis_of_kind(boxes),
        masks=_analysis_of_kind(masks),
        categories=tuple(ground_truth.category_names[identity] for identity in confusion["cat_ids"]),
        confusions=tuple(zip(rows.tolist(), columns.tolist(), counts.tolist(), strict=True)),
        least_score=SURE_SCORE,
        least_iou=LEAST_IOU,
    )


def _analysis_of_kind(evaluation: hotcoco.COCOeval) -> KindAnalysis:
    assert evaluation.eval is not None
    precision = np.asarray(evaluation.eval["precision"])[..., ALL_AREAS, MOST_DETECTIONS]  # thresholds, recalls, ...
    tide = evaluation.tide_errors(pos_thr=LEAST_IOU, bg_thr=BACKGROUND_IOU)
    calibration = evaluation.calibration(n_bins=CALIBRATION_BINS, iou_threshold=LEAST_IOU)
    return KindAnalysis(
        precision_50=_mean_curve(precision[IOU_50]),
        precision_75=_mean_curve(precision[IOU_75]),
        errors=tuple(
            ErrorKind(kind=kind, count=tide["counts"][kind], ap_lost=_finite(tide["delta_ap"][kind]))
            for kind in ERROR_KINDS
        ),
        calibration=tuple(
            CalibrationBin(
                confidence=_finite(entry["avg_confidence"]) if entry["count"] else None,
                accuracy=_finite(entry["avg_accuracy"]) if entry["count"] else None,
                count=entry["count"],
            )
            for entry in calibration["bins"]
        ),
        calibration_error=_finite(calibration["ece"]) if calibration["num_detections"] else None,
    )


def _mean_curve(precision: np.ndarray) -> tuple[float | None, ...]:
    """Return the precision at each recall, the mean over the categories that have objects; their mean is the AP."""
    counted = precision[:, (precision > -1).all(axis=0)]  # -1 marks categories without objects
    return tuple(counted.mean(axis=1).tolist()) if counted.size else (None,) * len(precision)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
