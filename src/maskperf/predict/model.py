"""Weights ready for use: `maskperf.load` and what it returns."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import UInt8

from maskperf.config import RunConfig
from maskperf.data.images.buckets import padded_size
from maskperf.data.images.collate import Sample, make_evaluation_batch
from maskperf.data.images.objects import packed
from maskperf.data.images.raw_images import images_on_device
from maskperf.data.images.transforms import target_size_hw
from maskperf.engine.build import build_model
from maskperf.engine.distributed import claim_device
from maskperf.engine.precision import set_precision
from maskperf.errors import ConfigError
from maskperf.evaluation.detect import detect
from maskperf.evaluation.predict import GPU_BATCH_SIZE
from maskperf.evaluation.results import result_table
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.predict.inputs import read_bgr
from maskperf.predict.result import Prediction
from maskperf.predict.stored import resolve_for_weights
from maskperf.predict.tiles import merged, tile_boxes
from maskperf.techniques import chosen_techniques, using

SURE_SCORE = 0.5  # below it, most objects of most models are not there
Bgr = UInt8[np.ndarray, "_ _ 3"]  # rows of B, G, R
Several = list[Any] | tuple[Any, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictor:
    """A network with its weights, and what is needed to use it on images of any kind. Threads may share it."""

    network: MaskRcnn
    config: RunConfig
    categories: dict[int, str]  # names by the ids of the data set, in the order of the network's classes
    device: torch.device
    notices: tuple[str, ...]
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @overload
    def predict(
        self, image: Several, *, threshold: float | int = ..., channels: str | None = ..., tile: int = ...
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self, image: Any, *, threshold: float | int = ..., channels: str | None = ..., tile: int = ...
    ) -> Prediction: ...

    def predict(
        self, image: Any, *, threshold: float | int = SURE_SCORE, channels: str | None = None, tile: int = 0
    ) -> Prediction | list[Prediction]:
        """Return what is found in an image; of a list of images a list.

        An image is a path, a Pillow image, a numpy array (height, width, 3) or a tensor (3, height, width) of uint8;
        for these two `channels` states the order, "RGB" or "BGR".
        `threshold`: objects of lower scores are left out. `tile`: see `predict_tiled`; 0 is the whole image at once.
        Errors: ConfigError for what is no image, or a threshold below the model's own; DataError for a broken file.
        """
        self.check_threshold(threshold)
        images = list(image) if isinstance(image, list | tuple) else [image]
        limit = self.config.data.max_image_pixels
        readers = [partial(read_bgr, entry, channels=channels, max_pixels=limit) for entry in images]
        found = self.predict_arrays((reader() for reader in readers), tile=tile)
        # An image is read again where it is drawn, so that a list of files does not fill the memory.
        results = [
            replace(result.above(threshold), read_bgr=reader) for result, reader in zip(found, readers, strict=True)
        ]
        return results if isinstance(image, list | tuple) else results[0]

    def check_threshold(self, threshold: float | int) -> None:
        """Raise a ConfigError for a threshold that no score, or every score, would pass."""
        own = self.config.model.score_threshold
        if not own <= threshold <= 1:
            raise ConfigError(
                f"threshold={threshold:g}: the model itself drops detections below {own:g}. Fix: give a value from "
                f"{own:g} to 1, or load the weights with the setting model.score_threshold={max(threshold, 0):g}."
            )

    def predict_arrays(self, images: Iterable[Bgr], *, tile: int = 0) -> Iterator[Prediction]:
        """Yield what is found in images of B, G, R, in their order, down to the score threshold of the model."""
        if tile:
            yield from (self.predict_tiled(image, tile) for image in images)
            return
        size = GPU_BATCH_SIZE if self.device.type == "cuda" else 1
        group: list[Bgr] = []
        for image in images:
            if len(group) == size or (group and self._padded_hw(image) != self._padded_hw(group[0])):
                yield from self._predict_batch(group)
                group = []
            group.append(image)
        yield from self._predict_batch(group) if group else ()

    def _padded_hw(self, image: Bgr) -> tuple[int, int]:
        """Return the padded size of an image; only images of one share a batch, so neighbours change no result."""
        data = self.config.data
        size_hw = target_size_hw((image.shape[0], image.shape[1]), data.short_side, data.long_side, data.resize)
        return padded_size(size_hw, (), data.size_divisor)

    def predict_tiled(self, image: Bgr, tile: int) -> Prediction:
        """Return what is found in overlapping tiles of `tile` pixels and in the whole image, each object once."""
        boxes = tile_boxes(image.shape[:2], tile)
        if not boxes:
            return next(self.predict_arrays([image]))
        parts = (np.ascontiguousarray(image[top:bottom, left:right]) for left, top, right, bottom in boxes)
        whole, *of_tiles = self.predict_arrays([image, *parts])
        return merged(whole, of_tiles, boxes)

    def _predict_batch(self, images: Sequence[Bgr]) -> list[Prediction]:
        data = self.config.data
        samples = [_sample(image, number, data) for number, image in enumerate(images)]
        batch = make_evaluation_batch(samples, data.size_divisor)
        with self._lock, using(chosen_techniques(self.config.speed)):
            pixels = images_on_device(batch.images, self.device, dtype=self.network.compute_dtype)
            detections = detect(self.network, pixels)
        table = result_table(detections, batch, np.array(list(self.categories)), self.network.conventions)
        codes, sides = table.masks(), table.boxes_xywh
        boxes = np.concatenate([sides[:, :2], sides[:, :2] + sides[:, 2:]], axis=1)
        found = []
        for number, image in enumerate(images):
            rows = np.flatnonzero(table.image_ids == number)
            result = Prediction(
                boxes=boxes[rows],
                scores=table.scores[rows],
                labels=table.category_ids[rows],
                run_lengths=tuple(codes[row] for row in rows.tolist()),
                size_hw=(image.shape[0], image.shape[1]),
                categories=self.categories,
                read_bgr=lambda image=image: image,  # type: ignore[misc]  # bound now
            )
            found.append(result)
        return found


def load(
    weights: str | Path, *, device: str = "auto", recipe: str | RunConfig | None = None, settings: Sequence[str] = ()
) -> Predictor:
    """Return the model of a weight file, ready to predict.

    The configuration is that of `recipe`, a name or a file, else the one stored in the weights, else coco; `settings`
    are pairs such as "model.score_threshold=0.01". `device` is auto, cpu or cuda.
    Errors: ConfigError for settings that cannot be used; DataError for a file that cannot.
    """
    path = Path(weights).expanduser()
    pairs = [*settings, *([f"system.device={device}"] if device != "auto" else [])]
    config, metadata, notices = resolve_for_weights(path, recipe=recipe, pairs=pairs)
    ids, names = metadata.get("category_ids", []), metadata.get("category_names", [])
    num_classes = config.model.num_classes or len(ids) + 1
    if not ids:
        ids = list(range(1, num_classes))
        names = [f"class {number}" for number in ids]
        notices.append(f"{path}: does not name its classes; labels are their numbers")
    network, loaded = build_model(replace(config.model, num_classes=num_classes, initial_weights=str(path)), seed=0)
    chosen = claim_device(config.system.device)
    network.to(chosen).eval()
    with using(chosen_techniques(config.speed)):
        set_precision(network, config.speed.precision, chosen, notices.append)
    categories = dict(zip(ids, names, strict=True))
    said = (*notices, *loaded)
    return Predictor(network=network, config=config, categories=categories, device=chosen, notices=said)


def _sample(image: Bgr, number: int, data: Any) -> Sample:
    """Return an image as the loader has it, without ground truth."""
    size_hw = (image.shape[0], image.shape[1])
    return Sample(
        **vars(packed([], with_runs=False)),
        bgr=image,
        size_hw=target_size_hw(size_hw, data.short_side, data.long_side, data.resize),
        is_mirrored=False,
        means_bgr=data.pixel_means_bgr,
        resize=data.resize,
        image_id=number,
        sample_seed=0,
        original_size_hw=size_hw,
    )
