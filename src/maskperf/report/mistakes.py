"""What a model got wrong, as rows of tables: kinds of errors, confusions of categories, pictures of two runs."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maskperf.report.contents import CategoryScore
from maskperf.schema import Analysis, ErrorKind, PictureEntry

KIND_TITLES = {  # of TIDE's short names: title, meaning
    "Cls": ("Wrong category", "right place, another category"),
    "Loc": ("Poor place", "right category, IoU between 0.1 and 0.5"),
    "Both": ("Both wrong", "another category, IoU between 0.1 and 0.5"),
    "Dupe": ("Duplicate", "the object has a better detection"),
    "Bkg": ("Background", "no object, IoU below 0.1"),
    "Miss": ("Missed", "an object that no detection comes near"),
}
MATRIX_CATEGORIES = 12  # shown one by one; the others are folded into one row and column
OTHERS, NONE_FOUND, NO_OBJECT = "all others", "missed", "no object"
MOST_CONFUSED = 10
MOST_RUNS_ABREAST = 4
JPEG_START = b"\xff\xd8\xff"


@dataclass(frozen=True)
class TideRow:
    title: str
    meaning: str
    boxes: ErrorKind
    masks: ErrorKind

    @property
    def largest(self) -> float:
        """The AP lost, for boxes or for masks."""
        return max(self.boxes.ap_lost or 0.0, self.masks.ap_lost or 0.0)


@dataclass(frozen=True, kw_only=True)
class ConfusionTable:
    """Counts by true category (rows; the last one: detections without an object) and found one (the last: missed)."""

    rows: list[str]
    columns: list[str]
    counts: list[list[int]]
    shares: list[list[float]]  # of the row
    folded: int  # categories in the row and column of the others


def category_scores(
    boxes: Mapping[str, float | None], masks: Mapping[str, float | None], analysis: Analysis | None
) -> tuple[CategoryScore, ...]:
    """Return AP and counts of each category, in the order of `boxes`."""
    counts: dict[str, dict[str, int]] = {}
    if analysis is not None:
        *rows, without_object = _matrix(analysis)
        for index, (name, row) in enumerate(zip(analysis.categories, rows, strict=True)):
            objects, missed, right = sum(row), row[-1], row[index]
            counts[name] = {"objects": objects, "missed": missed, "confused": objects - missed - right}
            counts[name]["false"] = without_object[index]
    return tuple(
        CategoryScore(name=name, box_ap=box_ap, mask_ap=masks.get(name), **counts.get(name, {}))
        for name, box_ap in boxes.items()
    )


def stat_rows(
    boxes: Mapping[str, float | None], masks: Mapping[str, float | None]
) -> tuple[tuple[str, float | None, float | None], ...]:
    """Return COCO's twelve numbers: name, for boxes, for masks; None in place of -1, which is no number."""

    def known(number: float | None) -> float | None:
        return None if number == -1 else number

    return tuple((name, known(number), known(masks.get(name))) for name, number in boxes.items())


def _matrix(analysis: Analysis) -> list[list[int]]:
    """Return the confusions by true and by found category; the last row and column are those of none."""
    side = len(analysis.categories) + 1
    matrix = [[0] * side for _ in range(side)]
    for true, found, count in analysis.confusions:
        matrix[true][found] += count
    return matrix


def tide_rows(analysis: Analysis) -> list[TideRow]:
    """Return the kinds of errors, the one that costs most AP first."""
    rows = [
        TideRow(*KIND_TITLES.get(boxes.kind, (boxes.kind, "")), boxes, masks)
        for boxes, masks in zip(analysis.boxes.errors, analysis.masks.errors, strict=False)
    ]
    return sorted(rows, key=lambda row: -row.largest)


def folded_confusions(analysis: Analysis, most: int = MATRIX_CATEGORIES) -> ConfusionTable:
    """Return the table of the `most` categories with most errors; the others are one row and one column."""
    matrix, none = _matrix(analysis), len(analysis.categories)
    columns = zip(*matrix, strict=True)
    sums = (sum(row) + sum(column) for row, column in zip(matrix, columns, strict=True))
    errors = [total - 2 * matrix[index][index] for index, total in enumerate(sums)]
    ranked = sorted(range(none), key=lambda index: -errors[index])
    shown = sorted(ranked[: most if none > most + 1 else none])
    names = [analysis.categories[index] for index in shown] + [OTHERS] * (len(shown) < none)
    places = {**{category: place for place, category in enumerate(shown)}, none: len(names)}  # in the table
    table = [[0] * (len(names) + 1) for _ in range(len(names) + 1)]
    for true, found, count in analysis.confusions:
        table[places.get(true, len(shown))][places.get(found, len(shown))] += count
    return ConfusionTable(
        rows=[*names, NO_OBJECT],
        columns=[*names, NONE_FOUND],
        counts=table,
        shares=[[count / max(1, sum(row)) for count in row] for row in table],
        folded=none - len(shown),
    )


def most_confused(analysis: Analysis, most: int = MOST_CONFUSED) -> list[tuple[str, str, int]]:
    """Return the pairs of categories that were confused most often: the true one, the found one, how often."""
    none = len(analysis.categories)
    pairs = [
        (analysis.categories[true], analysis.categories[found], count)
        for true, found, count in analysis.confusions
        if true != found and none not in (true, found)
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:most]


def readable_jpegs(pictures: Sequence[PictureEntry], kind: str) -> list[PictureEntry]:
    """Return the entries of this kind whose image is JPEG in base64."""
    return [picture for picture in pictures if picture.kind == kind and _is_jpeg(picture.jpeg_base64)]


def _is_jpeg(text: str) -> bool:
    try:
        return base64.b64decode(text, validate=True).startswith(JPEG_START)
    except (binascii.Error, ValueError):
        return False


def pictures_side_by_side(runs: Sequence[Sequence[PictureEntry]]) -> list[list[tuple[int, PictureEntry]]]:
    """Return the sample images that the first run shares with others: its entry and theirs, each with its run."""
    by_run = [{entry.title: entry for entry in readable_jpegs(pictures, "sample")} for pictures in runs]
    groups = []
    for title in by_run[0] if by_run else ():
        group = [(index, entries[title]) for index, entries in enumerate(by_run) if title in entries]
        if len(group) > 1:
            groups.append(group[:MOST_RUNS_ABREAST])
    return groups
