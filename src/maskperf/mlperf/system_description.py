"""The description of a system that goes with a submission: 33 fields, as far as a program can know them.

Source: mlperf-logging, system_desc_checker, ruleset 3.1.0; spelling and units as in published descriptions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskperf.errors import ConfigError, DataError, Problem
from maskperf.files import did_you_mean
from maskperf.machine.facts import MachineFacts
from maskperf.machine.gpus import link_summary
from maskperf.schema import Environment, file_error, read_json

FIELDS = (
    *("submitter", "division", "status", "system_name", "number_of_nodes", "host_processors_per_node"),
    *("host_processor_model_name", "host_processor_core_count", "host_processor_vcpu_count"),
    *("host_processor_frequency", "host_processor_caches", "host_processor_interconnect", "host_memory_capacity"),
    *("host_storage_type", "host_storage_capacity", "host_networking", "host_networking_topology"),
    *("host_memory_configuration", "accelerators_per_node", "accelerator_model_name", "accelerator_host_interconnect"),
    *("accelerator_frequency", "accelerator_on-chip_memories", "accelerator_memory_configuration"),
    *("accelerator_memory_capacity", "accelerator_interconnect", "accelerator_interconnect_topology", "cooling"),
    *("hw_notes", "framework", "other_software_stack", "operating_system", "sw_notes"),
)
COMMAND_FIELDS = {"submitter": "--submitter", "division": "--division"}
FIX = "Give a system description such as systems/NAME.json of a submission."
NOTES = ("hw_notes", "sw_notes")  # may stay empty where there is nothing to say

Description = dict[str, str | dict[str, str]]


def describe_system(facts: MachineFacts) -> Description:
    """Return all 33 fields; empty text for what is not known from this machine."""
    cpu, memory, storage = facts.cpu, facts.memory, facts.storage
    software = {name: version for name, version in facts.software.items() if version}
    torch, own = software.pop("torch", ""), software.pop("maskperf", "")
    if facts.gpu.driver_version:
        software["nvidia-driver"] = facts.gpu.driver_version
    speeds = {"base": cpu.base_mhz, "maximum": cpu.maximum_mhz}
    return {
        **dict.fromkeys(FIELDS, ""),
        "host_processors_per_node": _text(cpu.sockets),
        "host_processor_model_name": cpu.model or "",
        "host_processor_core_count": _text(cpu.physical_cores and cpu.physical_cores // (cpu.sockets or 1)),
        "host_processor_vcpu_count": _text(cpu.logical_cores),
        "host_processor_frequency": ", ".join(f"{name} {mhz:.0f} MHz" for name, mhz in speeds.items() if mhz),
        "host_processor_caches": ", ".join(
            f"{cache.name} {cache.total_kib:g} KiB" + (f" in {cache.instances}" if cache.instances else "")
            for cache in cpu.caches
        ),
        "host_memory_capacity": _text(memory.total_gib, ".0f", " GiB"),
        "host_memory_configuration": ", ".join(
            f"{dimm.count}x {dimm.size_gib:g} GiB"
            + (f" {dimm.kind}" if dimm.kind else "")
            + _text(dimm.megatransfers_per_second, "g", " MT/s", before=" at ")
            for dimm in memory.dimms
        ),
        "host_storage_type": storage.kind or "",
        "host_storage_capacity": _text(storage.size_gib, ".0f", " GiB"),
        "host_networking": _networking(facts),
        **_accelerators(facts),
        "framework": f"PyTorch {torch}".strip() + f", maskperf {own}".rstrip(),
        "other_software_stack": software,
        "operating_system": f"{facts.operating_system}, {facts.kernel}",
    }


def is_machine_of(environment: Environment, facts: MachineFacts) -> bool:
    """Return whether a run's environment.json is of this machine, going by its processor and GPUs."""
    gpus = [gpu.name for gpu in environment.gpus]
    return environment.cpu_model == facts.cpu.model and gpus == [gpu.name for gpu in facts.gpu.gpus]


