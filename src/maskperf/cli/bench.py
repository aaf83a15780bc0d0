"""`maskperf bench [NAMES]`: measures speed and memory of the parts of a run, alone or beside a peer."""

import argparse
import difflib
import json
import os
import re
import sys
import tempfile
from pathlib import Path

from maskperf.bench.names import DEMO, GPU, QUICK, STARTUP, SUMMARIES
from maskperf.cli.words import WordParser, asks_for_help, path_word, read_words, require_new_file
from maskperf.errors import EXIT_DONE, ConfigError, StorageError

USAGE = (
    "maskperf bench [NAMES] [--switches] [--peer] [--threads N] [--clock wall|cpu] [--size HxW] [--set key=value ...]"
)
EXAMPLES = """names:
{names}

examples, to copy and paste:
  # {quick}: some minutes
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
  # process start to the first training step of a recipe
  maskperf bench startup --recipe coco --set system.device=cpu

Every side is a process of its own; they are measured in turn, and ratios are those of neighbouring measurements.
Weights and inputs are random with a fixed seed. Large synthetic files are cached in {cache}."""
PEER_VARIABLE = "MASKPERF_PEER_PYTHON"
SIZE = re.compile(r"([0-9]+)x([0-9]+)")
SIZE_DIVISOR = 32
LONG_TASKS = ("step", "infer")
REPEATS = 5
OPTIONS_OF_GPU = ("names", "peer", "peer_python", "repeats", "threads", "json", "overwrite")


def bench(arguments: list[str]) -> int:
    """Return the exit code 0; what cannot be measured is an error."""
    parser = _make_parser()
    if asks_for_help(arguments):
        print(parser.format_help(), end="")
        return EXIT_DONE
    choices = read_words(parser, arguments)
    if choices.json:
        require_new_file(Path(choices.json), choices.overwrite, fix="Choose another file, or add --overwrite.")
    with tempfile.TemporaryDirectory(prefix="maskperf-bench-") as folder:
        measure = _bench_gpu if GPU in choices.names else _bench
        measure(choices, Path(folder), arguments)
    return EXIT_DONE


