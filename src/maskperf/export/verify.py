"""An exported file against the network it was made from, on the same padded images."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int64, UInt8

from maskperf.config import DataConfig
from maskperf.data.coco.categories import CategoryMatch
from maskperf.data.coco.index import CocoIndex
from maskperf.data.images.loader import load_sample
from maskperf.data.images.transforms import normalize_into, resize_and_mirror, target_size_hw
from maskperf.errors import EXIT_RULE, UserError
from maskperf.evaluation.detect import detect
from maskperf.evaluation.detection_limit import most_counted
from maskperf.evaluation.results import ResultTable, box_and_mask_results, joined, result_table
from maskperf.evaluation.scores import GroundTruth, Scores, score
from maskperf.export.formats import Contract, Runner
from maskperf.predict.model import Predictor
from maskperf.structures import Detections, EvaluationBatch, Images

MOST_AP = 0.001  # by which an exported file may differ
MOST_PIXELS, MOST_SCORE = 0.1, 0.001  # the same where there is no ground truth
SAME_OBJECT_PX = 1.0  # detections of one category whose corners are nearer than this are one
RANDOM_IMAGES = 4


class VerificationError(UserError):
    """An exported file whose results are not those of the network."""

    exit_code = EXIT_RULE


@dataclass
class Differences:
    """The largest differences so far between detections of the network and of the file."""

    detections: int = 0
    unmatched: int = 0
    boxes_px: float = 0.0
    scores: float = 0.0
    masks: float = 0.0
    tables: tuple[list[ResultTable], list[ResultTable]] = field(default_factory=lambda: ([], []))

    def line(self) -> str:
        if not self.detections:
            return "note: nothing was found on these images, so nothing was compared. Fix: --verify with other data"
        matched = self.detections - self.unmatched
        return (
            f"largest differences of {matched} of {self.detections} detections: boxes {self.boxes_px:.2g} pixels, "
            f"scores {self.scores:.2g}, mask probabilities {self.masks:.2g}; {self.unmatched} have no partner"
        )


def fitted_size_hw(size_hw: tuple[int, int], data: DataConfig, limit_hw: tuple[int, int]) -> tuple[int, int]:
    """Return the size an image has in an exported network: that of training, or what fits."""
    height, width = target_size_hw(size_hw, data.short_side, data.long_side, data.resize)
    ratio = min(limit_hw[0] / height, limit_hw[1] / width, 1.0)
    return max(1, int(height * ratio)), max(1, int(width * ratio))


def verify_on_data(
    model: Predictor,
    run: Runner,
    contract: Contract,
    val: CocoIndex,
    match: CategoryMatch,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Scores, Scores, Differences]:
    """Return the scores of the network and of the file on all images of a split, and how far they are apart.

    Errors: DataError for an image that cannot be used; VerificationError where an AP differs by more than `MOST_AP`.
    """
    found, data = Differences(), model.config.data
    for position in range(len(val.image_ids)):
        sample = load_sample(val, position, data=data, seed=0, epoch=0, training=False)
        _compare(model, run, contract, sample.bgr, sample.image_id, found)
        progress(position + 1, len(val.image_ids))
    truth, limit = GroundTruth(val.json_path, val, match), most_counted(model.config.model)
    results = (box_and_mask_results(joined(tables)) for tables in found.tables)
    scores = [score(truth, *pair, engine="fast", max_detections=limit) for pair in results]
    for name in ("box_ap", "mask_ap"):
        values = [getattr(entry, name) for entry in scores]
        if not abs(values[0] - values[1]) <= MOST_AP:
            text = f"{name.replace('_ap', ' AP')} is {values[0]:.4f} in PyTorch and {values[1]:.4f} in the file"
            raise VerificationError(f"{text}, more than {MOST_AP:g} apart; {found.line()}. No file was written.")
    return scores[0], scores[1], found


def verify_on_random_images(model: Predictor, run: Runner, contract: Contract) -> Differences:
    """Return how far network and file are apart on images of random rectangles.

    Errors: VerificationError where detections differ by more than `MOST_PIXELS` or `MOST_SCORE`.
    """
    found, generator = Differences(), np.random.default_rng(0)
    for number in range(RANDOM_IMAGES):
        height, width = contract.size_hw[0] - 10 * number, contract.size_hw[1] - 7 * number
        image = generator.integers(0, 255, (height, width, 3), np.uint8)
        for _ in range(12):
            top, left = generator.integers(0, height), generator.integers(0, width)
            image[top : top + height // 3, left : left + width // 4] = generator.integers(0, 255, 3)
        _compare(model, run, contract, image, number, found)
    if found.unmatched or not (found.boxes_px <= MOST_PIXELS and found.scores <= MOST_SCORE):
        raise VerificationError(f"the file differs from the network; {found.line()}. No file was written.")
    return found


def packed(
    bgr: UInt8[np.ndarray, "_ _ 3"], contract: Contract, data: DataConfig
) -> tuple[UInt8[np.ndarray, "1 height width 3"], Int64[np.ndarray, "1 2"]]:
    """Return an image as an exported network takes it: R, G, B, resized, top-left among zeros; and its size there."""
    size_hw = fitted_size_hw((bgr.shape[0], bgr.shape[1]), data, contract.size_hw)
    images = np.zeros((1, *contract.size_hw, 3), np.uint8)
    images[0, : size_hw[0], : size_hw[1]] = resize_and_mirror(bgr, size_hw, is_mirrored=False)[:, :, ::-1]
    return images, np.array([size_hw], np.int64)


def _compare(
    model: Predictor, run: Runner, contract: Contract, bgr: np.ndarray, image_id: int, into: Differences
) -> None:
    data, ids = model.config.data, np.array(contract.category_ids)
    images, sizes_hw = packed(bgr, contract, data)
    batch = [np.repeat(array, contract.batch or 1, axis=0) for array in (images, sizes_hw)]
    boxes, scores, labels, masks = (torch.from_numpy(output[:1]) for output in run(*batch))
    classes = torch.from_numpy(np.argmax(labels.numpy()[..., None] == ids, axis=-1) + 1)
    if not contract.inclusive_corners:
        boxes = (boxes - boxes.new_tensor([0.0, 0.0, 1.0, 1.0])) * (scores > 0)[..., None]
    of_file = Detections(boxes=boxes, scores=scores, labels=classes, valid=scores > 0, mask_probs=masks)
    height, width = sizes_hw[0].tolist()
    normalized = np.empty((*contract.size_hw, 3), np.float32)
    normalize_into(normalized, np.ascontiguousarray(images[0, :height, :width, ::-1]), data.pixel_means_bgr)
    pixels = torch.from_numpy(normalized).permute(2, 0, 1)[None]
    inputs = Images(pixels, torch.from_numpy(sizes_hw))
    of_network = detect(model.network, inputs)
    _add_differences(of_network, of_file, into)
    owner = EvaluationBatch(inputs, torch.tensor([image_id]), torch.tensor([bgr.shape[:2]]))
    for tables, detections in zip(into.tables, (of_network, of_file), strict=True):
        tables.append(result_table(detections, owner, ids, model.network.conventions))


def _add_differences(of_network: Detections, of_file: Detections, into: Differences) -> None:
    """Compare each detection of the network with the nearest one of its category in the file."""
    columns = ("boxes", "labels", "scores", "mask_probs")
    first, second = (
        [getattr(found, name)[0][found.valid[0]].numpy() for name in columns] for found in (of_network, of_file)
    )
    for box, label, score_, mask in zip(*first, strict=True):
        distances = np.where(second[1] == label, np.abs(second[0] - box).max(axis=1, initial=0), np.inf)
        nearest = int(distances.argmin()) if len(distances) else -1
        into.detections += 1
        if nearest < 0 or distances[nearest] > SAME_OBJECT_PX:
            into.unmatched += 1
            continue
        into.boxes_px = max(into.boxes_px, float(distances[nearest]))
        into.scores = max(into.scores, abs(float(score_ - second[2][nearest])))
        into.masks = max(into.masks, float(np.abs(mask - second[3][nearest]).max()))