def describe_recorded(environment: Environment) -> Description:
    """Return all 33 fields as recorded in a run's environment.json; empty text for what is not."""
    gpus = environment.gpus
    versions = {**environment.packages, "python": environment.python, "cuda": environment.cuda}
    stack = {name: version for name, version in versions.items() if version}
    return {
        **dict.fromkeys(FIELDS, ""),
        "host_processor_model_name": environment.cpu_model or "",
        "host_processor_vcpu_count": _text(environment.cpu_logical_cores),
        "host_memory_capacity": _text(environment.memory_gib, ".0f", " GiB"),
        "accelerators_per_node": str(len(gpus)),
        "accelerator_model_name": ", ".join(dict.fromkeys(gpu.name for gpu in gpus)),
        "accelerator_memory_capacity": _text(gpus[0].memory_gib if gpus else None, ".0f", " GiB"),
        "framework": f"PyTorch {stack.pop('torch', '')}".strip() + ", maskperf",
        "other_software_stack": stack,
        "operating_system": environment.operating_system or "",
    }


def unknown_fields(description: Mapping[str, str | dict[str, str]]) -> list[str]:
    """Return the fields that somebody has to fill in; those of accelerators only where there are any."""
    skipped = (*NOTES, "accelerator_") if description.get("accelerators_per_node") == "0" else NOTES
    return [name for name in FIELDS if not name.startswith(skipped) and not description.get(name)]


def read_fills(pairs: Sequence[str]) -> dict[str, str]:
    """Return the fields and values of arguments such as cooling=air.

    Errors: ConfigError for an argument without =, and for a field that does not exist or has an option of its own.
    """
    fills = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not value:
            raise ConfigError(f"--fill {pair}: has no value. Fix: write it as FIELD=VALUE, for example cooling=air.")
        if name in COMMAND_FIELDS:
            raise ConfigError(f"--fill {pair}: {name} has its own option. Fix: give {COMMAND_FIELDS[name]}.")
        if name not in FIELDS:
            hint = did_you_mean(name, FIELDS, cutoff=0.4) or f". There are {', '.join(FIELDS)}."
            raise ConfigError(f"--fill {pair}: there is no field {name!r}{hint}")
        fills[name] = value
    return fills


def read_description(path: Path) -> Description:
    """Return the fields of a system description that have a value; others it may have are left out.

    Errors: DataError for a file that cannot be read, and for every value that is no text (other_software_stack may
    also be an object of texts).
    """
    content = read_json(path, dict[str, Any], fix=FIX)
    if content is None:
        raise file_error(path, "There is no such file.", fix=FIX)
    known = {name: value for name, value in content.items() if name in FIELDS}
    problems = []
    for name, value in known.items():
        texts = value.values() if name == "other_software_stack" and isinstance(value, dict) else [value]
        if not all(isinstance(text, str) for text in texts):
            about = {"file": str(path), "where": "the file", "field": name, "value": repr(value)[:80], "fix": FIX}
            problems.append(Problem(**about, message="The value must be text."))
    if problems:
        raise DataError(problems)
    return {name: value for name, value in known.items() if value}


def _networking(facts: MachineFacts) -> str:
    ports = [port for port in facts.infiniband if port.gigabits_per_second]
    links = [f"{port.link_layer or 'InfiniBand'} {port.gigabits_per_second:g} Gb/s" for port in ports]
    links += [f"Ethernet {card.gigabits_per_second:g} Gb/s" for card in facts.network if card.gigabits_per_second]
    return ", ".join(f"{links.count(link)}x {link}" for link in dict.fromkeys(links))


def _accelerators(facts: MachineFacts) -> dict[str, str]:
    """Return the fields of the accelerators; where nvidia-smi fails although there are cards, all are unknown."""
    group = facts.gpu
    if not group.gpus:
        return {"accelerators_per_node": "" if group.cards_on_bus else "0"}
    first = group.gpus[0]
    pcie = f"PCIe Gen{first.pcie_generation} x{first.pcie_lanes}" if first.pcie_generation and first.pcie_lanes else ""
    return {
        "accelerators_per_node": str(len(group.gpus)),
        "accelerator_model_name": ", ".join(dict.fromkeys(gpu.name for gpu in group.gpus)),
        "accelerator_host_interconnect": pcie,
        "accelerator_frequency": _text(first.maximum_sm_mhz, ".0f", " MHz"),
        "accelerator_memory_capacity": _text(first.memory_gib, ".0f", " GiB"),
        "accelerator_interconnect": link_summary(group.links) or "",
    }


def _text(number: int | float | None, form: str = "", unit: str = "", *, before: str = "") -> str:
    """Return a number with its unit; empty text where it is not known."""
    return f"{before}{number:{form}}{unit}" if number else ""
