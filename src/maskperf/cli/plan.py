"""`maskperf plan --accelerators N --per-gpu-images-per-second X`: predicts time to target and score."""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from maskperf.cli.arguments import CommandParser, value_of
from maskperf.errors import EXIT_DONE, ConfigError

if TYPE_CHECKING:
    from maskperf.mlperf.plan import Plan, PlanQuestion
    from maskperf.mlperf.published import RankedSystem

USAGE = "--accelerators N --per-gpu-images-per-second X [options]"
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
LARGEST_NUMBER = 10**9
HEADINGS = (
    *("batch", "per device", "steps/epoch", "epochs", "5..95 %", "step ms", "all-reduce ms"),
    *("evaluation s", "minutes", "score", "5..95 %"),
)


def add_options(parser: CommandParser) -> None:
    add = parser.add_argument
    count = value_of(Annotated[int, Meta(ge=1, le=LARGEST_NUMBER)])
    positive = value_of(Annotated[float, Meta(gt=0, le=LARGEST_NUMBER)])
    add("--accelerators", metavar="N", type=count, help="devices in all")
    add(
        "--per-gpu-images-per-second",
        metavar="X",
        type=positive,
        dest="images_per_second",
        help="training rate of each device that trains, with as many images as the plan gives it",
    )
    add("--batch-size", metavar="B", type=count, help="images per step over all devices (default: chosen)")
    add("--accelerators-per-node", metavar="N", type=count, help="default: 8")
    add("--epochs", metavar="E", type=positive, help="epochs that each run needs (default: as others needed)")
    add("--interconnect-gib-per-second", metavar="G", type=positive, help="of each device, for the all-reduce")
    add("--json", action="store_true", help="print the plan as JSON")
    add("--check", action="store_true", help="predict every published score from the other systems")


def plan(options: argparse.Namespace) -> int:
    """Print a plan, or the check of the method against every published score."""
    others = ("command", "json", "check")
    given = {name: value for name, value in vars(options).items() if value is not None and name not in others}
    if options.check:
        if given:
            raise ConfigError("--check takes no other option but --json. Fix: leave the others out.")
        return _check(options.json)
    for name, option in (("accelerators", "--accelerators"), ("images_per_second", "--per-gpu-images-per-second")):
        if name not in given:
            raise ConfigError(f"{option} is missing. Fix: add it (see maskperf plan --help).")
    return _plan(given, options.json)


def _plan(given: dict[str, Any], as_json: bool) -> int:
    from maskperf.mlperf.plan import PlanQuestion, assumptions, batch_sizes, limits, make_plan
    from maskperf.mlperf.published import place_among

    question = PlanQuestion(**given)
    chosen = make_plan(question)
    sizes = () if question.batch_size else batch_sizes(question.accelerators)
    others = tuple(make_plan(replace(question, batch_size=size)) for size in sizes if size != chosen.batch_size)
    places = place_among(chosen.score_minutes.expected, chosen.accelerators, batch_size=chosen.batch_size)
    limiting, assumed = limits(chosen, others), assumptions(question, chosen)
    if as_json:
        entries = {
            "plan": chosen,
            "other_batch_sizes": others,
            "places": places,
            "limits": limiting,
            "assumptions": assumed,
        }
        print(json.dumps(entries, indent=2, allow_nan=False, default=asdict))
        return EXIT_DONE
    _show(question, chosen, others)
    _show_place(places)
    _show_list("What limits it:", limiting)
    _show_list("Assumed, with the options that change it:", assumed)
    sys.stdout.flush()
    return EXIT_DONE


def _show(question: "PlanQuestion", chosen: "Plan", others: Sequence["Plan"]) -> None:
    from maskperf.run.console import columns

    nodes = f"{chosen.nodes} node{'s' if chosen.nodes > 1 else ''}"
    print(f"{chosen.accelerators} devices in {nodes}, {question.images_per_second:g} training images/s each\n")
    plans = sorted((chosen, *others), key=lambda row: row.batch_size)
    heading, *lines = columns([HEADINGS, *map(_row, plans)], align=str.rjust)
    print(f"  {heading}")
    for plan, line in zip(plans, lines, strict=True):
        print(">" if others and plan is chosen else " ", line)
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
    own = next(index for index, system in enumerate(places) if system.is_this)
    print(f"\nAmong the published systems of MLPerf Training v3.1: place {own + 1} of {len(places)}")
    first = max(0, min(own - NEIGHBOURS_SHOWN, len(places) - 2 * NEIGHBOURS_SHOWN - 1))
    for index in range(first, min(len(places), first + 2 * NEIGHBOURS_SHOWN + 1)):
        system = places[index]
        mark = ">" if system.is_this else " "
        about = f"{system.accelerators:>5}" + (f" x {system.accelerator}" if system.accelerator else "")
        print(f"{mark} {index + 1:>3}. {system.minutes:8.2f} min  {about:<30}  {system.name}")


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
