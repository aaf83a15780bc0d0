"""The description of a system that goes with a submission: 33 fields, as far as a program can know them.

Source: mlperf-logging, system_desc_checker, ruleset 3.1.0; spelling and units as in published descriptions.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from maskperf.errors import ConfigError, DataError, Problem
from maskperf.machine.facts import CpuFacts, GpuGroup, MachineFacts
from maskperf.machine.gpus import link_summary
from maskperf.schema import Environment

ACCELERATOR_FIELDS = (
    *("accelerator_model_name", "accelerator_host_interconnect", "accelerator_frequency"),
    *("accelerator_on-chip_memories", "accelerator_memory_configuration", "accelerator_memory_capacity"),
    *("accelerator_interconnect", "accelerator_interconnect_topology"),
)
FIELDS = (
    *("submitter", "division", "status", "system_name", "number_of_nodes", "host_processors_per_node"),
    *("host_processor_model_name", "host_processor_core_count", "host_processor_vcpu_count"),
    *("host_processor_frequency", "host_processor_caches", "host_processor_interconnect", "host_memory_capacity"),
    *("host_storage_type", "host_storage_capacity", "host_networking", "host_networking_topology"),
    *("host_memory_configuration", "accelerators_per_node", *ACCELERATOR_FIELDS, "cooling", "hw_notes"),
    *("framework", "other_software_stack", "operating_system", "sw_notes"),
)
COMMAND_FIELDS = {"submitter": "--submitter", "division": "--division"}
NOTES = ("hw_notes", "sw_notes")  # may stay empty where there is nothing to say

Description = dict[str, str | dict[str, str]]


def describe_system(facts: MachineFacts) -> Description:
    """Return all 33 fields; empty text for what is not known from this machine."""
    description: Description = dict.fromkeys(FIELDS, "")
    return {**description, **_host(facts), **_accelerators(facts.gpu), **_software(facts)}


def is_machine_of(environment: Environment, facts: MachineFacts) -> bool:
    """Return whether a run's environment.json is of this machine, as far as its processor and GPUs tell."""
    gpus = [gpu.name for gpu in environment.gpus]
    return environment.cpu_model == facts.cpu.model and gpus == [gpu.name for gpu in facts.gpu.gpus]


def describe_recorded(environment: Environment) -> Description:
    """Return all 33 fields, as far as a run's environment.json tells them; empty text for the others."""
    gpus, memory = environment.gpus, environment.memory_gib
    stack = {**environment.packages, "python": environment.python, "cuda": environment.cuda}
    stack = {name: version for name, version in stack.items() if version}
    names = ", ".join(dict.fromkeys(gpu.name for gpu in gpus))
    description: Description = dict.fromkeys(FIELDS, "")
    return {
        **description,
        "host_processor_model_name": environment.cpu_model or "",
        "host_processor_vcpu_count": _text(environment.cpu_logical_cores),
        "host_memory_capacity": f"{memory:.0f} GiB" if memory else "",
        "accelerators_per_node": str(len(gpus)),
        "accelerator_model_name": names,
        "accelerator_memory_capacity": f"{gpus[0].memory_gib:.0f} GiB" if gpus and gpus[0].memory_gib else "",
        "framework": f"PyTorch {stack.pop('torch', '')}".strip() + ", maskperf",
        "other_software_stack": stack,
        "operating_system": environment.operating_system or "",
    }


def unknown_fields(description: Mapping[str, str | dict[str, str]]) -> list[str]:
    """Return the fields that somebody has to fill in; those of accelerators only where there are any."""
    skipped = set(NOTES) | (set(ACCELERATOR_FIELDS) if description.get("accelerators_per_node") == "0" else set())
    return [name for name in FIELDS if name not in skipped and not description.get(name)]


def read_fills(pairs: Sequence[str]) -> dict[str, str]:
    """Return the fields and values of words such as cooling=air.

    Errors: ConfigError for a word without =, and for a field that does not exist or has an option of its own.
    """
    fills = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not value:
            raise ConfigError(f"--fill {pair}: has no value. Fix: write it as FIELD=VALUE, for example cooling=air.")
        if name in COMMAND_FIELDS:
            raise ConfigError(f"--fill {pair}: {name} has its own option. Fix: give {COMMAND_FIELDS[name]}.")
        if name not in FIELDS:
            nearest = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.4)
            hint = f"Did you mean {nearest[0]}?" if nearest else f"There are {', '.join(FIELDS)}."
            raise ConfigError(f"--fill {pair}: there is no field {name!r}. {hint}")
        fills[name] = value
    return fills


