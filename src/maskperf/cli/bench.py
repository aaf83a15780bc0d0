"""`maskperf bench [NAMES]`: measures speed and memory of the parts of a run, alone or beside a peer."""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskperf.bench.names import DEMO, GPU, QUICK, STARTUP, SUMMARIES
from maskperf.cli.arguments import CommandParser, make_folder, name_from, padded_hw, require_new_file, value_of
from maskperf.config import Count, RunConfig
from maskperf.errors import EXIT_DONE, ConfigError, StorageError
from maskperf.files import pretty_json, write_text
from maskperf.overrides import validate, with_overrides
from maskperf.recipes import RECIPES

if TYPE_CHECKING:
    from maskperf.bench.plan import Plan

USAGE = "[NAMES] [--switches] [--peer] [--threads N] [--clock wall|cpu] [--size HxW] [--set key=value ...]"
DEFAULT_CACHE = Path(tempfile.gettempdir()) / f"maskperf-bench-cache-{os.getuid()}"
_NAMES = "\n".join(f"  {name:13s} {summary}" for name, summary in SUMMARIES.items())
EXAMPLES = f"""names:
{_NAMES}

examples, to copy and paste:
  # {", ".join(QUICK)}: some minutes
  maskperf bench
  # operators beside torchvision, which is in a Python of its own
  maskperf bench roi_align nms mask_targets --peer --peer-python /opt/peer/bin/python
  # a training step of two images of 800 x 1344 on one thread, in processor time: a busy machine disturbs less
  maskperf bench step --peer --threads 1 --clock cpu --repeats 3 --json step.json
  # what each switch of the section `speed` brings
  maskperf bench --switches --size 800x1344 --images 1 --threads 1
  # a run of the small recipe with all switches on and off, in turn
  maskperf bench demo --repeats 7
  # kernels, convolutions, steps and their switches on a GPU
  maskperf bench gpu --json gpu.json
  # threads beside a busy program: the same with --threads 1, and with neither
  maskperf bench demo --threads 2 --busy 1
  # process start to the first training step of a recipe
  maskperf bench startup --recipe coco --set system.device=cpu

Every side is a process of its own; they are measured in turn, and ratios are those of neighbouring
measurements. Weights and inputs are random with a fixed seed. Large synthetic files are cached in
{DEFAULT_CACHE}."""
PEER_VARIABLE = "MASKPERF_PEER_PYTHON"
LONG_TASKS = ("step", "infer")
REPEATS = 5
OPTIONS_OF_GPU = ("names", "peer", "peer_python", "repeats", "threads", "json", "overwrite", "command")


def add_options(parser: CommandParser) -> None:
    add, count = parser.add_argument, value_of(Count)
    add("names", metavar="NAMES", type=name_from(SUMMARIES), nargs="*", default=[], help="what to measure; see below")
    add("--peer", action="store_true", help="measure the same by another implementation, in turn")
    parser.add_path("--peer-python", "PYTHON", f"the Python that has the peer's packages (or {PEER_VARIABLE})")
    add("--switches", action="store_true", help="a training step with one switch of `speed` after another")
    add("--repeats", metavar="N", type=count, help="measurements of each side (default: 5; gpu: 10)")
    add("--busy", metavar="N", type=count, default=0, help="with N programs beside it that keep a core busy each")
    add("--threads", metavar="N", type=count, help="threads of each process (default: as system.threads=0)")
    add("--clock", choices=("wall", "cpu"), default="wall", help="what counts: wall (default), or processor time")
    add("--size", metavar="HxW", type=padded_hw, default=(800, 1344), help="padded images (default: 800x1344)")
    add("--images", metavar="N", type=count, default=0, help="default: each benchmark has a number of its own")
    add("--positives", metavar="N", type=count, default=64, help="objects an image: positive RoIs at least")
    add("--recipe", metavar="NAME", type=name_from(RECIPES), help="the recipe of startup (default: demo)")
    add("--set", metavar="key=value", dest="pairs", action="append", default=[], help="change the configuration")
    parser.add_path("--cache", "FOLDER", "where large synthetic files stay", default=DEFAULT_CACHE)
    parser.add_path("--json", "FILE", "write every measurement there")
    add("--overwrite", action="store_true", help="write over a file that exists")


def bench(options: argparse.Namespace) -> int:
    """Measure and show everything that is named; what cannot be measured is an error."""
    if options.json:
        require_new_file(options.json, overwrite=options.overwrite)
    with tempfile.TemporaryDirectory(prefix="maskperf-bench-") as folder, busy_neighbours(options.busy):
        measure = _bench_gpu if GPU in options.names else _bench
        found = measure(options, Path(folder))
    if options.json:
        write_text(options.json, pretty_json({"command": options.command, **found}))
        print(f"written: {options.json}")
    return EXIT_DONE


