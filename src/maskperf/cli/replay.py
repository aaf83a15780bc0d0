"""`maskperf replay FOLDER`: runs the step again at which a run went wrong."""

import argparse
from collections.abc import Sequence
from typing import Any

from maskperf.cli.arguments import CommandParser, require_existing
from maskperf.errors import EXIT_DONE, EXIT_NOT_FINITE

USAGE = "BLACK_BOX [--device cpu|cuda|auto]"
EXAMPLES = """example, to copy and paste:
  # the folder that a run named when it stopped; no data set is needed
  maskperf replay runs/coco-20260101-120000/black_box

One process runs the batches of all processes one after the other. Exit code 5: the step is not
finite this time either; 0: this time every number is finite, so look at what differs (device,
precision, hardware, or a collapse)."""
SHOWN_NAMES = 5


def add_options(parser: CommandParser) -> None:
    parser.add_path("folder", "BLACK_BOX", "the folder black_box of a run folder")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")


def replay(options: argparse.Namespace) -> int:
    """Return 5 where the step is not finite again, else 0."""
    require_existing("BLACK_BOX", [options.folder])
    from maskperf.run.black_box import load_black_box
    from maskperf.run.replay import replay as replay_step

    box = load_black_box(options.folder)
    print(f"then: {box.facts.text}", flush=True)
    again = replay_step(box, options.device)
    _show(again)
    return EXIT_DONE if again.is_finite else EXIT_NOT_FINITE


def _show(again: Any) -> None:
    from maskperf.run.console import columns

    if again.bad_weights:
        print(f"weights that were not finite before the step: {_names(again.bad_weights)}")
    names = list(again.losses)
    rows = [["process", "images", *names, "pixels and boxes", "gradients that are not finite"]]
    for batch in again.micro_batches:
        images = ", ".join(map(str, batch.image_ids))
        losses = [f"{batch.losses[name]:.4g}" for name in names]
        inputs = "not finite" if batch.bad_inputs else "finite"
        rows.append([str(batch.process), images, *losses, inputs, _names(batch.bad_gradients) or "none"])
    after = f"weights after: {_names(again.bad_weights_after)}" if again.bad_weights_after else ""
    rows.append(["all", "", *(f"{again.losses[name]:.4g}" for name in names), "", after])
    print("\n".join(columns(rows)))
    print("now: every number is finite" if again.is_finite else "now: not finite again")


def _names(names: Sequence[str]) -> str:
    hidden = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {hidden} more" if hidden > 0 else "")