def read_description(path: Path) -> Description:
    """Return the fields of a system description that have a value; others it may have are left out.

    Errors: DataError for a file that cannot be read, and for every value that is no text (other_software_stack may
    also be an object of texts).
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _problem(path, "content", "(a file)", f"It cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise _problem(path, "content", "(JSON)", f"It is no JSON ({error}).") from error
    if not isinstance(content, dict):
        raise _problem(path, "content", str(content)[:40], "It must be one JSON object.")
    wrong = [
        _problem(path, name, repr(value)[:80], "The value must be text.").problems[0]
        for name, value in content.items()
        if name in FIELDS and not isinstance(value, str) and not (name == "other_software_stack" and _is_texts(value))
    ]
    if wrong:
        raise DataError(wrong)
    return {name: value for name, value in content.items() if name in FIELDS and value}


def _is_texts(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(entry, str) for entry in value.values())


def _problem(path: Path, field: str, value: str, problem: str) -> DataError:
    fix = "Give a system description such as systems/NAME.json of a submission."
    return DataError([Problem(file=str(path), where="the file", field=field, value=value, message=problem, fix=fix)])


def _host(facts: MachineFacts) -> dict[str, str]:
    cpu, memory, storage = facts.cpu, facts.memory, facts.storage
    dimms = [
        f"{dimm.count}x {dimm.size_gib:g} GiB"
        + (f" {dimm.kind}" if dimm.kind else "")
        + (f" at {dimm.megatransfers_per_second:g} MT/s" if dimm.megatransfers_per_second else "")
        for dimm in memory.dimms
    ]
    return {
        "host_processors_per_node": _text(cpu.sockets),
        "host_processor_model_name": cpu.model or "",
        "host_processor_core_count": _text(cpu.physical_cores and cpu.physical_cores // (cpu.sockets or 1)),
        "host_processor_vcpu_count": _text(cpu.logical_cores),
        "host_processor_frequency": _frequency(cpu),
        "host_processor_caches": ", ".join(
            f"{cache.name} {cache.total_kib:g} KiB" + (f" in {cache.instances}" if cache.instances else "")
            for cache in cpu.caches
        ),
        "host_memory_capacity": f"{memory.total_gib:.0f} GiB" if memory.total_gib else "",
        "host_memory_configuration": ", ".join(dimms),
        "host_storage_type": storage.kind or "",
        "host_storage_capacity": f"{storage.size_gib:.0f} GiB" if storage.size_gib else "",
        "host_networking": _networking(facts),
    }


def _frequency(cpu: CpuFacts) -> str:
    known = {"base": cpu.base_mhz, "maximum": cpu.maximum_mhz}
    return ", ".join(f"{name} {mhz:.0f} MHz" for name, mhz in known.items() if mhz)


def _networking(facts: MachineFacts) -> str:
    ports = [port for port in facts.infiniband if port.gigabits_per_second]
    words = [f"{port.link_layer or 'InfiniBand'} {port.gigabits_per_second:g} Gb/s" for port in ports]
    words += [f"Ethernet {card.gigabits_per_second:g} Gb/s" for card in facts.network if card.gigabits_per_second]
    return ", ".join(f"{words.count(word)}x {word}" for word in dict.fromkeys(words))


def _accelerators(group: GpuGroup) -> dict[str, str]:
    """Return the fields of the accelerators; where nvidia-smi fails although there are cards, all are unknown."""
    if not group.gpus:
        return {"accelerators_per_node": "" if group.cards_on_bus else "0"}
    names = [gpu.name for gpu in group.gpus]
    first = group.gpus[0]
    pcie = f"PCIe Gen{first.pcie_generation} x{first.pcie_lanes}" if first.pcie_generation and first.pcie_lanes else ""
    return {
        "accelerators_per_node": str(len(names)),
        "accelerator_model_name": ", ".join(dict.fromkeys(names)),
        "accelerator_host_interconnect": pcie,
        "accelerator_frequency": f"{first.maximum_sm_mhz:.0f} MHz" if first.maximum_sm_mhz else "",
        "accelerator_memory_capacity": f"{first.memory_gib:.0f} GiB" if first.memory_gib else "",
        "accelerator_interconnect": link_summary(group.links) or "",
    }


def _software(facts: MachineFacts) -> Description:
    versions = {name: version for name, version in facts.software.items() if version}
    torch = versions.pop("torch", None)
    own = versions.pop("maskperf", None)
    if facts.gpu.driver_version:
        versions["nvidia-driver"] = facts.gpu.driver_version
    framework = f"PyTorch {torch}" if torch else "PyTorch"
    return {
        "framework": f"{framework}, maskperf {own}" if own else f"{framework}, maskperf",
        "other_software_stack": versions,
        "operating_system": f"{facts.operating_system}, {facts.kernel}",
    }


def _text(number: int | None) -> str:
    return str(number) if number else ""
