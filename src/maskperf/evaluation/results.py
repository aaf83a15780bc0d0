"""From detections to COCO results: kept as columns, and turned into entries only where somebody reads entries."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maskperf.ops.paste import paste_edges
from maskperf.structures import Detections, EvaluationBatch


@dataclass(frozen=True, kw_only=True, eq=False)
class ResultTable:
    """Detections at the scale of their own images, one row each."""

    image_ids: Int[np.ndarray, " rows"]
    category_ids: Int[np.ndarray, " rows"]
    scores: Float[np.ndarray, " rows"]
    boxes_xywh: Float[np.ndarray, "rows 4"]
    masks: list[dict]  # COCO's compressed run-length codes
    mask_areas: Int[np.ndarray, " rows"]

    def __len__(self) -> int:
        return len(self.masks)

    def rows(self, places: Int[np.ndarray, " places"]) -> "ResultTable":
        """Return a table of some rows, in the order of `places`."""
        return ResultTable(
            image_ids=self.image_ids[places],
            category_ids=self.category_ids[places],
            scores=self.scores[places],
            boxes_xywh=self.boxes_xywh[places],
            masks=[self.masks[place] for place in places.tolist()],
            mask_areas=self.mask_areas[places],
        )


class BoxResults(Sequence):
    """The boxes of a table as entries of COCO's result format, each made when it is asked for."""

    def __init__(self, table: ResultTable):
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, place: int) -> dict:
        return next(iter(BoxResults(self.table.rows(np.array([range(len(self))[place]])))))

    def __iter__(self) -> Iterator[dict]:
        table = self.table
        columns = (table.image_ids, table.category_ids, table.boxes_xywh, table.scores)
        for image_id, category_id, bbox, score in zip(*(column.tolist() for column in columns), strict=True):
            yield {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


class MaskResults(Sequence):
    """The masks of a table as entries of COCO's result format, each made when it is asked for."""

    def __init__(self, table: ResultTable):
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, place: int) -> dict:
        return next(iter(MaskResults(self.table.rows(np.array([range(len(self))[place]])))))

    def __iter__(self) -> Iterator[dict]:
        table = self.table
        owners = zip(table.image_ids.tolist(), table.category_ids.tolist(), strict=True)
        for (image_id, category_id), mask, score in zip(owners, table.masks, table.scores.tolist(), strict=True):
            yield {"image_id": image_id, "category_id": category_id, "segmentation": mask, "score": score}


def result_columns(
    results: Sequence[dict], geometry: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | list[dict]]:
    """Return image ids, category ids, scores, and what entries have in the field `geometry`: bbox or segmentation.

    Errors: KeyError, TypeError or ValueError where an entry lacks one of them, or has no number in its place.
    """
    if isinstance(results, BoxResults | MaskResults):
        table = results.table
        shapes = table.boxes_xywh if geometry == "bbox" else table.masks
        return table.image_ids, table.category_ids, table.scores, shapes
    shapes = [entry[geometry] for entry in results]
    return (
        np.array([entry["image_id"] for entry in results]),
        np.array([entry["category_id"] for entry in results]),
        np.array([entry["score"] for entry in results], dtype=np.float64),
        np.array(shapes, dtype=np.float64).reshape(-1, 4) if geometry == "bbox" else shapes,
    )


