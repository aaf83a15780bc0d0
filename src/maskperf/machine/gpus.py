"""NVIDIA GPUs as nvidia-smi tells them.

Source: `nvidia-smi --help-query-gpu`, `--help-query-compute-apps` and `nvidia-smi topo -m`. A value that a GPU does
not have reads "[N/A]", "N/A" or "[Not Supported]".
"""

import re
from pathlib import Path

from maskperf.machine.facts import GpuFacts, GpuGroup, GpuProcess
from maskperf.machine.sources import Answer, read_text, run_program

BUS_FOLDER = Path("/sys/bus/pci/devices")
NVIDIA_VENDOR = "0x10de"
QUERY_SECONDS = 10.0  # a driver that has to be loaded first is slow
FIELDS = (
    *("index", "name", "memory.total", "memory.used", "power.limit", "clocks.max.sm", "clocks.max.memory"),
    *("pcie.link.gen.max", "pcie.link.width.max", "mig.mode.current", "driver_version"),
)
FORMAT = "--format=csv,noheader,nounits"


def describe_gpus() -> GpuGroup:
    """Return the GPUs, their driver and their links; without GPUs where nvidia-smi is missing or fails."""
    answer = _ask([f"--query-gpu={','.join(FIELDS)}", FORMAT])
    cards = count_cards(BUS_FOLDER)
    gpus = parse_gpus(answer.output or "")
    if not gpus:
        return GpuGroup(cards_on_bus=cards, complaint=answer.complaint)
    return GpuGroup(
        cards_on_bus=cards,
        gpus=gpus,
        driver_version=parse_driver(answer.output or ""),
        driver_cuda=parse_driver_cuda(_ask([]).output or ""),
        links=parse_links(_ask(["topo", "-m"]).output or "", len(gpus)) if len(gpus) > 1 else (),
        processes=parse_processes(_ask(["--query-compute-apps=pid,process_name,used_memory", FORMAT]).output or ""),
    )


def count_cards(bus_folder: Path) -> int:
    """Return the number of NVIDIA cards of the display and 3D classes (0x03....) on the PCI bus."""
    cards = 0
    for device in bus_folder.glob("*"):
        is_display = (read_text(device / "class") or "").startswith("0x03")
        cards += is_display and read_text(device / "vendor") == NVIDIA_VENDOR
    return cards


def parse_driver(text: str) -> str | None:
    """Return the driver's version: the last field of the query's first line."""
    last = _cells(text.splitlines()[0])[-1] if text.strip() else ""
    return last if re.fullmatch(r"[0-9]+(\.[0-9]+)+", last) else None


def parse_gpus(text: str) -> tuple[GpuFacts, ...]:
    """Return one GPU per line of the query; sizes are in MiB there."""
    found = []
    for line in text.splitlines():
        cells = _cells(line)
        if len(cells) != len(FIELDS) or not cells[0].isdigit():
            continue
        values = dict(zip(FIELDS, cells, strict=True))
        found.append(
            GpuFacts(
                index=int(cells[0]),
                name=cells[1],
                memory_gib=_gib(values["memory.total"]),
                memory_used_gib=_gib(values["memory.used"]),
                power_limit_watts=_number(values["power.limit"]),
                maximum_sm_mhz=_number(values["clocks.max.sm"]),
                maximum_memory_mhz=_number(values["clocks.max.memory"]),
                pcie_generation=_whole(values["pcie.link.gen.max"]),
                pcie_lanes=_whole(values["pcie.link.width.max"]),
                is_split={"Enabled": True, "Disabled": False}.get(values["mig.mode.current"]),
            )
        )
    return tuple(found)


def parse_driver_cuda(text: str) -> str | None:
    """Return the CUDA version in the head of plain nvidia-smi."""
    match = re.search(r"CUDA (?:UMD )?Version\s*:\s*([0-9]+\.[0-9]+)", text)
    return None if match is None else match[1]


def parse_links(text: str, count: int) -> tuple[tuple[str, ...], ...]:
    """Return the square of link names among the GPUs: the first `count` columns of each GPU's row."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)  # the heading is underlined
    rows = []
    for line in plain.splitlines():
        words = line.split()
        if words and re.fullmatch(r"GPU\d+", words[0]) and len(words) > count and words[1] != "GPU1":
            rows.append(tuple(words[1 : count + 1]))
    return tuple(rows) if len(rows) == count else ()


def link_summary(links: tuple[tuple[str, ...], ...]) -> str | None:
    """Return the kinds of link between two GPUs with the number of pairs, such as "NV18 (28 pairs)"."""
    pairs = [links[row][column] for row in range(len(links)) for column in range(row)]
    kinds = sorted(set(pairs), key=lambda kind: (-pairs.count(kind), kind))
    return ", ".join(f"{kind} ({pairs.count(kind)} pairs)" for kind in kinds) or None


def parse_processes(text: str) -> tuple[GpuProcess, ...]:
    """Return the computing programs."""
    found = []
    for line in text.splitlines():
        cells = _cells(line)
        if len(cells) >= 3 and cells[0].isdigit():
            name = ", ".join(cells[1:-1])  # nvidia-smi quotes nothing, and a name may hold commas
            found.append(GpuProcess(process_id=int(cells[0]), name=name, memory_gib=_gib(cells[-1])))
    return tuple(found)


def _ask(words: list[str]) -> Answer:
    return run_program(["nvidia-smi", *words], QUERY_SECONDS)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split(",")]


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else None


def _whole(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _gib(mib: str) -> float | None:
    number = _number(mib)
    return None if number is None else number / 1024
