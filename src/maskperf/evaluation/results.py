"""Detections as COCO results: columns, turned into entries only where entries are read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from pycocotools import mask as coco_masks
from torch import Tensor

from maskperf.model.conventions import REFERENCE, Conventions
from maskperf.model.conventions import edges as edges_of
from maskperf.ops.paste import edges_of_masks, paste_by_grid, paste_edges
from maskperf.structures import Detections, EvaluationBatch


@dataclass(frozen=True, kw_only=True, eq=False)
class ResultTable:
    """Detections at the scale of their own images, one row each."""

    image_ids: Int[np.ndarray, " rows"]
    category_ids: Int[np.ndarray, " rows"]
    scores: Float[np.ndarray, " rows"]
    boxes_xywh: Float[np.ndarray, "rows 4"]
    mask_areas: Int[np.ndarray, " rows"]
    sizes_hw: Int[np.ndarray, "rows 2"]
    codes: Shaped[np.ndarray, " rows"]  # text: COCO's compressed run-length codes

    def __len__(self) -> int:
        return len(self.codes)

    def rows(self, indices: Int[np.ndarray, " indices"]) -> "ResultTable":
        """Return a table of some rows, in the order of `indices`."""
        return ResultTable(**{name: column[indices] for name, column in vars(self).items()})

    def masks(self) -> list[dict]:
        """Return the masks as COCO has them."""
        sizes: dict[tuple[int, int], list[int]] = {}  # one list for all masks of a size: half as many objects to make
        pairs = zip(map(tuple, self.sizes_hw.tolist()), self.codes.tolist(), strict=True)
        return [{"size": sizes.setdefault(size, list(size)), "counts": code} for size, code in pairs]


NO_RESULTS = ResultTable(
    image_ids=np.zeros(0, np.int64),
    category_ids=np.zeros(0, np.int64),
    scores=np.zeros(0),
    boxes_xywh=np.zeros((0, 4)),
    mask_areas=np.zeros(0, np.int64),
    sizes_hw=np.zeros((0, 2), np.int64),
    codes=np.zeros(0, object),
)


class Results(Sequence[dict[str, Any]]):
    """The boxes ("bbox") or masks ("segmentation") of a table as entries of COCO's result format, made when read."""

    def __init__(self, table: ResultTable, geometry: str):
        self.table = table
        self.geometry = geometry

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]  # takes no slices
        return next(iter(Results(self.table.rows(np.array([range(len(self))[index]])), self.geometry)))

    def __iter__(self) -> Iterator[dict]:
        table = self.table
        owners = zip(table.image_ids.tolist(), table.category_ids.tolist(), strict=True)
        shapes = table.boxes_xywh.tolist() if self.geometry == "bbox" else table.masks()
        for (image_id, category_id), shape, score in zip(owners, shapes, table.scores.tolist(), strict=True):
            yield {"image_id": image_id, "category_id": category_id, self.geometry: shape, "score": score}


def box_and_mask_results(table: ResultTable) -> tuple[Results, Results]:
    """Return the entries of the boxes and those of the masks."""
    return Results(table, "bbox"), Results(table, "segmentation")


def result_table(
    detections: Detections,
    batch: EvaluationBatch,
    category_ids: Int[np.ndarray, " categories"],
    conventions: Conventions = REFERENCE,
) -> ResultTable:
    """Return the detections of a batch, image by image, in their order; waits for the device.

    Image and category ids are the data set's own: label k is `category_ids[k - 1]`.
    Coordinates are those of the original image. Boxes are x, y, width, height, with the "+1" where the conventions
    have it; masks are compressed run-length codes of the whole image.
    Source: the reference's COCO evaluation, `prepare_for_coco_detection` and `prepare_for_coco_segmentation`.
    """
    assert detections.mask_probs is not None, "the mask head has not run on these detections"
    valid, labels = detections.valid.cpu(), detections.labels.cpu()
    boxes, scores = detections.boxes.cpu().float(), detections.scores.cpu().float()
    mask_probs = detections.mask_probs.cpu().float()
    sizes_hw, original_sizes_hw = batch.images.sizes_hw.tolist(), batch.original_sizes_hw.tolist()
    tables = []
    for index, image_id in enumerate(batch.image_ids.tolist()):
        is_valid, size_hw = valid[index], tuple(original_sizes_hw[index])
        image_boxes = rescale_boxes(edges_of(boxes[index][is_valid], conventions), tuple(sizes_hw[index]), size_hw)
        count = len(image_boxes)
        pasted = mask_probs[index][is_valid], image_boxes, size_hw
        is_grid = conventions.paste == "grid"
        edges, owners = edges_of_masks(paste_by_grid(*pasted)) if is_grid else paste_edges(*pasted)
        areas = np.bincount(owners[::2], weights=edges[1::2] - edges[::2], minlength=count)
        table = ResultTable(
            image_ids=np.full(count, image_id),
            category_ids=category_ids[labels[index][is_valid].numpy() - 1],
            scores=scores[index][is_valid].numpy().astype(np.float64),
            boxes_xywh=boxes_to_xywh(image_boxes, conventions.has_plus_one).numpy().astype(np.float64),
            mask_areas=areas.astype(np.int64),
            sizes_hw=np.tile(np.array(size_hw), (count, 1)),
            codes=np.array(run_length_codes(edges, owners, count, size_hw), object),
        )
        tables.append(table)
    return joined(tables)