def to_coco_results(
    detections: Detections, batch: EvaluationBatch, category_ids: Int[np.ndarray, " categories"]
) -> tuple[BoxResults, MaskResults]:
    """Returns the box results and the mask results of a batch: one table, image by image, in the detections' order.

    Image and category ids are the data set's own: label k stands for `category_ids[k - 1]`.
    Coordinates are those of the original image. Boxes are x, y, width, height with the "+1" of the pixel convention;
    masks are compressed run-length codes of the whole image.
    Source: the reference's COCO evaluation, `prepare_for_coco_detection` and `prepare_for_coco_segmentation`.
    Cost: waits for the device.
    """
    assert detections.mask_probs is not None, "the mask head has not run on these detections"
    valid, labels = detections.valid.cpu(), detections.labels.cpu()
    boxes, scores = detections.boxes.cpu().float(), detections.scores.cpu().float()
    mask_probs = detections.mask_probs.cpu().float()
    sizes_hw, original_sizes_hw = batch.images.sizes_hw.tolist(), batch.original_sizes_hw.tolist()
    tables = []
    for index, image_id in enumerate(batch.image_ids.tolist()):
        kept, size_hw = valid[index], tuple(original_sizes_hw[index])
        image_boxes = rescale_boxes(boxes[index][kept], tuple(sizes_hw[index]), size_hw)
        count = len(image_boxes)
        edges, owners = paste_edges(mask_probs[index][kept], image_boxes, size_hw)
        areas = np.bincount(owners[::2], weights=edges[1::2] - edges[::2], minlength=count)
        tables.append(
            ResultTable(
                image_ids=np.full(count, image_id),
                category_ids=category_ids[labels[index][kept].numpy() - 1],
                scores=scores[index][kept].numpy().astype(np.float64),
                boxes_xywh=boxes_to_xywh(image_boxes).numpy().astype(np.float64),
                masks=run_length_codes(edges, owners, count, size_hw),
                mask_areas=areas.astype(np.int64),
            )
        )
    table = joined(tables)
    return BoxResults(table), MaskResults(table)


def rescale_boxes(
    boxes: Float[Tensor, "detections 4"], from_hw: tuple[int, int], to_hw: tuple[int, int]
) -> Float[Tensor, "detections 4"]:
    """Returns corner boxes moved from an image of size `from_hw` to one of size `to_hw`, each side by its own ratio."""
    ratio_x, ratio_y = to_hw[1] / from_hw[1], to_hw[0] / from_hw[0]
    return boxes * boxes.new_tensor([ratio_x, ratio_y, ratio_x, ratio_y])


