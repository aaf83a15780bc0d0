"""Notes about COCO's limit of the best 100 detections of an image."""

import numpy as np

from maskperf.data.coco.index import CocoIndex


def detection_notices(val: CocoIndex, *, max_detections: int, detections_per_image: int) -> list[str]:
    """Return a notice where images have more objects than count, and one where metric and model differ.

    `max_detections` is the metric's limit (evaluation.max_detections), the other that of the model.
    """
    objects = np.diff(val.object_offsets)
    most, crowded = int(objects.max(initial=0)), int((objects > max_detections).sum())
    counts = f"COCO's metric counts the best {max_detections} detections of an image"
    notices = []
    if crowded:
        images = "1 image has" if crowded == 1 else f"{crowded} images have"
        keys = f"evaluation.max_detections={most} and model.detections_per_image={max(most, detections_per_image)}"
        notices.append(
            f"{val.json_path}: {images} more than {max_detections} objects (at most {most}), but {counts}: the others "
            f"can never be found. Set {keys} to count them; the benchmark itself knows no other limit than 100"
        )
    if detections_per_image < max_detections:
        notices.append(
            f"model.detections_per_image={detections_per_image} is below evaluation.max_detections={max_detections}: "
            f"no image gets more than {detections_per_image} detections. Set both alike if that is not meant"
        )
    elif detections_per_image > max_detections and not crowded:
        notices.append(
            f"model.detections_per_image={detections_per_image} is above evaluation.max_detections={max_detections}, "
            f"but {counts}. Set evaluation.max_detections={detections_per_image} to count all of them"
        )
    return notices
