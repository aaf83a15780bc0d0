"""NVIDIA GPUs as nvidia-smi reports them.

Source: `nvidia-smi --help-query-gpu`, `--help-query-compute-apps` and `nvidia-smi topo -m`. A value that a GPU does
not have reads "[N/A]", "N/A" or "[Not Supported]".
"""

import re
from collections import Counter
from pathlib import Path

from maskperf.machine.facts import GpuFacts, GpuGroup, GpuProcess
from maskperf.machine.sources import Answer, first_number, read_text, run_program, whole_number

BUS_FOLDER = Path("/sys/bus/pci/devices")
NVIDIA_VENDOR = "0x10de"
QUERY_SECONDS = 10.0  # a driver that has to be loaded first is slow
FIELDS = (
    *("index", "name", "memory.total", "memory.used", "power.limit", "clocks.max.sm", "clocks.max.memory"),
    *("pcie.link.gen.max", "pcie.link.width.max", "mig.mode.current", "driver_version"),
)
PROCESS_QUERY = "--query-compute-apps=pid,process_name,used_memory"
FORMAT = "--format=csv,noheader,nounits"


def describe_gpus() -> GpuGroup:
    """Return the GPUs, their driver and their links; without GPUs where nvidia-smi is missing or fails."""
    answer = _nvidia_smi(f"--query-gpu={','.join(FIELDS)}", FORMAT)
    rows = query_rows(answer.output or "")
    cards = count_cards(BUS_FOLDER)
    if not rows:
        return GpuGroup(cards_on_bus=cards, complaint=answer.complaint)
    driver = rows[0]["driver_version"]
    cuda = re.search(r"CUDA (?:UMD )?Version\s*:\s*([0-9]+\.[0-9]+)", _nvidia_smi().output or "")
    return GpuGroup(
        cards_on_bus=cards,
        gpus=tuple(map(gpu_of_row, rows)),
        driver_version=driver if re.fullmatch(r"[0-9]+(\.[0-9]+)+", driver) else None,
        driver_cuda=cuda[1] if cuda else None,
        links=parse_links(_nvidia_smi("topo", "-m").output or "", len(rows)) if len(rows) > 1 else (),
        processes=parse_processes(_nvidia_smi(PROCESS_QUERY, FORMAT).output or ""),
    )


def count_cards(bus_folder: Path) -> int:
    """Return the number of NVIDIA cards of the display and 3D classes (0x03....) on the PCI bus."""
    return sum(
        read_text(device / "vendor") == NVIDIA_VENDOR and (read_text(device / "class") or "").startswith("0x03")
        for device in bus_folder.glob("*")
    )


def query_rows(text: str) -> list[dict[str, str]]:
    """Return the values of `FIELDS` for each GPU; other lines, such as error messages, are left out."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    return [dict(zip(FIELDS, cells, strict=True)) for cells in rows if len(cells) == len(FIELDS) and cells[0].isdigit()]


def gpu_of_row(row: dict[str, str]) -> GpuFacts:
    return GpuFacts(
        index=int(row["index"]),
        name=row["name"],
        memory_gib=_gib(row["memory.total"]),
        memory_used_gib=_gib(row["memory.used"]),
        power_limit_watts=first_number(row["power.limit"]),
        maximum_sm_mhz=first_number(row["clocks.max.sm"]),
        maximum_memory_mhz=first_number(row["clocks.max.memory"]),
        pcie_generation=whole_number(row["pcie.link.gen.max"]),
        pcie_lanes=whole_number(row["pcie.link.width.max"]),
        is_split={"Enabled": True, "Disabled": False}.get(row["mig.mode.current"]),
    )


def parse_links(text: str, count: int) -> tuple[tuple[str, ...], ...]:
    """Return the square of link names among the GPUs: the first `count` columns of each GPU's row."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)  # the heading is underlined
    rows = [tuple(cells) for _, *cells in map(str.split, re.findall(r"^GPU\d+\s.*", plain, re.MULTILINE))]
    links = tuple(row[:count] for row in rows if len(row) >= count and row[0] != "GPU1")  # without a heading
    return links if len(links) == count else ()


def link_summary(links: tuple[tuple[str, ...], ...]) -> str | None:
    """Return the kinds of link between two GPUs with the number of pairs, such as "NV18 (28 pairs)"."""
    kinds = sorted(Counter(link_pairs(links)).items(), key=lambda entry: (-entry[1], entry[0]))
    return ", ".join(f"{kind} ({pairs} pairs)" for kind, pairs in kinds) or None


def link_pairs(links: tuple[tuple[str, ...], ...]) -> list[str]:
    """Return the kind of link of every pair of GPUs."""
    return [links[row][column] for row in range(len(links)) for column in range(row)]


def parse_processes(text: str) -> tuple[GpuProcess, ...]:
    """Return the processes that compute; nvidia-smi quotes nothing, and a name may hold commas."""
    rows = re.findall(r"^\s*(\d+), (.*), ([^,]*)$", text, re.MULTILINE)
    return tuple(GpuProcess(process_id=int(number), name=name, memory_gib=_gib(size)) for number, name, size in rows)


def _nvidia_smi(*arguments: str) -> Answer:
    return run_program(["nvidia-smi", *arguments], QUERY_SECONDS)


def _gib(mib: str) -> float | None:
    number = first_number(mib)
    return None if number is None else number / 1024