def _make_parser() -> WordParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = WordParser(
        "maskperf bench",
        usage=USAGE,
        epilog=_examples(),
        formatter_class=formatter,
        add_help=False,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("names", metavar="NAMES", nargs="*", default=[], help="what to measure; see below")
    add("--peer", action="store_true", help="measure the same by another implementation, in turn")
    add(
        "--peer-python",
        metavar="PYTHON",
        type=path_word,
        help=f"the Python that has the peer's packages (or {PEER_VARIABLE})",
    )
    add("--switches", action="store_true", help="a training step with one switch of `speed` after another")
    add("--repeats", metavar="N", type=_count, help="measurements of each side (default: 5; gpu: 10)")
    add("--threads", metavar="N", type=_count, help="threads of each process (default: as system.threads=0)")
    add("--clock", choices=("wall", "cpu"), default="wall", help="what counts: wall (default), or processor time")
    add("--size", metavar="HxW", type=_size, default=(800, 1344), help="padded pictures (default: 800x1344)")
    add("--images", metavar="N", type=_count, default=0, help="default: each benchmark has a number of its own")
    add("--positives", metavar="N", type=_count, default=64, help="objects an image: positive RoIs at least")
    add("--recipe", metavar="NAME", help="the recipe of startup (default: demo)")
    add("--set", metavar="key=value", dest="pairs", action="append", default=[], help="change the configuration")
    add("--cache", metavar="FOLDER", type=path_word, help="where large synthetic files stay")
    add("--json", metavar="FILE", type=path_word, help="write every measurement there")
    add("--overwrite", action="store_true", help="write over a file that exists")
    return parser


def _examples() -> str:
    names = "\n".join(f"  {name:13s} {summary}" for name, summary in SUMMARIES.items())
    return EXAMPLES.format(names=names, quick=", ".join(QUICK), cache=default_cache())


def default_cache() -> Path:
    """Return a folder of this user under the system's folder for temporary files."""
    return Path(tempfile.gettempdir()) / f"maskperf-bench-cache-{os.getuid()}"


def _cache_folder(choices: argparse.Namespace) -> Path:
    """Return the folder of large synthetic files, made if need be.

    Errors: StorageError where it cannot be made, or belongs to somebody else, who could change what is measured.
    """
    folder = Path(choices.cache) if choices.cache else default_cache()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        text = f"{folder}: the folder cannot be made ({error.strerror}). Fix: choose another one with --cache."
        raise StorageError(text) from error
    if folder.stat().st_uid != os.getuid():
        raise StorageError(f"{folder}: belongs to another user. Fix: choose another folder with --cache.")
    return folder


def _count(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number of 1 or more")
    return int(word)


def _size(word: str) -> tuple[int, int]:
    found = SIZE.fullmatch(word)
    sides = tuple(int(side) for side in found.groups()) if found else (0, 0)
    if not min(sides) or any(side % SIZE_DIVISOR for side in sides):
        raise argparse.ArgumentTypeError(f"{word!r} is not HEIGHTxWIDTH in multiples of {SIZE_DIVISOR}, as 800x1344 is")
    return sides


def _bench(choices: argparse.Namespace, folder: Path, arguments: list[str]) -> None:
    """Return nothing, after everything was measured, shown and written."""
    from dataclasses import replace

    from maskperf.bench.plan import CASES, refuse_other_network
    from maskperf.bench.session import (
        better_ceiling,
        check_peers,
        measure_case,
        measure_ceiling,
        measure_demo,
        measure_switches,
    )
    from maskperf.bench.startup import measure_startup
    from maskperf.bench.view import everything, show_ceiling, show_results, show_switches

    names = _names(choices)
    plan = _plan(choices, names)
    if plan.peer_python and set(names) & set(LONG_TASKS):
        refuse_other_network(plan.config.model)
    cases = [case for case in CASES if case.benchmark in names]
    check_peers(cases, plan)
    console = _console()
    ceiling = measure_ceiling(plan)
    plan = replace(plan, device=ceiling["device"])
    results, switches = [], None
    for case in cases:
        _say(f"measuring {case.benchmark}, {case.name}")
        results.append(measure_case(case, plan, folder, _say))
    if STARTUP in names:
        _say(f"measuring {STARTUP}")
        results += measure_startup(plan, folder, recipe=choices.recipe or "demo", pairs=choices.pairs)
    if DEMO in names:
        _say(f"measuring {DEMO}")
        results.append(measure_demo(plan, folder, _config_of(DEMO, choices.pairs), _say))
    if choices.switches:
        _say("measuring the switches")
        switches = measure_switches(plan, folder, _say)
    ceiling = better_ceiling(ceiling, measure_ceiling(plan))
    show_ceiling(console, ceiling, plan.threads)
    if results:
        show_results(console, results, ceiling, plan.clock)
    if switches:
        show_switches(console, switches)
    if choices.json:
        measured = results + ([switches] if switches else [])
        entries = {"command": ["maskperf", "bench", *arguments], **everything(measured, ceiling, plan)}
        _write_json(Path(choices.json), entries)


def _bench_gpu(choices: argparse.Namespace, folder: Path, arguments: list[str]) -> None:
    """Return nothing, after everything that wants a GPU was measured, shown and written.

    Errors: ConfigError beside other names and options, whose sizes are not those of this measurement.
    """
    defaults = vars(_make_parser().parse_args([GPU]))
    extra = sorted(name for name, value in vars(choices).items() if value != defaults[name])
    foreign = [f"--{'set' if name == 'pairs' else name}" for name in extra if name not in OPTIONS_OF_GPU]
    if foreign or choices.names != [GPU]:
        what = ", ".join(foreign) or "other names"
        raise ConfigError(f"{GPU} cannot be measured with {what}. Fix: maskperf bench {GPU} [--peer] [--json FILE]")

    from maskperf.bench.gpu import measure
    from maskperf.bench.plan import GpuPlan
    from maskperf.bench.view import show_gpu

    chosen = {name: value for name in ("repeats", "threads") if (value := getattr(choices, name))}
    found = measure(GpuPlan(peer_python=_peer_python(choices), **chosen), folder, _say)
    show_gpu(_console(), found)
    if choices.json:
        _write_json(Path(choices.json), {"command": ["maskperf", "bench", *arguments], **found})


def _console():
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False, width=None if sys.stdout.isatty() else 200)


def _names(choices: argparse.Namespace) -> tuple[str, ...]:
    """Return what is to be measured; the quick selection where nothing was named."""
    for name in choices.names:
        if name not in SUMMARIES:
            nearest = difflib.get_close_matches(name, SUMMARIES, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(SUMMARIES)}"
            raise ConfigError(f"unknown benchmark {name!r}; {hint} (maskperf bench --help tells more)")
    if choices.recipe and STARTUP not in choices.names:
        raise ConfigError(f"--recipe belongs to {STARTUP}. Fix: maskperf bench {STARTUP} --recipe {choices.recipe}")
    return tuple(choices.names) or (() if choices.switches else QUICK)


def _plan(choices: argparse.Namespace, names: tuple[str, ...]):
    from maskperf.bench.plan import Plan
    from maskperf.machine.threads import threads_of_process

    recipes = {STARTUP: choices.recipe or DEMO, DEMO: DEMO}
    only = names[0] if len(names) == 1 and not choices.switches else ""
    config = _config_of(recipes.get(only, "coco"), choices.pairs)
    if config.model.num_classes < 2:
        raise ConfigError("model.num_classes=0: there is no data set to follow here. Fix: give a number of 2 or more")
    return Plan(
        size_hw=choices.size,
        images=choices.images,
        objects=choices.positives,
        repeats=choices.repeats or REPEATS,
        threads=threads_of_process(choices.threads or 0).count,
        clock=choices.clock,
        config=config,
        peer_python=_peer_python(choices),
        cache=_cache_folder(choices),
    )


def _config_of(recipe: str, pairs: list[str]):
    """Return a recipe with the changes that were asked for, its backbone random."""
    from dataclasses import replace

    from maskperf.overrides import validate, with_overrides
    from maskperf.recipes import RECIPES

    if recipe not in RECIPES:
        raise ConfigError(f"unknown recipe {recipe!r}; there are {', '.join(RECIPES)}")
    base = RECIPES[recipe]()
    config = with_overrides(replace(base, model=replace(base.model, backbone_weights="")), pairs)
    validate(config)
    return config


def _peer_python(choices: argparse.Namespace) -> str:
    """Return the Python of the peer, or nothing where no peer is wanted."""
    if not choices.peer:
        if choices.peer_python:
            raise ConfigError("--peer-python says where a peer is. Fix: add --peer to measure it.")
        return ""
    return choices.peer_python or os.environ.get(PEER_VARIABLE) or sys.executable


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _write_json(path: Path, entries: dict) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(json.dumps(entries, indent=2, default=str) + "\n", encoding="utf-8")
    temporary.replace(path)
    print(f"written: {path}")
