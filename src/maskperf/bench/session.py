"""Measures cases: every side in a process of its own, all of them in turn."""

from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from maskperf.bench.child import Child, MissingPackageError, Side, maskperf_side, peer_side, start_child
from maskperf.bench.measure import Spread, Timing, measure_in_turn, ratio_spread, spread_of
from maskperf.bench.names import DEMO
from maskperf.bench.plan import CASES, SEED, Case, Plan, inputs_of_case, inputs_of_side
from maskperf.bench.switches import ALL_OFF, ALL_ON, speed_with, waterfall
from maskperf.config import RunConfig
from maskperf.demo.dataset import write_demo_dataset
from maskperf.techniques import chosen_techniques

SWITCHES = "switches"
DEMO_STEPS = 10  # of one measurement

Say = Callable[[str], None]
Work = tuple[Side, str, dict]  # a side, its task and the inputs


@dataclass(frozen=True, kw_only=True)
class SideResult:
    """The measurements of one side."""

    name: str
    timings: list[Timing]
    seconds: Spread  # of one call, by the clock of the plan
    times_as_long: Spread | None  # as the first side, pair by pair; None for the first side itself
    peak_gib: float | None
    before_gib: float | None  # in use when the work was ready to start
    device_peak_gib: float | None
    facts: dict


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """One measured case; the first side is maskperf's."""

    benchmark: str
    case: str
    sides: list[SideResult]


def measure_case(case: Case, plan: Plan, folder: Path, say: Say) -> CaseResult:
    """Return the measurements of maskperf, and of the peers where a peer's Python was given.

    Errors: ConfigError where a peer lacks a package; an optional peer is left out, with a message to `say`.
    """
    inputs = case.make_inputs(plan, folder) | inputs_of_case(plan, case, plan.config)
    sides = [maskperf_side()]
    if plan.peer_python:
        sides += [peer_side(peer.name, peer.script, plan.peer_python) for peer in case.peers]
    optional = {peer.name for peer in case.peers if peer.is_optional}
    work = [(side, case.task, inputs) for side in sides]
    return CaseResult(benchmark=case.benchmark, case=case.name, sides=_compare(work, plan, optional=optional, say=say))


def measure_switches(plan: Plan, folder: Path, say: Say) -> CaseResult:
    """Return one side for each row of the waterfall, the first with all switches off."""
    case = next(case for case in CASES if case.task == "step")
    inputs, work = case.make_inputs(plan, folder), []
    for row in waterfall(plan.device):
        own = inputs_of_case(plan, case, replace(plan.config, speed=row.speed)) | {"summary": row.summary}
        work.append((maskperf_side(row.name), case.task, inputs | own))
    return CaseResult(benchmark=SWITCHES, case=case.name, sides=_compare(work, plan, say=say))


def measure_demo(plan: Plan, folder: Path, config: RunConfig, say: Say) -> CaseResult:
    """Return two sides, all switches on and off, that train on the same batches, some steps in turn.

    Both sides have `aspect_buckets` as configured, since that switch decides what the batches are.
    """
    data = replace(config.data, root=str(folder / "demo"))
    write_demo_dataset(folder / "demo", *data.generate_images)
    config = replace(config, data=data, seed=SEED)
    batching = ("aspect_buckets",) if chosen_techniques(config.speed).aspect_buckets else ()
    plain = replace(config, speed=speed_with(batching, precision="float32"))
    work = [
        (maskperf_side(name), "demo_chunk", inputs_of_side(plan, side_config) | {"steps": DEMO_STEPS})
        for name, side_config in ((ALL_ON, config), (ALL_OFF, plain))
    ]
    name = f"{DEMO_STEPS} steps of {config.optimizer.batch_size} images"
    return CaseResult(benchmark=DEMO, case=name, sides=_compare(work, plan, say=say))


def _compare(work: list[Work], plan: Plan, *, optional: Collection[str] = (), say: Say) -> list[SideResult]:
    """Return one result for each side; all their processes live until the last measurement."""
    with ExitStack() as stack:
        children: dict[str, Child] = {}
        facts: dict[str, dict] = {}
        for side, task, inputs in work:
            child = stack.enter_context(start_child(side, plan.threads))
            try:
                facts[side.name] = child.ask("prepare", task, inputs) | child.ask("warm_up")
            except MissingPackageError as error:
                if side.name not in optional:
                    raise
                say(f"left out: {error}")
                continue
            children[side.name] = child
        timings = measure_in_turn({name: child.measure for name, child in children.items()}, plan.repeats)
        memories = {name: child.ask("memory") for name, child in children.items()}
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
    """Let every peer load its packages, before minutes are spent on maskperf's side.

    Errors: ConfigError where a peer cannot be started or lacks a package, unless it is optional.
    """
    if plan.peer_python:
        for peer in dict.fromkeys(peer for case in cases for peer in case.peers if not peer.is_optional):
            with start_child(peer_side(peer.name, peer.script, plan.peer_python), plan.threads) as child:
                child.ask("memory")


def measure_ceiling(plan: Plan) -> dict:
    """Return what this machine can do at most with the plan's threads, and its environment."""
    with start_child(maskperf_side(), plan.threads) as child:
        inputs = {"threads": plan.threads, "device": plan.config.system.device, "clock": plan.clock}
        return child.ask("prepare", "ceiling", inputs)


def better_ceiling(first: dict, second: dict) -> dict:
    """Return the better of two measurements of one machine: other programs may have slowed down either."""
    rates = ("flop_per_second", "copy_bytes_per_second")
    return first | {name: max(first[name], second[name]) for name in rates}
