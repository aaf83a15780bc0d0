"""The measurements as a table for people and as entries for JSON."""

from dataclasses import asdict

from rich import box
from rich.console import Console
from rich.table import Table

from maskperf.bench.measure import Spread
from maskperf.bench.plan import Plan
from maskperf.bench.session import CaseResult, SideResult
from maskperf.bench.switches import loss_difference
from maskperf.machine.probe import describe_machine
from maskperf.overrides import differences
from maskperf.recipes import coco

SHOWN_FACTS = (
    *("rois", "positive_rois", "detections", "kept", "filled_share", "flop", "box_ap", "mask_ap", "mib"),
    *("truth_seconds", "coded_seconds", "first_loss", "last_loss", "seconds_before_step", "seconds_of"),
    *("first_run_seconds_before_step", "first_run_seconds_of"),
)
UNITS = ((1.0, 1.0, "s"), (1e-3, 1e3, "ms"), (0.0, 1e6, "us"))


def show_results(console: Console, results: list[CaseResult], ceiling: dict, clock: str) -> None:
    """Return nothing; one row for each side of each case, and what the sides worked on below."""
    clock_name = "seconds on the wall" if clock == "wall" else "processor seconds"
    title = f"medians of {clock_name} (smallest to largest), and ratios of pairs measured in turn"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("benchmark", "case", "side"):
        table.add_column(heading, overflow="fold")
    for heading in (
        "one call",
        "rate",
        "peak GiB",
        "FLOP/s",
        "of ceiling",
        "times the first side's (quartiles)",
    ):
        table.add_column(heading, justify="right")
    for result in results:
        for place, side in enumerate(result.sides):
            first = (result.benchmark, result.case) if place == 0 else ("", "")
            table.add_row(*first, side.name, *_numbers(side, ceiling), _ratio_text(side.times_as_long))
        table.add_section()
    console.print(table)
    for line in (line for result in results for side in result.sides for line in _notes(result, side)):
        console.print(line)


def show_switches(console: Console, result: CaseResult) -> None:
    """Return nothing; one row for each technique, compared with the plain path."""
    table = Table(title="one switch after another", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("technique", overflow="fold")
    table.add_column("what it does", overflow="fold")
    for heading in ("one step", "images/s", "times as fast (quartiles)", "peak GiB", "FLOP", "loss difference"):
        table.add_column(heading, justify="right")
    plain = result.sides[0].facts["first_losses"]
    for side in result.sides:
        faster = _inverse(side.times_as_long) if side.times_as_long else None
        table.add_row(
            side.name,
            side.facts["summary"],
            spread_text(side.seconds),
            f"{side.facts['items'] / side.seconds.median:.4g}",
            _ratio_text(faster),
            _peak_text(side),
            f"{side.facts['flop']:.3g}",
            f"{loss_difference(side.facts['first_losses'], plain):.1e}",
        )
    console.print(table)
    for line in dict.fromkeys(f"{side.name}: {line}" for side in result.sides for line in side.facts["messages"]):
        console.print(line)


def show_ceiling(console: Console, ceiling: dict, threads: int) -> None:
    """Return nothing; one line about the machine."""
    environment = ceiling["environment"]
    console.print(
        f"{environment['cpu_model']}, {threads} of {environment['cpu_physical_cores']} cores, "
        f"device {ceiling['device']}, torch {environment['packages']['torch']}: "
        f"{ceiling['flop_per_second'] / 1e9:.1f} GFLOP/s by float32 matrix products, "
        f"{ceiling['copy_bytes_per_second'] / 1e9:.1f} GB/s by a large copy"
    )


def everything(results: list[CaseResult], ceiling: dict, plan: Plan) -> dict:
    """Return commit, machine, versions, settings and every single timing, as JSON takes them."""
    return {
        "commit": ceiling["environment"]["git_commit"],
        "modified": ceiling["environment"]["git_modified"],
        "machine": asdict(describe_machine()),
        "ceiling": ceiling,
        "plan": {
            "size_hw": plan.size_hw,
            "images": plan.images,
            "objects": plan.objects,
            "repeats": plan.repeats,
            "threads": plan.threads,
            "clock": plan.clock,
            "peer_python": plan.peer_python,
            "differences_from_coco": differences(plan.config, coco()),
            "speed": asdict(plan.config.speed),
        },
        "results": [entries_of(result, ceiling) for result in results],
    }


def entries_of(result: CaseResult, ceiling: dict) -> dict:
    """Return a case as JSON takes it."""
    sides = []
    for side in result.sides:
        rate = side.flop_per_second
        share = None if rate is None else rate / ceiling["flop_per_second"]
        sides.append({**asdict(side), "flop_per_second": rate, "share_of_ceiling": share})
    return {"benchmark": result.benchmark, "case": result.case, "sides": sides}


def spread_text(spread: Spread) -> str:
    """Return seconds as "12.3 ms (11.9 to 14.0)", all three in the unit of the median."""
    factor, unit = next((factor, unit) for smallest, factor, unit in UNITS if spread.median >= smallest)
    median, low, high = (f"{value * factor:.3g}" for value in (spread.median, spread.minimum, spread.maximum))
    return f"{median} {unit} ({low} to {high})"


def _numbers(side: SideResult, ceiling: dict) -> tuple[str, str, str, str, str]:
    rate = side.flop_per_second
    items = side.facts.get("items", 1) / side.seconds.median
    return (
        spread_text(side.seconds),
        f"{items:.4g} {side.facts['item']}/s" if "item" in side.facts else "",
        _peak_text(side),
        f"{rate / 1e9:.4g} G" if rate else "",
        f"{rate / ceiling['flop_per_second']:.0%}" if rate else "",
    )


def _peak_text(side: SideResult) -> str:
    peak = side.device_peak_gib if side.device_peak_gib else side.peak_gib
    return "" if peak is None else f"{peak:.2f}"


def _ratio_text(ratio: Spread | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio.median:.2f} ({ratio.first_quartile:.2f} to {ratio.third_quartile:.2f})"


def _inverse(ratio: Spread) -> Spread:
    return Spread(
        median=1 / ratio.median,
        minimum=1 / ratio.maximum,
        first_quartile=1 / ratio.third_quartile,
        third_quartile=1 / ratio.first_quartile,
        maximum=1 / ratio.minimum,
        count=ratio.count,
    )


def _notes(result: CaseResult, side: SideResult) -> list[str]:
    """Return what a side said, and a line about what it worked on: one can see whether the sides did the same."""
    shown = {name: side.facts[name] for name in SHOWN_FACTS if name in side.facts}
    who = f"{result.benchmark}, {result.case}, {side.name}"
    lines = [f"{who}: {message}" for message in side.facts.get("messages", [])]
    words = ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in shown.items())
    return [*lines, f"{who}: {words}"] if shown else lines


def _short(value: object) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_short(entry)}" for name, entry in value.items()) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
