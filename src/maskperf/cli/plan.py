"""`maskperf plan --accelerators N --per-gpu-images-per-second X`: predicts time to target and score."""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from maskperf.cli.words import WordParser, asks_for_help, read_words
from maskperf.errors import EXIT_DONE, ConfigError

if TYPE_CHECKING:
    from maskperf.mlperf.plan import Plan, PlanQuestion
    from maskperf.mlperf.published import RankedSystem

USAGE = "maskperf plan --accelerators N --per-gpu-images-per-second X [options]"
EXAMPLES = """examples, to copy and paste:
  # eight devices, each training 186 images a second with 12 images in its part of the batch
  maskperf plan --accelerators 8 --per-gpu-images-per-second 186
  # 64 devices on a slow network: the rate was measured on one device alone
  maskperf plan --accelerators 64 --per-gpu-images-per-second 134 --interconnect-gib-per-second 10
  # more devices than any reference point has images
  maskperf plan --accelerators 1024 --per-gpu-images-per-second 94
  # how far this is to be trusted: every published score, predicted from the 22 other systems
  maskperf plan --check

The plan prints what it assumes, with the options that change it."""
NEIGHBOURS_SHOWN = 3
LARGEST_NUMBER = 1e9
HEADINGS = (
    *("batch", "per device", "steps/epoch", "epochs", "5..95 %", "step ms", "all-reduce ms"),
    *("evaluation s", "minutes", "score", "5..95 %"),
)


def plan(arguments: list[str]) -> int:
    """Return the exit code, after the plan was written."""
    parser = _make_parser()
    if not arguments or asks_for_help(arguments):
        print(parser.format_help(), end="")
        return EXIT_DONE
    choices = vars(read_words(parser, arguments))
    as_json, check = choices.pop("json"), choices.pop("check")
    given = {name: value for name, value in choices.items() if value is not None}
    if check:
        if given:
            raise ConfigError("--check takes no other option but --json. Fix: leave the others out.")
        return _check(as_json)
    for name, option in (("accelerators", "--accelerators"), ("images_per_second", "--per-gpu-images-per-second")):
        if name not in given:
            raise ConfigError(f"{option} is missing. Fix: add it ({parser.prog} --help shows examples).")
    return _plan(given, as_json)


def _make_parser() -> WordParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = WordParser(
        "maskperf plan", usage=USAGE, epilog=EXAMPLES, formatter_class=formatter, add_help=False, allow_abbrev=False
    )
    add = parser.add_argument
    add("--accelerators", metavar="N", type=_whole, help="devices in all")
    add(
        *("--per-gpu-images-per-second",),
        metavar="X",
        type=_above_zero,
        dest="images_per_second",
        help="training rate of each device that trains, with as many images as the plan gives it",
    )
    add("--batch-size", metavar="B", type=_whole, help="images per step over all devices (default: chosen)")
    add("--accelerators-per-node", metavar="N", type=_whole, help="default: 8")
    add("--epochs", metavar="E", type=_above_zero, help="epochs that each run needs (default: as others needed)")
    add("--interconnect-gib-per-second", metavar="G", type=_above_zero, help="of each device, for the all-reduce")
    add("--json", action="store_true", help="print the plan as JSON")
    add("--check", action="store_true", help="predict every published score from the other systems")
    return parser


def _whole(word: str) -> int:
    try:
        number = int(word)
    except ValueError:
        number = 0
    if not 1 <= number <= LARGEST_NUMBER:
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number from 1 to 1e9")
    return number