@contextmanager
def busy_neighbours(count: int) -> Iterator[None]:
    """Let `count` programs keep a core busy each while the block goes on, and this process lives."""
    program_text = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"
    programs = [subprocess.Popen([sys.executable, "-c", program_text, str(os.getpid())]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def _bench(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure and show benchmarks and switches, and return the entries of the JSON file."""
    from maskperf.bench import session, view
    from maskperf.bench.plan import CASES, refuse_other_network
    from maskperf.bench.startup import measure_startup
    from maskperf.run.console import make_console

    if options.recipe and STARTUP not in options.names:
        raise ConfigError(f"--recipe belongs to {STARTUP}. Fix: maskperf bench {STARTUP} --recipe {options.recipe}")
    names = tuple(options.names) or (() if options.switches else QUICK)
    plan = _plan(options, names)
    if plan.peer_python and set(names) & set(LONG_TASKS):
        refuse_other_network(plan.config.model)
    cases = [case for case in CASES if case.benchmark in names]
    session.check_peers(cases, plan)
    ceiling = session.measure_ceiling(plan)
    plan = replace(plan, device=ceiling["device"])
    results = []
    for case in cases:
        _say(f"measuring {case.benchmark}, {case.name}")
        results.append(session.measure_case(case, plan, folder, _say))
    if STARTUP in names:
        _say(f"measuring {STARTUP}")
        results += measure_startup(plan, folder, recipe=options.recipe or DEMO, pairs=options.pairs)
    if DEMO in names:
        _say(f"measuring {DEMO}")
        results.append(session.measure_demo(plan, folder, _config_of(DEMO, options.pairs), _say))
    if options.switches:
        _say("measuring the switches")
        results.append(session.measure_switches(plan, folder, _say))
    ceiling = session.better_ceiling(ceiling, session.measure_ceiling(plan))
    found = view.everything(results, ceiling, plan)
    view.show(make_console(), found)
    return found


def _bench_gpu(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure and show everything that wants a GPU; its sizes are its own, so other names and options are refused."""
    defaults = vars(CommandParser("bench").read([GPU]))
    extra = sorted(name for name, value in vars(options).items() if value != defaults[name])
    foreign = [f"--{'set' if name == 'pairs' else name}" for name in extra if name not in OPTIONS_OF_GPU]
    if foreign or options.names != [GPU]:
        what = ", ".join(foreign) or "other names"
        raise ConfigError(f"{GPU} cannot be measured with {what}. Fix: maskperf bench {GPU} [--peer] [--json FILE]")

    from maskperf.bench.gpu import measure
    from maskperf.bench.plan import GpuPlan
    from maskperf.bench.view import show_gpu
    from maskperf.run.console import make_console

    chosen = {name: value for name in ("repeats", "threads") if (value := getattr(options, name))}
    found = measure(GpuPlan(peer_python=_peer_python(options), **chosen), folder, _say)
    show_gpu(make_console(), found)
    return found


def _plan(options: argparse.Namespace, names: tuple[str, ...]) -> "Plan":
    from maskperf.bench.plan import Plan
    from maskperf.machine.threads import threads_of_process

    recipes = {STARTUP: options.recipe or DEMO, DEMO: DEMO}
    only = names[0] if len(names) == 1 and not options.switches else ""
    config = _config_of(recipes.get(only, "coco"), options.pairs)
    if config.model.num_classes < 2:
        raise ConfigError("model.num_classes=0: there is no data set to follow here. Fix: give a number of 2 or more")
    make_folder(options.cache, option="--cache", mode=0o700)
    if options.cache.stat().st_uid != os.getuid():  # its owner could change what is measured
        raise StorageError(f"{options.cache}: belongs to another user. Fix: choose another folder with --cache.")
    return Plan(
        size_hw=options.size,
        images=options.images,
        objects=options.positives,
        repeats=options.repeats or REPEATS,
        threads=threads_of_process(options.threads or 0).count,
        clock=options.clock,
        config=config,
        peer_python=_peer_python(options),
        cache=options.cache,
    )


def _config_of(recipe: str, pairs: list[str]) -> RunConfig:
    """Return a recipe with the changes that were asked for, its backbone random."""
    base = RECIPES[recipe]()
    return validate(with_overrides(replace(base, model=replace(base.model, backbone_weights="")), pairs))


def _peer_python(options: argparse.Namespace) -> str:
    """Return the Python of the peer; empty where no peer is wanted."""
    if options.peer:
        return str(options.peer_python or os.environ.get(PEER_VARIABLE) or sys.executable)
    if options.peer_python:
        raise ConfigError("--peer-python says where a peer is. Fix: add --peer to measure it.")
    return ""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
