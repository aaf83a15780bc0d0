"""What a model got wrong, as rows of tables: kinds of errors, confusions of categories, pictures of two runs."""

import base64
import binascii
from collections import Counter
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

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    shares: tuple[tuple[float, ...], ...]  # of the row
    folded: int  # categories in the row and column of the others


def category_scores(
    boxes: Mapping[str, float | None], masks: Mapping[str, float | None], analysis: Analysis | None
) -> tuple[CategoryScore, ...]:
    """Return AP and counts of each category, in the order of `boxes`."""
    counts = {} if analysis is None else _counts(analysis)
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


def _counts(analysis: Analysis) -> dict[str, dict[str, int]]:
    none = len(analysis.categories)
    counts = {name: dict.fromkeys(("objects", "missed", "confused", "false"), 0) for name in analysis.categories}
    for true, found, count in analysis.confusions:
        if true == none:
            counts[analysis.categories[found]]["false"] += count
            continue
        of_category = counts[analysis.categories[true]]
        of_category["objects"] += count
        of_category["missed"] += count * (found == none)
        of_category["confused"] += count * (found not in (true, none))
    return counts


def tide_rows(analysis: Analysis) -> list[TideRow]:
    """Return the kinds of errors, the one that costs most AP first."""
    rows = [
        TideRow(*KIND_TITLES.get(boxes.kind, (boxes.kind, "")), boxes, masks)
        for boxes, masks in zip(analysis.boxes.errors, analysis.masks.errors, strict=False)
    ]
    return sorted(rows, key=lambda row: -row.largest)


def folded_confusions(analysis: Analysis, most: int = MATRIX_CATEGORIES) -> ConfusionTable:
    """Return the table of the `most` categories with most errors; the others are one row and one column."""
    none = len(analysis.categories)
    errors: Counter[int] = Counter()
    for true, found, count in analysis.confusions:
        if true != found:
            errors.update({index: count for index in (true, found) if index != none})
    shown = sorted(range(none), key=lambda index: (-errors[index], index))[: most if none > most + 1 else none]
    places = {category: place for place, category in enumerate(sorted(shown))}
    has_others = len(shown) < none
    side = len(shown) + has_others + 1
    places |= {none: side - 1}
    table = [[0] * side for _ in range(side)]
    for true, found, count in analysis.confusions:
        row, column = places.get(true, len(shown)), places.get(found, len(shown))
        table[row][column] += count
    names = (*(analysis.categories[index] for index in sorted(shown)), *([OTHERS] if has_others else []))
    return ConfusionTable(
        rows=(*names, NO_OBJECT),
        columns=(*names, NONE_FOUND),
        counts=tuple(map(tuple, table)),
        shares=tuple(tuple(count / max(1, sum(row)) for count in row) for row in table),
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
