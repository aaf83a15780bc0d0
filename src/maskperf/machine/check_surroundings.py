"""Checks of variables and of the network that several processes or machines would use."""

import os.path

from maskperf.machine.finding import Finding, note, ok, problem
from maskperf.machine.situation import Situation

SLOW_VARIABLES = {
    "NCCL_P2P_DISABLE": "GPUs exchange gradients through main memory instead of directly",
    "NCCL_SHM_DISABLE": "GPUs of one machine exchange gradients through the network",
    "NCCL_IB_DISABLE": "machines exchange gradients without InfiniBand",
    "CUDA_LAUNCH_BLOCKING": "the CPU waits for every GPU operation",
    "TORCH_DISTRIBUTED_DEBUG": "every exchange between processes is checked",
}
HARMLESS_VALUES = ("", "0", "OFF")
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def check_slow_variables(situation: Situation) -> Finding:
    environment = situation.environment
    found = [name for name in SLOW_VARIABLES if environment.get(name, "").upper() not in HARMLESS_VALUES]
    if not found:
        return ok("NCCL and CUDA variables", "none that slows a run", "exchange between processes is not held back")
    value = ", ".join(f"{name}={environment[name]}" for name in found)
    meaning = "; ".join(SLOW_VARIABLES[name] for name in found)
    return note(
        "NCCL and CUDA variables", value, meaning, f"Unset {' and '.join(found)}, unless it was set on purpose."
    )


def check_rank_variables(situation: Situation) -> Finding:
    found = {name: situation.environment[name] for name in RANK_VARIABLES if name in situation.environment}
    if not found:
        return ok("torchrun variables", "none", "a run here is one process, or starts its own")
    value = ", ".join(f"{name}={text}" for name, text in found.items())
    words = [found[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name in found]
    fix = f"Outside torchrun: unset {' '.join(found)}."
    if not all(word.isdigit() for word in words):
        return problem("torchrun variables", value, "a run reads them as whole numbers and would stop", fix)
    world = int(found.get("WORLD_SIZE", "1"))
    missing = [name for name in RANK_VARIABLES if name not in found]
    if world > 1 and missing:
        meaning = f"a run would wait for {world - 1} other process(es), and cannot: {', '.join(missing)} missing"
        return problem("torchrun variables", value, meaning, fix)
    if world > 1:
        meaning = f"a run here takes itself for one of {world} processes, and waits for the others"
        return note("torchrun variables", value, meaning, fix)
    return ok("torchrun variables", value, "a single process all the same")


def check_interfaces(situation: Situation) -> Finding | None:
    """Return whether the network card that NCCL or Gloo is told to use exists; None where none is named."""
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        named = situation.environment.get(variable, "")
        if not named or named[0] in "^=":
            continue
        prefixes = [prefix for prefix in named.split(",") if prefix]
        cards = [card.name for card in situation.machine.network] + ["lo"]
        if not any(os.path.commonprefix([card, prefix]) == prefix for card in cards for prefix in prefixes):
            value = f"{variable}={named}"
            meaning = f"no network card has such a name; there are {', '.join(cards)}"
            return problem("network card", value, meaning, f"Unset {variable}, or name one of them.")
    return None


def check_network(situation: Situation) -> Finding:
    machine = situation.machine
    ports = [port for port in machine.infiniband if port.state == "ACTIVE"]
    cards = [card for card in machine.network if card.state != "down"]
    words = [f"{port.name}: {port.rate}" for port in ports]
    for card in cards:
        speed = "speed unknown" if card.gigabits_per_second is None else f"{card.gigabits_per_second:g} Gbit/s"
        words.append(f"{card.name}: {speed}")
    value = ", ".join(words) or "none in use"
    if machine.infiniband and not ports:
        meaning = (
            f"{len(machine.infiniband)} InfiniBand port(s), none of them active; matters for several machines only"
        )
        return note("network", value, meaning, "Look at the cables and the switch: ibstat")
    return ok("network", value, "matters for several machines only: each step exchanges 168 MiB of gradients")
