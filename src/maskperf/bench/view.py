"""The measurements as tables in the terminal and as values for JSON."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

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
LEFT_COLUMNS = ("benchmark", "case", "side", "technique", "what it does", "what", "shape")
SHOWN_CONVOLUTIONS = 40

Columns = dict[str, Callable[[Any], str]]  # the text of a row by heading


def _table(title: str, columns: Columns, rows: Iterable[Any]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for heading in columns:
        is_left = heading in LEFT_COLUMNS
        table.add_column(heading, justify="left" if is_left else "right", overflow="fold" if is_left else "ellipsis")
    for row in rows:
        table.add_row(*[text_of(row) for text_of in columns.values()])
    return table


def show_results(console: Console, results: list[CaseResult], ceiling: dict, clock: str) -> None:
    """Show one row for each side of each case, and what the sides worked on below."""
    clock_name = "seconds on the wall" if clock == "wall" else "processor seconds"
    columns: Columns = {
        "benchmark": lambda row: row[0].benchmark if row[1] is row[0].sides[0] else "",
        "case": lambda row: row[0].case if row[1] is row[0].sides[0] else "",
        "side": lambda row: row[1].name,
        "one call": lambda row: spread_text(row[1].seconds),
        "rate": lambda row: f"{_rate(row[1]):.4g} {row[1].facts['item']}/s" if "item" in row[1].facts else "",
        "peak GiB": lambda row: _peak_text(row[1]),
        "FLOP/s": lambda row: f"{rate / 1e9:.4g} G" if (rate := row[1].flop_per_second) else "",
        "of ceiling": lambda row: f"{share:.0%}" if (share := _share(row[1], ceiling)) else "",
        "times the first side's (quartiles)": lambda row: _ratio_text(row[1].times_as_long),
    }
    title = f"medians of {clock_name} (smallest to largest), and ratios of pairs measured in turn"
    rows = [(result, side) for result in results for side in result.sides]
    console.print(_table(title, columns, rows))
    for result, side in rows:
        for line in _notes(result, side):
            console.print(line)


def show_switches(console: Console, result: CaseResult) -> None:
    """Show one row for each technique, compared with the plain path."""
    plain = result.sides[0].facts["first_losses"]
    columns: Columns = {
        "technique": lambda side: side.name,
        "what it does": lambda side: side.facts["summary"],
        "one step": lambda side: spread_text(side.seconds),
        "images/s": lambda side: f"{_rate(side):.4g}",
        "times as fast (quartiles)": lambda side: _ratio_text(side.times_as_long, inverse=True),
        "peak GiB": _peak_text,
        "FLOP": lambda side: f"{side.facts['flop']:.3g}",
        "loss difference": lambda side: f"{loss_difference(side.facts['first_losses'], plain):.1e}",
    }
    console.print(_table("one switch after another", columns, result.sides))
    for line in dict.fromkeys(f"{side.name}: {line}" for side in result.sides for line in side.facts["messages"]):
        console.print(line)


def show_ceiling(console: Console, ceiling: dict, threads: int) -> None:
    """Show one line about the machine."""
    environment = ceiling["environment"]
    console.print(
        f"{environment['cpu_model']}, {threads} of {environment['cpu_physical_cores']} cores, "
        f"device {ceiling['device']}, torch {environment['packages']['torch']}: "
        f"{ceiling['flop_per_second'] / 1e9:.1f} GFLOP/s by float32 matrix products, "
        f"{ceiling['copy_bytes_per_second'] / 1e9:.1f} GB/s by a large copy"
    )


def show_gpu(console: Console, found: dict) -> None:
    """Show the result of `gpu.measure`: one table a section, and what was not measured with its reason."""
    for section, result in found["sections"].items():
        rows = [row for row in result["rows"] if "left_out" not in row and "error" not in row]
        if rows:
            headline, columns = (section, KERNEL_COLUMNS) if section.startswith("kernel ") else SECTIONS[section]
            shown = rows[:SHOWN_CONVOLUTIONS] if section == "convolutions" else rows
            console.print(_table(headline, columns, shown))
        for row in result["rows"]:
            if "left_out" in row:
                console.print(f"{section}: left out, {row['left_out']}")
            if "error" in row:
                images = f", {row['images']} images" if "images" in row else ""
                console.print(f"{section}, {row['name']}{images}: {row['error'].splitlines()[-1]}")
        for line in dict.fromkeys(line for row in rows for line in row.get("messages", [])):
            console.print(line)
        if result["error"]:
            reason = result["error"].splitlines()[-1]  # the last line of a trace says most; all of it is in the file
            console.print(f"{section}: NOT COMPLETE, {len(rows)} rows in {result['seconds']:.0f} s. {reason}")


def everything(results: list[CaseResult], ceiling: dict, plan: Plan) -> dict:
    """Return commit, machine, versions, settings and every single timing, for JSON."""
    settings = ("size_hw", "images", "objects", "repeats", "threads", "clock", "peer_python")
    return {
        "commit": ceiling["environment"]["git_commit"],
        "modified": ceiling["environment"]["git_modified"],
        "machine": asdict(describe_machine()),
        "ceiling": ceiling,
        "plan": {
            **{name: getattr(plan, name) for name in settings},
            "differences_from_coco": differences(plan.config, coco()),
            "speed": asdict(plan.config.speed),
        },
        "results": [_entries_of(result, ceiling) for result in results],
    }


def _entries_of(result: CaseResult, ceiling: dict) -> dict:
    sides = [
        {**asdict(side), "flop_per_second": side.flop_per_second, "share_of_ceiling": _share(side, ceiling)}
        for side in result.sides
    ]
    return {"benchmark": result.benchmark, "case": result.case, "sides": sides}


def _share(side: SideResult, ceiling: dict) -> float | None:
    return None if side.flop_per_second is None else side.flop_per_second / ceiling["flop_per_second"]


def spread_text(spread: Spread) -> str:
    """Return seconds as "12.3 ms (11.9 to 14.0)", all three in the unit of the median."""
    factor, unit = next((factor, unit) for smallest, factor, unit in UNITS if spread.median >= smallest)
    median, low, high = (f"{value * factor:.3g}" for value in (spread.median, spread.minimum, spread.maximum))
    return f"{median} {unit} ({low} to {high})"


def _rate(side: SideResult) -> float:
    return side.facts.get("items", 1) / side.seconds.median


def _peak_text(side: SideResult) -> str:
    peak = side.device_peak_gib or side.peak_gib
    return "" if peak is None else f"{peak:.2f}"


def _ratio_text(ratio: Spread | None, *, inverse: bool = False) -> str:
    if ratio is None:
        return ""
    values = (ratio.median, ratio.first_quartile, ratio.third_quartile)
    if inverse:
        values = (1 / ratio.median, 1 / ratio.third_quartile, 1 / ratio.first_quartile)
    return "{:.2f} ({:.2f} to {:.2f})".format(*values)


def _notes(result: CaseResult, side: SideResult) -> list[str]:
    """Return the messages of a side, and a line about what it worked on, which shows whether the sides did the same."""
    shown = {name: side.facts[name] for name in SHOWN_FACTS if name in side.facts}
    who = f"{result.benchmark}, {result.case}, {side.name}"
    lines = [f"{who}: {message}" for message in side.facts.get("messages", [])]
    text = ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in shown.items())
    return [*lines, f"{who}: {text}"] if shown else lines


def _short(value: object) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_short(entry)}" for name, entry in value.items()) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _spread(name: str, digits: int = 3) -> Callable[[dict], str]:
    """Return a function that shows a spread as median (first quartile..third quartile)."""

    def text(row: dict) -> str:
        if row[name] is None:
            return "-"
        numbers = [row[name][key] for key in ("median", "first_quartile", "third_quartile")]
        return "{} ({}..{})".format(*(f"{number:.{digits}f}" for number in numbers))

    return text


def _number(name: str, digits: int) -> Callable[[dict], str]:
    return lambda row: "-" if row[name] is None else f"{row[name]:.{digits}f}"


def _layer(row: dict) -> str:
    layer = row["layer"]
    kind = "transposed " if layer["transposed"] else ""
    return f"{kind}{layer['input_shape']} with {layer['weight_shape']}, stride {layer['stride'][0]}"


def _medians(row: dict) -> str:
    return "; ".join(f"{side['name']} {side['seconds']['median'] * 1000:.3f} ms" for side in row["sides"])


def _ratios(row: dict) -> str:
    return "; ".join(f"{ratio['median']:.2f}" for side in row["sides"] if (ratio := side["times_as_long"]))


KERNEL_COLUMNS: Columns = {
    "what": lambda row: row["name"],
    "shape": lambda row: row["shape"],
    "kernel, ms": _spread("kernel_milliseconds"),
    "plain, ms": _spread("plain_milliseconds"),
    "plain / kernel": _spread("plain_over_kernel", 2),
    "largest difference": lambda row: f"{row['largest_difference']:.2e} of {row['largest_value']:.2e}",
}
STEP_COLUMNS: Columns = {
    "what": lambda row: row["name"],
    "padded size": lambda row: "{}x{}".format(*row["canvas_hw"]),
    "images": lambda row: str(row["images"]),
    "replayed": lambda row: "yes" if row["captured"] else "no",
    "ms": _spread("milliseconds", 2),
    "images/s": _number("images_per_second", 1),
    "times as fast as the first": _spread("first_over_this", 2),
    "loss difference": lambda row: "-" if row["loss_difference"] is None else f"{row['loss_difference']:.1e}",
    "peak GiB": _number("peak_gib", 2),
}
DEVICE_COLUMNS: Columns = {
    "what": lambda row: row["name"],
    "memory GiB": _number("memory_gib", 1),
    "bfloat16 TFLOP/s": _number("bfloat16_teraflop_per_second", 1),
    "copy GB/s": _number("copy_gb_per_second", 0),
    "kernels": lambda row: row["kernels"],
}
CONVOLUTION_COLUMNS: Columns = {
    "what": _layer,
    "direction": lambda row: row["direction"],
    "in a step": lambda row: str(row["times_in_a_step"]),
    "ms": _spread("milliseconds"),
    "TFLOP/s": _number("teraflop_per_second", 1),
}
PEER_COLUMNS: Columns = {
    "what": lambda row: f"{row['benchmark']}, {row['case']}",
    "medians": _medians,
    "peer / maskperf": _ratios,
}
SECTIONS: dict[str, tuple[str, Columns]] = {
    "device": ("the GPU", DEVICE_COLUMNS),
    "switches": ("one training step, with one switch after another", STEP_COLUMNS),
    "steps": ("training steps by padded size, batch, precision and launching", STEP_COLUMNS),
    "convolutions": ("convolutions of a step in bfloat16, the layers with most work first", CONVOLUTION_COLUMNS),
    "peer": ("beside torchvision on the same GPU", PEER_COLUMNS),
}
