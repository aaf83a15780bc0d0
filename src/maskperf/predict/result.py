"""What a model found in one image, at the scale of that image."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from pycocotools import mask as coco_masks

from maskperf.pictures.drawing import Overlay, category_colours, draw_image, drawable_names, short_name
from maskperf.predict.extras import need

SHOWN_OBJECTS = 5


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Prediction:
    """The objects found in one image, the surest first.

    Boxes are x1, y1, x2, y2 in pixels of the image as it is stored, with width x2 - x1: x2 and y2 are the right and
    lower edge of the last pixel. Labels are the category ids of the data set that the weights were trained on.
    """

    boxes: Float[np.ndarray, "objects 4"]
    scores: Float[np.ndarray, " objects"]
    labels: Int[np.ndarray, " objects"]
    run_lengths: tuple[dict[str, Any], ...]  # masks of the whole image, as COCO's compressed run-length codes
    size_hw: tuple[int, int]
    categories: Mapping[int, str]  # of the model
    read_bgr: Callable[[], UInt8[np.ndarray, "height width 3"]]  # the image itself

    def __repr__(self) -> str:
        pairs = zip(self.names[:SHOWN_OBJECTS], self.scores.tolist(), strict=False)
        surest = [f"{name} {score:.2f}" for name, score in pairs] + ["..."] * (len(self) > SHOWN_OBJECTS)
        return (
            f"Prediction({len(self)} objects in {self.size_hw[0]} x {self.size_hw[1]}: {', '.join(surest) or 'none'})"
        )

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """The name of each object's category."""
        return [self.categories[label] for label in self.labels.tolist()]

    @cached_property
    def masks(self) -> Bool[np.ndarray, "objects height width"]:
        """The masks as pixels of the whole image, made at the first use."""
        if not self.run_lengths:
            return np.zeros((0, *self.size_hw), bool)
        return np.ascontiguousarray(coco_masks.decode(list(self.run_lengths)).transpose(2, 0, 1)).astype(bool)

    @cached_property
    def mask_areas(self) -> Int[np.ndarray, " objects"]:
        """The number of pixels of each mask."""
        return np.asarray(coco_masks.area(list(self.run_lengths)), np.int64).reshape(-1)

    def above(self, threshold: float | int) -> "Prediction":
        """Return the objects whose score is `threshold` or more."""
        return self.rows(np.flatnonzero(self.scores >= threshold))

    def rows(self, indices: Int[np.ndarray, " indices"]) -> "Prediction":
        """Return some of the objects, in the order of `indices`."""
        codes = tuple(self.run_lengths[index] for index in indices.tolist())
        boxes, scores, labels = (column[indices] for column in (self.boxes, self.scores, self.labels))
        return replace(self, boxes=boxes, scores=scores, labels=labels, run_lengths=codes)

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """Return entries of COCO's result format, with box and mask."""
        sides = np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1).tolist()
        rows = zip(self.labels.tolist(), sides, self.run_lengths, self.scores.tolist(), strict=True)
        return [
            {"image_id": image_id, "category_id": label, "bbox": box, "segmentation": dict(code), "score": score}
            for label, box, code, score in rows
        ]

    def to_supervision(self) -> Any:
        """Return a `supervision.Detections`.

        Errors: ConfigError where the package supervision is not installed.
        """
        supervision = need("supervision", purpose="to_supervision()", install="supervision")
        return supervision.Detections(
            xyxy=self.boxes.astype(np.float32).reshape(-1, 4),
            mask=self.masks,
            confidence=self.scores.astype(np.float32),
            class_id=self.labels.astype(int),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def draw(self, *, scale: int | None = None) -> Image.Image:
        """Return the image with its objects drawn over it; a small image is enlarged by a whole number.

        `scale` is that number; without it, it is the smallest that makes the longer side 640 pixels, 4 at most.
        A file is read again.
        """
        names = drawable_names(self.categories)
        colours = category_colours(list(names.values()))
        overlays = []
        for box, label, score, code in zip(
            self.boxes.tolist(), self.labels.tolist(), self.scores.tolist(), self.run_lengths, strict=True
        ):
            x1, y1, x2, y2 = box
            text = f"{short_name(names[label])} {score:.2f}"
            mask = coco_masks.decode(code).astype(bool)
            overlays.append(Overlay([x1, y1, x2 - x1, y2 - y1], mask, text, colours[names[label]]))
        pixels = np.ascontiguousarray(self.read_bgr()[:, :, ::-1])
        return draw_image(pixels, overlays, scale=scale)
