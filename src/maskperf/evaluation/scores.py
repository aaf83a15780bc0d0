"""Average precision of COCO results: the one adapter over pycocotools (official) and hotcoco (fast)."""

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import hotcoco
import msgspec
import numpy as np
from pycocotools import coco, cocoeval
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskperf.data.coco.categories import CategoryMatch, in_training_categories
from maskperf.data.coco.index import CocoIndex, dataset_of
from maskperf.errors import ConfigError, DataError, Problem
from maskperf.evaluation.results import NO_RESULTS, Results, packed_mask
from maskperf.schema import file_error

ENGINES = ("fast", "official")
COCO_DETECTIONS = 100  # of an image, the best of which COCO counts
FEW_DETECTIONS = (1, 10)  # of an image, for two of the twelve numbers
# Indices into COCO's arrays: IoU thresholds of 0.50 and 0.75, areas of any size, the most detections of an image.
IOU_50, IOU_75, ALL_AREAS, MOST_DETECTIONS = 0, 5, 0, 2
LARGEST_EXACT_ID = 2**53  # in an array of floating-point numbers
FIX_NOT_FINITE = "Find out where the model's output stopped being finite."
# These two print what they do. Standard output cannot be taken from a thread alone, and training prints meanwhile.
coco.print = cocoeval.print = lambda *values, **options: None


@dataclass(frozen=True)
class Scores:
    """What one evaluation found; numbers between 0 and 1, -1 in the stats where COCO has nothing to average."""

    box_ap: float
    mask_ap: float
    box_stats: tuple[float, ...]  # order of stat_names
    mask_stats: tuple[float, ...]
    box_ap_per_category: dict[str, float | None]  # None: no ground truth of this category
    mask_ap_per_category: dict[str, float | None]
    engine: str
    max_detections: int  # of an image, the best of which count
    seconds: float


def stat_names(max_detections: int) -> tuple[str, ...]:
    """Return what COCO's twelve numbers are, where the best `max_detections` of an image count."""
    sizes = ("small", "medium", "large")
    return (
        *("AP", "AP at IoU 0.50", "AP at IoU 0.75"),
        *(f"AP of {size} objects" for size in sizes),
        *("AR with 1 detection", "AR with 10 detections", f"AR with {max_detections} detections"),
        *(f"AR of {size} objects" for size in sizes),
    )


def score_entries(scores: Scores) -> dict[str, Any]:
    """Return the numbers under the names they have in a results file, unrounded."""
    names = stat_names(scores.max_detections)
    return {
        "max_detections": scores.max_detections,
        "box_ap": scores.box_ap,
        "mask_ap": scores.mask_ap,
        "box_stats": dict(zip(names, scores.box_stats, strict=True)),
        "mask_stats": dict(zip(names, scores.mask_stats, strict=True)),
        "box_ap_per_category": scores.box_ap_per_category,
        "mask_ap_per_category": scores.mask_ap_per_category,
    }


class GroundTruth:
    """The annotations of the validation images, read once and used at every evaluation.

    Missing `area` and `iscrowd` are filled in, and if there is an annotation id 0, all are renumbered in the order of
    the file.
    """

    def __init__(self, path: str | Path, index: CocoIndex | None = None, categories: CategoryMatch | None = None):
        """Read the file as it is; as `index` reads it, if that changed or left out something.

        `categories` replaces the categories of the file by those of the training, in annotations and in results.
        Errors: DataError where no annotation counts, since there is no average precision then.
        """
        self.path = str(path)
        if index is None or index.is_plain:
            self._dataset = msgspec.json.decode(Path(path).read_bytes())
        else:
            self._dataset = dataset_of(index)
        if categories is not None:
            self._dataset = in_training_categories(self._dataset, categories)
        self.image_sizes_hw = {image["id"]: [image["height"], image["width"]] for image in self._dataset["images"]}
        self.category_names = _names_by_id(self._dataset["categories"])
        self._dataset["annotations"] = _fixed(self._dataset["annotations"], self.image_sizes_hw)
        if all(annotation["iscrowd"] for annotation in self._dataset["annotations"]):
            message = "There is no object to find (crowd regions do not count), so there is no average precision."
            fix = "Use a file with objects, or set data.crowd_as_objects=true for iscrowd=1 by mistake of an export."
            value = f"{len(self._dataset['annotations'])} entries"
            raise file_error(Path(path), message, where="annotations", value=value, fix=fix)

    @cached_property
    def official(self) -> COCO:
        """The data set as pycocotools wants it."""
        # pycocotools writes into the annotations it holds, and the other engine must see those of the file.
        annotations = [dict(annotation) for annotation in self._dataset["annotations"]]
        return _official_coco({**self._dataset, "annotations": annotations})

    @cached_property
    def fast(self) -> hotcoco.COCO:
        """The data set as hotcoco wants it."""
        return hotcoco.COCO(self._dataset)


