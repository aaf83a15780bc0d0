"""COCO's numbers on the screen."""

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from maskperf.evaluation.scores import Scores, stat_names

PLAIN_WIDTH_COLUMNS = 120
NOTHING_TO_AVERAGE = -1.0


def show_scores(scores: Scores, *, per_category: bool) -> None:
    """Print the 12 numbers for boxes beside those for masks, and each category's AP if asked for.

    Without a terminal there are neither colours nor lines.
    """
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH_COLUMNS
    names = stat_names(scores.max_detections)
    _print_table(console, "number", zip(names, scores.box_stats, scores.mask_stats, strict=True))
    if NOTHING_TO_AVERAGE in scores.box_stats + scores.mask_stats:
        console.print(Text("-1: the data set has no such objects"))
    if per_category:
        masks = scores.mask_ap_per_category
        rows = ((name, ap, masks[name]) for name, ap in scores.box_ap_per_category.items())
        _print_table(console, "AP of category", rows)
        if None in scores.box_ap_per_category.values():
            console.print(Text("-: the data set has no objects of this category"))
    console.file.flush()


def _print_table(console: Console, first_column: str, rows: Iterable[tuple[str, float | None, float | None]]) -> None:
    table = Table(first_column, box=box.SIMPLE_HEAD if console.is_terminal else None)
    for column in ("box", "mask"):
        table.add_column(column, justify="right")
    for name, *numbers in rows:  # the name as Text: that of a category is no markup
        table.add_row(Text(name), *("-" if number is None else f"{number:.4f}" for number in numbers))
    console.print(table)
