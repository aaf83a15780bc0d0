"""COCO's numbers on the screen and as entries of a results file."""

from io import TextIOBase

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from maskperf.evaluation.scores import Scores, stat_names

PLAIN_WIDTH_COLUMNS = 120
NOTHING_TO_AVERAGE = -1.0


def show_scores(scores: Scores, stream: TextIOBase, *, per_category: bool) -> None:
    """Write the 12 numbers for boxes beside those for masks, and each category's AP if asked for.

    Colours and lines are left out where the stream is not a terminal.
    """
    console = Console(file=stream, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH_COLUMNS
    style = box.SIMPLE_HEAD if console.is_terminal else None
    rows = [
        (name, _number(box_number), _number(mask_number))
        for name, box_number, mask_number in zip(
            stat_names(scores.max_detections), scores.box_stats, scores.mask_stats, strict=True
        )
    ]
    console.print(_table("number", rows, style))
    if NOTHING_TO_AVERAGE in scores.box_stats + scores.mask_stats:
        console.print(Text("-1: the data set has no such objects"))
    if per_category:
        masks = scores.mask_ap_per_category
        rows = [(name, _number(ap), _number(masks[name])) for name, ap in scores.box_ap_per_category.items()]
        console.print(_table("AP of category", rows, style))
        if None in scores.box_ap_per_category.values():
            console.print(Text("-: the data set has no objects of this category"))
    stream.flush()


def score_entries(scores: Scores) -> dict[str, object]:
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


def _table(first_column: str, rows: list[tuple[str, str, str]], style: box.Box | None) -> Table:
    table = Table(first_column, "box", "mask", box=style)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, *numbers in rows:
        table.add_row(Text(name), *numbers)  # as Text: a category's name is no markup
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