def score(
    ground_truth: GroundTruth,
    box_results: Sequence[dict],
    mask_results: Sequence[dict],
    *,
    engine: str,
    max_detections: int = COCO_DETECTIONS,
) -> Scores:
    """Return COCO's numbers for boxes and for masks; `engine` is "fast" (hotcoco) or "official" (pycocotools).

    The best `max_detections` of an image count, 11 or more.

    No results at all give an AP of 0. The arguments are left as they are. Results of `predict` reach the fast engine as
    columns; lists of entries, which may come from a file, one by one.
    Errors: DataError where a result names an unknown image or category, or holds something that is not a number.
    Threads: the fast engine releases the GIL while it matches and accumulates, but not while it takes the results in
    (0.5 s of 2.5 s for 5,000 images of 100); pycocotools never does.
    """
    if engine not in ENGINES:
        raise ConfigError(f"evaluation.engine is {engine!r}. Fix: use one of {', '.join(ENGINES)}.")
    problems = _problems(ground_truth, box_results, "bbox") + _problems(ground_truth, mask_results, "segmentation")
    if problems:
        raise DataError(problems)
    start = time.perf_counter()
    box_stats, box_ap_per_category = _evaluate(ground_truth, box_results, "bbox", engine, max_detections)
    mask_stats, mask_ap_per_category = _evaluate(ground_truth, mask_results, "segm", engine, max_detections)
    return Scores(
        box_ap=box_stats[0],
        mask_ap=mask_stats[0],
        box_stats=box_stats,
        mask_stats=mask_stats,
        box_ap_per_category=box_ap_per_category,
        mask_ap_per_category=mask_ap_per_category,
        engine=engine,
        max_detections=max_detections,
        seconds=time.perf_counter() - start,
    )


def agree(first: Scores, second: Scores) -> list[str]:
    """Return one line for each of the 24 numbers that is not exactly equal in both; empty when the two agree."""
    names = [f"{kind} {name}" for kind in ("box", "mask") for name in stat_names(first.max_detections)]
    rows = zip(names, first.box_stats + first.mask_stats, second.box_stats + second.mask_stats, strict=True)
    return [
        f"{name}: {one!r} ({first.engine}) and {other!r} ({second.engine})" for name, one, other in rows if one != other
    ]


def evaluated(
    ground_truth: GroundTruth, results: Sequence[dict], iou_type: str, engine: str, max_detections: int
) -> Any:
    """Return the `COCOeval` of an engine with its arrays of precision and recall; `iou_type` is "bbox" or "segm"."""
    if engine == "official":
        official = ground_truth.official
        evaluation = COCOeval(official, _official_results(official, results, iou_type), iou_type)
    else:
        fast = ground_truth.fast
        evaluation = hotcoco.COCOeval(fast, _fast_results(fast, results, iou_type), iou_type)
    evaluation.params.maxDets = [*FEW_DETECTIONS, max_detections]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _evaluate(
    ground_truth: GroundTruth, results: Sequence[dict], iou_type: str, engine: str, max_detections: int
) -> tuple[tuple[float, ...], dict[str, float | None]]:
    """Return the 12 numbers and the AP of each category."""
    evaluation = evaluated(ground_truth, results, iou_type, engine, max_detections)
    precision, recall = np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])
    of_category = precision[:, :, :, ALL_AREAS, MOST_DETECTIONS]
    per_category = {
        name: _mean(of_category[:, :, index]) for index, name in enumerate(ground_truth.category_names.values())
    }
    if engine == "fast" or max_detections != COCO_DETECTIONS:
        return summary(precision, recall), per_category
    evaluation.summarize()
    return tuple(float(number) for number in evaluation.stats), per_category


def summary(precision: np.ndarray, recall: np.ndarray) -> tuple[float, ...]:
    """Return COCO's twelve numbers from its arrays of precision (IoU thresholds, recalls, categories, areas,
    detections) and recall (the same without the recalls), -1 where there is nothing to average.

    Source: `summarize` of pycocotools, whose first number is wrong unless the best 100 detections of an image count.
    That of hotcoco prints.
    """
    ap, ar = precision[..., MOST_DETECTIONS], recall[..., MOST_DETECTIONS]
    sizes = range(1, 4)  # small, medium and large
    parts = [
        ap[..., ALL_AREAS],
        *(ap[threshold][..., ALL_AREAS] for threshold in (IOU_50, IOU_75)),
        *(ap[..., size] for size in sizes),
        *(recall[:, :, ALL_AREAS, limit] for limit in range(MOST_DETECTIONS + 1)),
        *(ar[..., size] for size in sizes),
    ]
    return tuple(-1.0 if (mean := _mean(part)) is None else mean for part in parts)


def _mean(numbers: np.ndarray) -> float | None:
    counted = numbers[numbers > -1]  # -1 marks what has no ground truth
    return float(counted.mean()) if counted.size else None


