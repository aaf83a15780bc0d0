"""The measurements as tables in the terminal and as values for JSON."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from maskperf.bench.plan import Plan
from maskperf.bench.session import SWITCHES, CaseResult
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

Row = dict[str, Any]  # as in the JSON file
Columns = dict[str, Callable[[Row], str]]  # the text of a row by heading


def everything(results: list[CaseResult], ceiling: dict, plan: Plan) -> Row:
    """Return commit, machine, versions, settings and every single timing, for `show` and for JSON."""
    settings = ("size_hw", "images", "objects", "repeats", "threads", "clock", "peer_python")
    entries = [asdict(result) for result in results]
    for side in (side for entry in entries for side in entry["sides"]):
        rate = side["flop_per_second"] = _flop_per_second(side)
        side["share_of_ceiling"] = rate / ceiling["flop_per_second"] if rate else None
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
        "results": entries,
    }


def show(console: Console, found: Row) -> None:
    """Show the result of `everything`: a line about the machine, and the sides of the cases and of the switches."""
    ceiling, threads, clock = found["ceiling"], found["plan"]["threads"], found["plan"]["clock"]
    environment = ceiling["environment"]
    console.print(
        f"{environment['cpu_model']}, {threads} of {environment['cpu_physical_cores']} cores, "
        f"device {ceiling['device']}, torch {environment['packages']['torch']}: "
        f"{ceiling['flop_per_second'] / 1e9:.1f} GFLOP/s by float32 matrix products, "
        f"{ceiling['copy_bytes_per_second'] / 1e9:.1f} GB/s by a large copy"
    )
    cases = [result for result in found["results"] if result["benchmark"] != SWITCHES]
    if cases:
        clock_name = "seconds on the wall" if clock == "wall" else "processor seconds"
        title = f"medians of {clock_name} (smallest to largest), and ratios of pairs measured in turn"
        lines = [
            line
            for result in cases
            for side in result["sides"]
            for line in _notes(f"{result['benchmark']}, {result['case']}, {side['name']}", side["facts"])
        ]
        console.print(_table(title, RESULT_COLUMNS, _rows_of_sides(cases)), *lines, sep="\n")
    for sides in (result["sides"] for result in found["results"] if result["benchmark"] == SWITCHES):
        plain = sides[0]["facts"]["first_losses"]
        differences_of = [loss_difference(side["facts"]["first_losses"], plain) for side in sides]
        rows = [side | {"loss_difference": value} for side, value in zip(sides, differences_of, strict=True)]
        lines = [f"{side['name']}: {line}" for side in sides for line in side["facts"]["messages"]]
        console.print(_table("one switch after another", SWITCH_COLUMNS, rows), *dict.fromkeys(lines), sep="\n")


def show_gpu(console: Console, found: Row) -> None:
    """Show the result of `gpu.measure`: one table a section, and what was not measured with its reason."""
    for section, result in found["sections"].items():
        rows = [row for row in result["rows"] if "left_out" not in row and "error" not in row]
        if rows:
            headline, columns = (section, KERNEL_COLUMNS) if section.startswith("kernel ") else SECTIONS[section]
            shown = rows[:SHOWN_CONVOLUTIONS] if section == "convolutions" else rows
            console.print(_table(headline, columns, _rows_of_sides(rows) if section == "peer" else shown))
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


def _rows_of_sides(results: list[Row]) -> list[Row]:
    """Return a row for each side of each case; only the first of a case names the case."""
    heading = {"benchmark": "", "case": ""}
    return [
        side | (heading if number else {name: result[name] for name in heading})
        for result in results
        for number, side in enumerate(result["sides"])
    ]


def _table(title: str, columns: Columns, rows: Iterable[Row]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for heading in columns:
        is_left = heading in LEFT_COLUMNS
        table.add_column(heading, justify="left" if is_left else "right", overflow="fold" if is_left else "ellipsis")
    for row in rows:
        table.add_row(*[text_of(row) for text_of in columns.values()])
    return table


def _notes(name: str, facts: Row) -> list[str]:
    """Return the messages of a side, and a line about what it worked on, which shows whether the sides did the same."""
    shown = [f"{fact.replace('_', ' ')} {_short(facts[fact])}" for fact in SHOWN_FACTS if fact in facts]
    return [f"{name}: {line}" for line in [*facts.get("messages", []), *filter(None, [", ".join(shown)])]]


def _short(value: object) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_short(entry)}" for name, entry in value.items()) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def spread_text(spread: dict[str, float]) -> str:
    """Return seconds as "12.3 ms (11.9 to 14.0)", all three in the unit of the median."""
    factor, unit = next((factor, unit) for smallest, factor, unit in UNITS if spread["median"] >= smallest)
    median, low, high = (f"{spread[name] * factor:.3g}" for name in ("median", "minimum", "maximum"))
    return f"{median} {unit} ({low} to {high})"


def _rate(side: Row) -> float:
    return side["facts"].get("items", 1) / side["seconds"]["median"]


def _flop_per_second(side: Row) -> float | None:
    flop = side["facts"].get("flop")
    return flop / side["seconds"]["median"] if flop else None


def _peak(side: Row) -> str:
    peak = side["device_peak_gib"] or side["peak_gib"]
    return "" if peak is None else f"{peak:.2f}"


def _text(name: str, form: str = "{}", missing: str = "-") -> Callable[[Row], str]:
    """Return a function that shows one value of a row."""
    return lambda row: missing if row[name] is None else form.format(row[name])


def _spread(name: str, digits: int = 3, *, missing: str = "-", inverse: bool = False) -> Callable[[Row], str]:
    """Return a function that shows a spread, or that of 1 / its values, as "median (first to third quartile)"."""

    def text(row: Row) -> str:
        if row[name] is None:
            return missing
        numbers = [row[name][key] for key in ("median", "first_quartile", "third_quartile")]
        if inverse:
            numbers = [1 / numbers[index] for index in (0, 2, 1)]
        return "{} ({} to {})".format(*(f"{number:.{digits}f}" for number in numbers))

    return text


def _layer(row: Row) -> str:
    layer = row["layer"]
    kind = "transposed " if layer["transposed"] else ""
    return f"{kind}{layer['input_shape']} with {layer['weight_shape']}, stride {layer['stride'][0]}"


RESULT_COLUMNS: Columns = {
    "benchmark": _text("benchmark"),
    "case": _text("case"),
    "side": _text("name"),
    "one call": lambda side: spread_text(side["seconds"]),
    "rate": lambda side: f"{_rate(side):.4g} {side['facts']['item']}/s" if "item" in side["facts"] else "",
    "peak GiB": _peak,
    "FLOP/s": lambda side: f"{rate / 1e9:.4g} G" if (rate := _flop_per_second(side)) else "",
    "of ceiling": lambda side: f"{share:.0%}" if (share := side.get("share_of_ceiling")) else "",
    "times the first side's (quartiles)": _spread("times_as_long", 2, missing=""),
}
SWITCH_COLUMNS: Columns = {
    "technique": _text("name"),
    "what it does": lambda side: side["facts"]["summary"],
    "one step": lambda side: spread_text(side["seconds"]),
    "images/s": lambda side: f"{_rate(side):.4g}",
    "times as fast (quartiles)": _spread("times_as_long", 2, missing="", inverse=True),
    "peak GiB": _peak,
    "FLOP": lambda side: f"{side['facts']['flop']:.3g}",
    "loss difference": _text("loss_difference", "{:.1e}"),
}
KERNEL_COLUMNS: Columns = {
    "what": _text("name"),
    "shape": _text("shape"),
    "kernel, ms": _spread("kernel_milliseconds"),
    "plain, ms": _spread("plain_milliseconds"),
    "plain / kernel": _spread("plain_over_kernel", 2),
    "largest difference": lambda row: f"{row['largest_difference']:.2e} of {row['largest_value']:.2e}",
}
STEP_COLUMNS: Columns = {
    "what": _text("name"),
    "padded size": lambda row: "{}x{}".format(*row["canvas_hw"]),
    "images": _text("images"),
    "replayed": lambda row: "yes" if row["captured"] else "no",
    "ms": _spread("milliseconds", 2),
    "images/s": _text("images_per_second", "{:.1f}"),
    "times as fast as the first": _spread("first_over_this", 2),
    "loss difference": _text("loss_difference", "{:.1e}"),
    "peak GiB": _text("peak_gib", "{:.2f}"),
}
CONVOLUTION_COLUMNS: Columns = {
    "what": _layer,
    "direction": _text("direction"),
    "in a step": _text("times_in_a_step"),
    "ms": _spread("milliseconds"),
    "TFLOP/s": _text("teraflop_per_second", "{:.1f}"),
}
DEVICE_COLUMNS: Columns = {
    "what": _text("name"),
    "memory GiB": _text("memory_gib", "{:.1f}"),
    "bfloat16 TFLOP/s": _text("bfloat16_teraflop_per_second", "{:.1f}"),
    "copy GB/s": _text("copy_gb_per_second", "{:.0f}"),
    "kernels": _text("kernels"),
}
SECTIONS: dict[str, tuple[str, Columns]] = {
    "device": ("the GPU", DEVICE_COLUMNS),
    "switches": ("one training step, with one switch after another", STEP_COLUMNS),
    "steps": ("training steps by padded size, batch, precision and launching", STEP_COLUMNS),
    "convolutions": ("convolutions of a step in bfloat16, the layers with most work first", CONVOLUTION_COLUMNS),
    "peer": ("beside torchvision on the same GPU", RESULT_COLUMNS),
}
