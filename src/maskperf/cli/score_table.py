"""COCO's numbers on the screen."""

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from maskperf.evaluation.scores import Scores, stat_names
from maskperf.run.console import make_console, make_table


def show_scores(scores: Scores, *, per_category: bool) -> None:
    """Print the 12 numbers for boxes beside those for masks, and each category's AP if asked for."""
    console = make_console()
    names = stat_names(scores.max_detections)
    _print_table(console, "number", zip(names, scores.box_stats, scores.mask_stats, strict=True))
    if -1 in scores.box_stats + scores.mask_stats:
        console.print("-1: the data set has no such objects")
    if per_category:
        masks = scores.mask_ap_per_category
        rows = ((name, ap, masks[name]) for name, ap in scores.box_ap_per_category.items())
        _print_table(console, "AP of category", rows)
        if None in scores.box_ap_per_category.values():
            console.print("-: the data set has no objects of this category")


def _print_table(console: Console, first_column: str, rows: Iterable[tuple[str, float | None, float | None]]) -> None:
    table = make_table(console, (first_column, "box", "mask"))
    for column in table.columns[1:]:
        column.justify = "right"
    for name, *numbers in rows:  # the name as Text: that of a category is no markup
        table.add_row(Text(name), *("-" if number is None else f"{number:.4f}" for number in numbers))
    console.print(table)