def _fast_results(truth: hotcoco.COCO, results: Sequence[dict], iou_type: str) -> hotcoco.COCO:
    table = results.table if isinstance(results, Results) else NO_RESULTS
    largest_id = max(table.image_ids.max(initial=0), table.category_ids.max(initial=0))
    if not len(table) or largest_id > LARGEST_EXACT_ID:
        return truth.load_res(_entries(results, iou_type))
    array = np.column_stack([table.image_ids, table.boxes_xywh, table.scores, table.category_ids])
    if iou_type == "bbox":
        return truth.load_res(array)
    loaded = truth.load_res(array, segmentation=list(table.masks()))
    loaded.update_anns(ids=np.arange(1, len(table) + 1), area=table.mask_areas)  # from an array, it is the box's
    return loaded


def _official_results(truth: COCO, results: Sequence[dict], iou_type: str) -> COCO:
    if len(results):
        return truth.loadRes(_entries(results, iou_type))
    # pycocotools looks at the first result to know their kind, and fails without one.
    return _official_coco({**truth.dataset, "annotations": []})


def _entries(results: Sequence[dict], iou_type: str) -> list[dict]:
    """Return copies, as pycocotools writes into them; of masks without boxes, from which COCO would take the area."""
    left_out = "bbox" if iou_type == "segm" else None
    return [{key: value for key, value in entry.items() if key != left_out} for entry in results]


def _official_coco(dataset: dict) -> COCO:
    official = COCO()
    official.dataset = dataset
    official.createIndex()
    return official


def _names_by_id(categories: list[dict]) -> dict[int, str]:
    """Return the names in the order of the ids, which is that of COCO's arrays; a name used twice shows its id."""
    uses = Counter(category["name"] for category in categories)
    return {
        entry["id"]: entry["name"] if uses[entry["name"]] == 1 else f"{entry['name']} ({entry['id']})"
        for entry in sorted(categories, key=lambda category: category["id"])
    }


def _fixed(annotations: list[dict], image_sizes_hw: dict[int, list[int]]) -> list[dict]:
    # pycocotools marks a match by the annotation's id, so that a match to id 0 would count as none.
    renumber = any(annotation["id"] == 0 for annotation in annotations)
    fixed = []
    for position, annotation in enumerate(annotations, start=1):
        entry = {"iscrowd": 0, **annotation}
        entry["id"] = position if renumber else annotation["id"]
        if "area" not in annotation:
            code = packed_mask(annotation["segmentation"], image_sizes_hw[annotation["image_id"]])
            entry["area"] = float(coco_masks.area(code))
        fixed.append(entry)
    return fixed


def _problems(ground_truth: GroundTruth, results: Sequence[dict], geometry: str) -> list[Problem]:
    """Return the problems of `results`, whose boxes or masks are in the field `geometry`."""
    return [
        Problem(
            file="box results" if geometry == "bbox" else "mask results",
            where=f"result {position} (image id {entry.get('image_id')})",
            field=field,
            value=repr(entry.get(field))[:80],
            message=message,
            fix=fix,
        )
        for position in _suspects(ground_truth, results)
        for entry in (results[position],)
        for field, message, fix in _entry_problems(ground_truth, entry, geometry)
    ]


def _suspects(ground_truth: GroundTruth, results: Sequence[dict]) -> Iterable[int]:
    """Return the positions of the results for which `_entry_problems` may find a problem; of a table few, and fast."""
    if not isinstance(results, Results):
        return range(len(results))
    table = results.table
    sizes_hw = [ground_truth.image_sizes_hw.get(image_id, [0, 0]) for image_id in table.image_ids.tolist()]
    is_good = (table.sizes_hw == np.array(sizes_hw).reshape(-1, 2)).all(axis=1)
    is_good &= np.isin(table.image_ids, list(ground_truth.image_sizes_hw))
    is_good &= np.isin(table.category_ids, list(ground_truth.category_names))
    is_good &= np.isfinite(table.scores) & np.isfinite(table.boxes_xywh).all(axis=1)
    return np.flatnonzero(~is_good).tolist()


def _entry_problems(ground_truth: GroundTruth, entry: dict, geometry: str) -> Iterator[tuple[str, str, str]]:
    """Yield field, message and fix."""
    missing = [field for field in ("image_id", "category_id", "score", geometry) if field not in entry]
    for field in missing:
        yield field, "The field is missing.", "Add it."
    if missing:
        return
    size_hw = ground_truth.image_sizes_hw.get(entry["image_id"])
    if size_hw is None:
        yield "image_id", f"No image of {ground_truth.path} has this id.", "Evaluate with the file of these images."
        return
    if entry["category_id"] not in ground_truth.category_names:
        yield "category_id", f"No category of {ground_truth.path} has this id.", "Map labels to the file's own ids."
    if not math.isfinite(entry["score"]):
        yield "score", "The score is not a finite number.", FIX_NOT_FINITE
    if geometry == "bbox" and not all(map(math.isfinite, entry["bbox"])):
        yield "bbox", "The box is not finite.", FIX_NOT_FINITE
    if geometry == "segmentation" and list(entry["segmentation"]["size"]) != size_hw:
        yield "segmentation", f"The mask's size is not the image's, {size_hw}.", "Encode it at the original size."
