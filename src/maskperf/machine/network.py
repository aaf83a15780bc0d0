"""Network cards and InfiniBand ports, from /sys."""

from pathlib import Path

from maskperf.machine.facts import InfinibandFacts, NetworkFacts
from maskperf.machine.sources import first_number, read_number, read_text

NETWORK_FOLDER = Path("/sys/class/net")
INFINIBAND_FOLDER = Path("/sys/class/infiniband")


def describe_network(folder: Path = NETWORK_FOLDER) -> tuple[NetworkFacts, ...]:
    """Return the cards by name; interfaces without a device (loop-back, bridges) are left out."""
    found = []
    for entry in sorted(folder.glob("*")):
        if not (entry / "device").exists():
            continue
        megabits = read_number(entry / "speed")  # -1, or not readable, where nobody knows
        driver = entry / "device" / "driver"
        found.append(
            NetworkFacts(
                name=entry.name,
                state=read_text(entry / "operstate"),
                gigabits_per_second=megabits / 1000 if megabits is not None and megabits > 0 else None,
                driver=driver.resolve().name if driver.exists() else None,
            )
        )
    return tuple(found)


def describe_infiniband(folder: Path = INFINIBAND_FOLDER) -> tuple[InfinibandFacts, ...]:
    """Return the ports by name."""
    found = []
    for port in sorted(folder.glob("*/ports/*")):
        state, rate = read_text(port / "state"), read_text(port / "rate")
        found.append(
            InfinibandFacts(
                name=f"{port.parts[-3]} port {port.name}",
                state=state.partition(": ")[2] or state if state else None,
                rate=rate,
                link_layer=read_text(port / "link_layer"),
                gigabits_per_second=first_number(rate),
            )
        )
    return tuple(found)
