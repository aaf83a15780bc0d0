"""`maskperf replay FOLDER`: runs the step again at which a run went wrong."""

import argparse
import sys
from pathlib import Path

from maskperf.cli.words import WordParser, asks_for_help, path_word, read_words
from maskperf.errors import EXIT_DONE, EXIT_NOT_FINITE

USAGE = "maskperf replay BLACK_BOX [--device cpu|cuda|auto]"
EXAMPLES = """example, to copy and paste:
  # the folder that a run named when it stopped; no data set is needed
  maskperf replay runs/coco-20260101-120000/black_box

One process runs the batches of all processes one after the other. Exit code 5: the step is not finite this time either;
0: this time every number is finite, so look at what differs (device, precision, hardware, or a collapse)."""
SHOWN_NAMES = 5


def replay(arguments: list[str]) -> int:
    """Return the exit code: 5 where the step is not finite again, else 0."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = WordParser(
        "maskperf replay", usage=USAGE, epilog=EXAMPLES, formatter_class=formatter, add_help=False, allow_abbrev=False
    )
    parser.add_argument("folder", metavar="BLACK_BOX", type=path_word, help="the folder black_box of a run folder")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    if not arguments or asks_for_help(arguments):
        print(parser.format_help(), end="")
        return EXIT_DONE
    choices = read_words(parser, arguments)

    from maskperf.run.black_box import load_black_box
    from maskperf.run.replay import replay as run_again

    box = load_black_box(Path(choices.folder))
    print(f"then: {box.facts.text}", flush=True)
    again = run_again(box, choices.device)
    _show(again)
    sys.stdout.flush()
    return EXIT_DONE if again.is_finite else EXIT_NOT_FINITE


def _show(again) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)
    if again.bad_weights:
        console.print(f"weights that were not finite before the step: {_names(again.bad_weights)}")
    names = list(again.losses)
    table = Table("process", "images", *names, "pixels and boxes", "gradients that are not finite", box=None)
    for batch in again.micro_batches:
        table.add_row(
            str(batch.process),
            ", ".join(map(str, batch.image_ids)),
            *(f"{batch.losses[name]:.4g}" for name in names),
            "not finite" if batch.bad_inputs else "finite",
            _names(batch.bad_gradients) if batch.bad_gradients else "none",
        )
    losses = (f"{again.losses[name]:.4g}" for name in names)
    after = f"weights after: {_names(again.bad_weights_after)}" if again.bad_weights_after else ""
    table.add_row("all", "", *losses, "", after)
    console.print(table)
    console.print("now: every number is finite" if again.is_finite else "now: not finite again")


def _names(names: tuple[str, ...]) -> str:
    hidden = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {hidden} more" if hidden > 0 else "")