def rescale_boxes(
    boxes: Float[Tensor, "detections 4"], from_hw: tuple[int, int], to_hw: tuple[int, int]
) -> Float[Tensor, "detections 4"]:
    """Return corner boxes moved from an image of size `from_hw` to one of size `to_hw`, each side by its own ratio."""
    ratio_x, ratio_y = to_hw[1] / from_hw[1], to_hw[0] / from_hw[0]
    return boxes * boxes.new_tensor([ratio_x, ratio_y, ratio_x, ratio_y])


def boxes_to_xywh(boxes: Float[Tensor, "detections 4"], has_plus_one: bool = True) -> Float[Tensor, "detections 4"]:
    """Return x, y, width, height of corner boxes, corners inclusive (width = x2 - x1 + 1) or not."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return torch.cat([boxes[:, :2], sides + 1 if has_plus_one else sides], dim=1)


def run_length_codes(
    edges: Int[np.ndarray, " edges"], owners: Int[np.ndarray, " edges"], count: int, size_hw: tuple[int, int]
) -> list[str]:
    """Return the masks with these edges (see `paste_edges`) as COCO's compressed run-length codes."""
    if not count:
        return []
    pixels = size_hw[0] * size_hw[1]
    inside = edges < pixels  # a mask that reaches the last pixel has no run after it
    edges_of_masks = np.split(edges[inside], np.searchsorted(owners[inside], np.arange(1, count)))
    runs = [np.diff(edges_of_mask, prepend=0, append=pixels) for edges_of_mask in edges_of_masks]
    codes = coco_masks.frPyObjects([{"size": size_hw, "counts": lengths} for lengths in runs], *size_hw)
    return [code["counts"].decode("ascii") for code in codes]


def packed_mask(segmentation: list | dict, size_hw: Sequence[int]) -> Any:
    """Return a segmentation of COCO (polygons, or a run-length code of either kind) as a compressed code."""
    if isinstance(segmentation, list):
        return coco_masks.merge(coco_masks.frPyObjects(segmentation, *size_hw))
    is_packed = not isinstance(segmentation["counts"], list)
    return segmentation if is_packed else coco_masks.frPyObjects(segmentation, *size_hw)


def joined(tables: Sequence[ResultTable]) -> ResultTable:
    """Return the rows of all tables, one table after the other."""
    return ResultTable(
        **{name: np.concatenate([getattr(table, name) for table in (NO_RESULTS, *tables)]) for name in vars(NO_RESULTS)}
    )


def without_repeats(table: ResultTable) -> ResultTable:
    """Return the rows by image id, those of an image in their order, without rows exactly equal to an earlier one.

    Source: the benchmark's evaluation drops them since 2021, because padded samplers can see an image twice.
    """
    by_score = np.lexsort((table.scores, table.image_ids))
    # Only rows that share image and score can be equal, and these are few.
    is_alike = (np.diff(table.image_ids[by_score]) == 0) & (np.diff(table.scores[by_score]) == 0)
    is_repeated, seen = np.zeros(len(table), bool), set()
    for index in np.union1d(by_score[:-1][is_alike], by_score[1:][is_alike]):
        key = tuple(tuple(column[[index]].ravel().tolist()) for column in vars(table).values())
        is_repeated[index] = key in seen
        seen.add(key)
    order = np.argsort(table.image_ids, kind="stable")
    return table.rows(order[~is_repeated[order]])
