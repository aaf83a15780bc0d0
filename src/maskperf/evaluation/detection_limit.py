"""How many detections of an image the metric counts: the best 100 by COCO, or as many as the model gives beyond."""

import numpy as np

from maskperf.config import ModelConfig
from maskperf.data.coco.index import CocoIndex
from maskperf.evaluation.scores import COCO_DETECTIONS


def most_counted(model: ModelConfig) -> int:
    """Return how many detections of an image the metric counts."""
    return max(COCO_DETECTIONS, model.detections_per_image)


def detection_notices(val: CocoIndex, detections_per_image: int) -> list[str]:
    """Return notices where images have more objects than the model gives, and where its number is not COCO's 100."""
    objects = np.diff(val.object_offsets)
    most, crowded = int(objects.max(initial=0)), int((objects > detections_per_image).sum())
    key = f"model.detections_per_image={detections_per_image}"
    notices = []
    if crowded:
        images = "1 image has" if crowded == 1 else f"{crowded} images have"
        notices.append(
            f"{val.json_path}: {images} more than {detections_per_image} objects (at most {most}), but {key}: the "
            f"others can never be found. Set model.detections_per_image={most} to count them; the benchmark itself "
            f"knows no other limit than {COCO_DETECTIONS}"
        )
    if detections_per_image != COCO_DETECTIONS:
        notices.append(
            f"{key}: no image gets more detections, and the metric counts "
            f"{'all of them' if detections_per_image > COCO_DETECTIONS else COCO_DETECTIONS}; COCO's own number is "
            f"{COCO_DETECTIONS}"
        )
    return notices
