"""Measures cases: every side in a process of its own, all of them in turn."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from maskperf.bench.child import Child, MissingPackageError, Side, our_side, peer_side
from maskperf.bench.measure import Spread, Timing, measure_in_turn, ratio_spread, spread_of
from maskperf.bench.plan import Case, Plan, inputs_of_case

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class SideResult:
    """What one side did."""

    name: str
    timings: list[Timing]
    seconds: Spread  # of one call, by the clock of the plan
    times_as_long: Spread | None  # as the first side, pair by pair; None for the first side itself
    peak_gib: float | None
    before_gib: float | None  # held when the work was ready to start
    device_peak_gib: float | None
    facts: dict

    @property
    def flop_per_second(self) -> float | None:
        flop = self.facts.get("flop")
        return flop / self.seconds.median if flop else None


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """One case, measured; the first side is ours."""

    benchmark: str
    case: str
    sides: list[SideResult]


def measure_case(case: Case, plan: Plan, folder: Path, say: Say) -> CaseResult:
    """Return the measurements of our side, and of the peers where a peer's Python was given.

    Errors: ConfigError where a peer lacks a package, unless the peer is optional: then `say` tells.
    """
    inputs = case.make_inputs(plan, folder) | inputs_of_case(plan, case, plan.config)
    sides = [our_side()]
    if plan.peer_python:
        sides += [peer_side(peer.name, peer.script, plan.peer_python) for peer in case.peers]
    optional = {peer.name for peer in case.peers if peer.is_optional}
    work = [(side, case.task, inputs) for side in sides]
    return CaseResult(benchmark=case.benchmark, case=case.name, sides=compare(work, plan, optional=optional, say=say))


def compare(work: list[tuple[Side, str, dict]], plan: Plan, *, optional: set[str], say: Say) -> list[SideResult]:
    """Return one result for each side; all their processes live until the last measurement."""
    with ExitStack() as stack:
        children: dict[str, Child] = {}
        facts: dict[str, dict] = {}
        for side, task, inputs in work:
            child = stack.enter_context(Child(side, plan.threads))
            try:
                facts[side.name] = child.prepare(task, inputs)
            except MissingPackageError as error:
                if side.name not in optional:
                    raise
                say(f"left out: {error}")
                continue
            facts[side.name] |= child.warm_up()
            children[side.name] = child
        timings = measure_in_turn({name: child.measure for name, child in children.items()}, plan.repeats)
        memories = {name: child.memory() for name, child in children.items()}
    return [side_result(name, timings, clock=plan.clock, facts=facts[name], memory=memories[name]) for name in children]


def side_result(name: str, timings: dict[str, list[Timing]], *, clock: str, facts: dict, memory: dict) -> SideResult:
    """Return the numbers of one side beside those of the first one."""
    seconds = {side: [timing.by(clock) for timing in found] for side, found in timings.items()}
    first = next(iter(seconds))
    return SideResult(
        name=name,
        timings=timings[name],
        seconds=spread_of(seconds[name]),
        times_as_long=None if name == first else ratio_spread(seconds[first], seconds[name]),
        facts=facts,
        **memory,
    )


def check_peers(cases: list[Case], plan: Plan) -> None:
    """Return nothing, once every peer has loaded its packages: before minutes are spent on our side.

    Errors: ConfigError where a peer cannot be started or lacks a package, unless it is optional.
    """
    if plan.peer_python:
        for peer in {peer.script: peer for case in cases for peer in case.peers if not peer.is_optional}.values():
            with Child(peer_side(peer.name, peer.script, plan.peer_python), plan.threads) as child:
                child.memory()


def measure_ceiling(plan: Plan) -> dict:
    """Return what this machine can do at most with the plan's threads, and what it is (bench/ceiling.py)."""
    with Child(our_side(), plan.threads) as child:
        inputs = {"threads": plan.threads, "device": plan.config.system.device, "clock": plan.clock}
        return child.prepare("ceiling", inputs)


def better_ceiling(first: dict, second: dict) -> dict:
    """Return the better of two measurements of the same machine: other programs may have slowed down either."""
    rates = ("flop_per_second", "copy_bytes_per_second")
    return first | {name: max(first[name], second[name]) for name in rates}
