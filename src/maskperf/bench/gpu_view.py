"""What `maskperf bench gpu` shows: one table a section, and what was not measured with its reason."""

from collections.abc import Callable

from rich.console import Console
from rich.table import Table

SHOWN_CONVOLUTIONS = 40
HEADLINES = {
    "device": "the card",
    "switches": "one training step, with one switch after another",
    "steps": "training steps by canvas, batch, precision and launching",
    "convolutions": "convolutions of a step in bfloat16, the layers with most work first",
    "peer": "beside torchvision on the same card",
}


def show(console: Console, found: dict) -> None:
    """Show the result of `gpu.measure`."""
    for section, result in found["sections"].items():
        rows = [row for row in result["rows"] if "left_out" not in row and "error" not in row]
        if rows:
            console.print(_table(section, rows))
        for row in result["rows"]:
            if "left_out" in row:
                console.print(f"{section}: left out, {row['left_out']}")
            if "error" in row:
                images = f", {row['images']} images" if "images" in row else ""
                console.print(f"{section}, {row['name']}{images}: {row['error'].splitlines()[-1]}")
        for line in dict.fromkeys(line for row in rows for line in row.get("messages", [])):
            console.print(line)
        if result["error"]:
            reason = result["error"].splitlines()[-1]  # of a trace, which is in the file, the last line says most
            console.print(f"{section}: NOT COMPLETE, {len(rows)} rows in {result['seconds']:.0f} s. {reason}")


def _table(section: str, rows: list[dict]) -> Table:
    is_kernel = section.startswith("kernel ")
    table = Table(title=HEADLINES.get(section, section), title_justify="left")
    columns = KERNEL_COLUMNS if is_kernel else COLUMNS[section]
    for name in columns:
        table.add_column(name, justify="left" if name in ("what", "shape") else "right")
    for row in rows[:SHOWN_CONVOLUTIONS] if section == "convolutions" else rows:
        table.add_row(*[text_of(row) for text_of in columns.values()])
    return table


def _spread(name: str, digits: int = 3) -> Callable[[dict], str]:
    """Return a function that shows a spread as median (first quartile..third quartile)."""

    def text(row: dict) -> str:
        spread = row[name]
        if spread is None:
            return "-"
        numbers = [spread[key] for key in ("median", "first_quartile", "third_quartile")]
        return "{} ({}..{})".format(*(f"{number:.{digits}f}" for number in numbers))

    return text


def _number(name: str, digits: int) -> Callable[[dict], str]:
    return lambda row: "-" if row[name] is None else f"{row[name]:.{digits}f}"


def _layer(row: dict) -> str:
    layer = row["layer"]
    kind = "transposed " if layer["transposed"] else ""
    return f"{kind}{layer['input_shape']} with {layer['weight_shape']}, stride {layer['stride'][0]}"


def _sides(row: dict) -> str:
    return "; ".join(f"{side['name']} {side['seconds']['median'] * 1000:.3f} ms" for side in row["sides"])


def _ratios(row: dict) -> str:
    ratios = [side["times_as_long"] for side in row["sides"]]
    return "; ".join(f"{ratio['median']:.2f}" for ratio in ratios if ratio)


KERNEL_COLUMNS: dict[str, Callable[[dict], str]] = {
    "what": lambda row: row["name"],
    "shape": lambda row: row["shape"],
    "kernel, ms": _spread("kernel_milliseconds"),
    "plain, ms": _spread("plain_milliseconds"),
    "plain / kernel": _spread("plain_over_kernel", 2),
    "largest difference": lambda row: f"{row['largest_difference']:.2e} of {row['largest_value']:.2e}",
}
STEP_COLUMNS: dict[str, Callable[[dict], str]] = {
    "what": lambda row: row["name"],
    "canvas": lambda row: "{}x{}".format(*row["canvas_hw"]),
    "images": lambda row: str(row["images"]),
    "replayed": lambda row: "yes" if row["captured"] else "no",
    "ms": _spread("milliseconds", 2),
    "images/s": _number("images_per_second", 1),
    "times as fast as the first": _spread("first_over_this", 2),
    "loss difference": lambda row: "-" if row["loss_difference"] is None else f"{row['loss_difference']:.1e}",
    "peak GiB": _number("peak_gib", 2),
}
COLUMNS: dict[str, dict[str, Callable[[dict], str]]] = {
    "device": {
        "what": lambda row: row["name"],
        "memory GiB": _number("memory_gib", 1),
        "bfloat16 TFLOP/s": _number("bfloat16_teraflop_per_second", 1),
        "copy GB/s": _number("copy_gb_per_second", 0),
        "kernels": lambda row: row["kernels"],
    },
    "switches": STEP_COLUMNS,
    "steps": STEP_COLUMNS,
    "convolutions": {
        "what": _layer,
        "direction": lambda row: row["direction"],
        "in a step": lambda row: str(row["times_in_a_step"]),
        "ms": _spread("milliseconds"),
        "TFLOP/s": _number("teraflop_per_second", 1),
    },
    "peer": {
        "what": lambda row: f"{row['benchmark']}, {row['case']}",
        "medians": _sides,
        "peer / ours": _ratios,
    },
}