def boxes_to_xywh(boxes: Float[Tensor, "detections 4"]) -> Float[Tensor, "detections 4"]:
    """Return x, y, width, height of corner boxes, corners inclusive: width = x2 - x1 + 1."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2] + 1], dim=1)


def run_length_codes(
    edges: Int[np.ndarray, " edges"], owners: Int[np.ndarray, " edges"], count: int, size_hw: tuple[int, int]
) -> list[dict]:
    """Returns the masks with these edges (see `paste_edges`) as COCO's compressed run-length codes, counts as text.

    Source: `rleEncode` and `rleToString` of COCO's `maskApi.c`: lengths of runs down the columns, the first of zeros,
    none of length zero at the end; from the fourth on, what a length has more than the one two before it.
    """
    pixels = size_hw[0] * size_hw[1]
    inside = edges < pixels  # a mask that reaches the last pixel has no run after it
    edges, owners = edges[inside], owners[inside]
    runs = np.bincount(owners, minlength=count) + 1
    ends = np.cumsum(runs)
    begins = ends - runs
    stops = np.full(len(edges) + count, pixels)
    stops[np.arange(len(edges)) + owners] = edges
    lengths = np.diff(stops, prepend=0)
    lengths[begins] = stops[begins]
    is_late = np.ones(len(stops), dtype=bool)
    for place in range(3):
        is_late[np.minimum(begins + place, ends - 1)] = False
    late = np.flatnonzero(is_late)
    numbers = lengths.copy()
    numbers[late] -= lengths[late - 2]
    text, letters = _letters(numbers)
    text_ends = np.cumsum(letters)[ends - 1].tolist()
    size = list(size_hw)
    return [{"size": size, "counts": text[begin:end]} for begin, end in zip([0, *text_ends], text_ends, strict=False)]


def _letters(numbers: Int[np.ndarray, " numbers"]) -> tuple[str, Int[np.ndarray, " numbers"]]:
    """Return the numbers in COCO's letters, one after the other, and how many letters each takes.

    A letter is 48 plus five bits of the number, the lowest first, plus 32 if more follow. The number's sign is the
    highest bit of its last letter.
    """
    magnitudes = np.where(numbers < 0, ~numbers, numbers)
    letters = np.ones(len(numbers), dtype=np.int64)
    limit, largest = 16, magnitudes.max(initial=0)
    while limit <= largest:
        letters += magnitudes >= limit
        limit *= 32
    begins = np.cumsum(letters) - letters
    codes = np.empty(letters.sum(), dtype=np.uint8)
    remaining = np.arange(len(numbers))
    for place in range(letters.max(initial=0)):
        remaining = remaining[letters[remaining] > place]
        bits = (numbers[remaining] >> (5 * place)) & 31
        codes[begins[remaining] + place] = 48 + bits + 32 * (letters[remaining] > place + 1)
    return codes.tobytes().decode("ascii"), letters


def joined(tables: Sequence[ResultTable]) -> ResultTable:
    """Return the rows of all tables, one table after the other."""
    return ResultTable(
        image_ids=np.concatenate([np.zeros(0, dtype=np.int64), *(table.image_ids for table in tables)]),
        category_ids=np.concatenate([np.zeros(0, dtype=np.int64), *(table.category_ids for table in tables)]),
        scores=np.concatenate([np.zeros(0), *(table.scores for table in tables)]),
        boxes_xywh=np.concatenate([np.zeros((0, 4)), *(table.boxes_xywh for table in tables)]),
        masks=[mask for table in tables for mask in table.masks],
        mask_areas=np.concatenate([np.zeros(0, dtype=np.int64), *(table.mask_areas for table in tables)]),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedTable:
    """A table without an object for each row: quick to pickle, and to read again in another process."""

    columns: tuple[np.ndarray, ...]  # image_ids, category_ids, scores, boxes_xywh, mask_areas
    sizes_hw: Int[np.ndarray, "rows 2"]
    letters: Int[np.ndarray, " rows"]  # of each mask's code
    text: bytes  # the codes, one after the other


def packed(table: ResultTable) -> PackedTable:
    """Return the same rows in fewer pieces."""
    codes = [mask["counts"] for mask in table.masks]
    return PackedTable(
        columns=(table.image_ids, table.category_ids, table.scores, table.boxes_xywh, table.mask_areas),
        sizes_hw=np.array([mask["size"] for mask in table.masks], dtype=np.int64).reshape(-1, 2),
        letters=np.array([len(code) for code in codes], dtype=np.int64),
        text="".join(codes).encode("ascii"),
    )


def unpacked(table: PackedTable) -> ResultTable:
    """Return the table that was packed."""
    image_ids, category_ids, scores, boxes_xywh, mask_areas = table.columns
    text, ends = table.text.decode("ascii"), np.cumsum(table.letters).tolist()
    sizes: dict[tuple[int, int], list[int]] = {}  # one list for all masks of a size: half as many objects to make
    masks = [
        {"size": sizes.setdefault((height, width), [height, width]), "counts": text[begin:end]}
        for height, width, begin, end in zip(*table.sizes_hw.T.tolist(), [0, *ends], ends, strict=False)
    ]
    return ResultTable(
        image_ids=image_ids,
        category_ids=category_ids,
        scores=scores,
        boxes_xywh=boxes_xywh,
        masks=masks,
        mask_areas=mask_areas,
    )


def without_repeats(table: ResultTable) -> ResultTable:
    """Return the rows by image id, those of an image in their order, without rows exactly equal to an earlier one.

    Source: the benchmark's evaluation drops them since 2021, because padded samplers can see an image twice.
    """
    order = np.argsort(table.image_ids, kind="stable")
    return table.rows(order[~_repeated(table)[order]])


def _repeated(table: ResultTable) -> Bool[np.ndarray, " rows"]:
    """Return which rows are equal to an earlier one. Few rows share image and score, so few are compared in full."""
    order = np.lexsort((table.scores, table.image_ids))
    images, scores = table.image_ids[order], table.scores[order]
    alike = (images[1:] == images[:-1]) & (scores[1:] == scores[:-1])
    candidates = np.unique(np.concatenate([order[1:][alike], order[:-1][alike]]))
    repeated = np.zeros(len(table), dtype=bool)
    seen = set()
    for place in candidates.tolist():
        mask = table.masks[place]
        row = (table.image_ids[place], table.category_ids[place], table.scores[place])
        row += (*table.boxes_xywh[place].tolist(), mask["counts"])
        repeated[place] = row in seen
        seen.add(row)
    return repeated