def _above_zero(word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not 0 < number <= LARGEST_NUMBER:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number above 0, and at most 1e9")
    return number


def _plan(given: dict[str, Any], as_json: bool) -> int:
    from maskperf.mlperf.plan import PlanQuestion, batch_sizes, make_plan
    from maskperf.mlperf.plan_limits import assumptions, limits
    from maskperf.mlperf.published import place_among

    question = PlanQuestion(**given)
    chosen = make_plan(question)
    sizes = () if question.batch_size else batch_sizes(question.accelerators)
    others = tuple(make_plan(replace(question, batch_size=size)) for size in sizes if size != chosen.batch_size)
    places = place_among(chosen.score_minutes.expected, chosen.accelerators, batch_size=chosen.batch_size)
    limiting, assumed = limits(chosen, others), assumptions(question, chosen)
    if as_json:
        entries = {
            "plan": asdict(chosen),
            "other_batch_sizes": [asdict(other) for other in others],
            "places": [asdict(place) for place in places],
            "limits": limiting,
            "assumptions": assumed,
        }
        print(json.dumps(entries, indent=2, allow_nan=False))
        return EXIT_DONE
    _show(question, chosen, others)
    _show_place(places)
    _show_list("What limits it:", limiting)
    _show_list("Assumed, with the options that change it:", assumed)
    sys.stdout.flush()
    return EXIT_DONE


def _show(question: "PlanQuestion", chosen: "Plan", others: Sequence["Plan"]) -> None:
    nodes = f"{chosen.nodes} node{'s' if chosen.nodes > 1 else ''}"
    print(f"{chosen.accelerators} devices in {nodes}, {question.images_per_second:g} training images/s each\n")
    rows = [HEADINGS, *(_row(row) for row in sorted((chosen, *others), key=lambda row: row.batch_size))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    for row in rows:
        mark = ">" if others and row[0] == str(chosen.batch_size) else " "
        print(mark, "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    print("\nminutes: one run; score: five runs, the fastest and the slowest dropped; run_start to run_stop.")
    print(
        f"The 5..95 % of the score: those of the epochs, and {chosen.times.largest_error:.1%} for the time of an epoch."
        f" Initialisation ({chosen.times.init_seconds:.0f} s) is not in them."
    )


def _row(plan: "Plan") -> tuple[str, ...]:
    times, epochs, score = plan.times, plan.epochs, plan.score_minutes
    return (
        str(plan.batch_size),
        str(plan.images_per_device),
        str(plan.steps_per_epoch),
        f"{epochs.expected:.1f}",
        f"{epochs.low:.4g}..{epochs.high:.4g}",
        f"{times.step_ms:.1f}",
        "in the rate" if times.exchange_ms is None else f"{times.exchange_ms:.1f}",
        "beside" if times.evaluation_is_beside and not times.evaluation_seconds else f"{times.evaluation_seconds:.1f}",
        f"{plan.run_minutes.expected:.2f}",
        f"{score.expected:.2f}",
        f"{score.low:.2f}..{score.high:.2f}",
    )


def _show_place(places: Sequence["RankedSystem"]) -> None:
    ours = next(index for index, place in enumerate(places) if place.is_this)
    print(f"\nAmong the published systems of MLPerf Training v3.1: place {ours + 1} of {len(places)}")
    first = max(0, min(ours - NEIGHBOURS_SHOWN, len(places) - 2 * NEIGHBOURS_SHOWN - 1))
    for index in range(first, min(len(places), first + 2 * NEIGHBOURS_SHOWN + 1)):
        place = places[index]
        mark = ">" if place.is_this else " "
        about = f"{place.accelerators:>5} x {place.accelerator}" if place.accelerator else f"{place.accelerators:>5}"
        print(f"{mark} {index + 1:>3}. {place.minutes:8.2f} min  {about:<30}  {place.name}")


def _show_list(title: str, sentences: Sequence[str]) -> None:
    print(f"\n{title}")
    for sentence in sentences:
        print(f"  - {sentence}")


def _check(as_json: bool) -> int:
    from maskperf.mlperf.plan import check_against_published

    checks = check_against_published()
    errors = [abs(check.error) for check in checks]
    summary = {
        "median_error": statistics.median(errors),
        "largest_error": max(errors),
        "in_range": sum(check.in_range for check in checks),
    }
    if as_json:
        systems = [{**asdict(check), "error": check.error, "in_range": check.in_range} for check in checks]
        print(json.dumps({"systems": systems, **summary}, indent=2, allow_nan=False))
        return EXIT_DONE
    print(f"{'published':>9}  {'predicted':>9}  {'5..95 %':>14}  {'error':>7}   minutes of the score")
    for check in checks:
        span = f"{check.low_minutes:.2f}..{check.high_minutes:.2f}"
        numbers = f"{check.published_minutes:9.2f}  {check.predicted_minutes:9.2f}  {span:>14}  {check.error:+7.1%}"
        print(f"{numbers}   {check.name}")
    print(
        f"\nErrors of {len(checks)} systems: median {summary['median_error']:.1%}, largest"
        f" {summary['largest_error']:.1%}; {summary['in_range']} of the scores are in the range predicted for them."
    )
    print("Each was predicted from its devices, nodes, batch size, decay steps and training rate, and from the others.")
    return EXIT_DONE
