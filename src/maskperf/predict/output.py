"""The files of a prediction: drawn images, COCO results, a table and masks."""

import csv
import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt16
from PIL import Image
from pycocotools import mask as coco_masks

from maskperf.files import pretty_json, replace_file, write_text
from maskperf.predict.result import Prediction

COLUMNS = ("file", "image_id", "object", "category_id", "name", "score", "x1", "y1", "x2", "y2", "mask_area")
JPEG_QUALITY = 92


class Output:
    """Collects results by image, in the order they are added, and writes those kinds of files that are wanted."""

    def __init__(self, folder: Path, kinds: Collection[str], categories: dict[int, str]):
        self.folder, self.kinds, self._categories = folder, kinds, categories
        self._images: list[dict[str, Any]] = []
        self._results: list[dict[str, Any]] = []
        self._rows: list[tuple[Any, ...]] = []

    def add(self, file: str, image_id: int, result: Prediction) -> None:
        """Take the results of one image into the tables."""
        height, width = result.size_hw
        self._images.append({"id": image_id, "file_name": file, "height": height, "width": width})
        self._results += result.to_coco(image_id)
        columns = zip(result.labels.tolist(), result.names, result.scores.tolist(), strict=True)
        geometry = zip(result.boxes.round(2).tolist(), result.mask_areas.tolist(), strict=True)
        for number, ((label, name, score), (box, area)) in enumerate(zip(columns, geometry, strict=True), start=1):
            self._rows.append((file, image_id, number, label, name, round(score, 6), *box, area))

    def write_pictures(self, name: str, result: Prediction, *, is_frame: bool = False) -> None:
        """Write the drawn image, unless it is a frame of a video, and the masks; threads may do so at once.

        Errors: StorageError where they cannot be written.
        """
        if "images" in self.kinds and not is_frame:
            self._save(result.draw(), "images", f"{name}.jpg", format="JPEG", quality=JPEG_QUALITY)
        if "masks" in self.kinds:
            self._save(Image.fromarray(instance_map(result)), "masks", f"{name}.png", format="PNG")

    def finish(self) -> list[Path]:
        """Write the tables of all images so far, and return what there is now."""
        written = [self.folder / kind for kind in ("images", "masks", "videos") if (self.folder / kind).is_dir()]
        if "json" in self.kinds:
            categories = [{"id": identity, "name": name} for identity, name in self._categories.items()]
            write_text(self.folder / "predictions.json", pretty_json(self._results))
            write_text(
                self.folder / "images.json",
                pretty_json({"images": self._images, "annotations": [], "categories": categories}),
            )
            written += [self.folder / "predictions.json", self.folder / "images.json"]
        if "csv" in self.kinds:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([COLUMNS, *self._rows])
            write_text(self.folder / "predictions.csv", text.getvalue())
            written.append(self.folder / "predictions.csv")
        return written

    @property
    def counts(self) -> tuple[int, int]:
        """How many images and how many objects there are so far."""
        return len(self._images), len(self._results)

    def _save(self, image: Image.Image, kind: str, name: str, **options: Any) -> None:
        path = self.folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda temporary: image.save(temporary, **options))


def instance_map(result: Prediction) -> UInt16[np.ndarray, "height width"]:
    """Return an image whose pixels are 0, or the number of the surest object there: its row in the table."""
    pixels = np.zeros(result.size_hw, np.uint16)
    for number, code in reversed(list(enumerate(result.run_lengths, start=1))):
        pixels[coco_masks.decode(code) > 0] = number
    return pixels
