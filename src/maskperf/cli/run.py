"""`maskperf run RECIPE [key=value ...]`: trains a recipe until its targets are met, once or several times."""

import difflib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from maskperf.cli.words import asks_for_help
from maskperf.config import RunConfig
from maskperf.errors import EXIT_DONE, EXIT_TARGET_MISSED, ConfigError, LostRunError
from maskperf.mlperf.rules import refuse_broken_rules
from maskperf.overrides import validate, with_overrides
from maskperf.recipes import RECIPES
from maskperf.run.run_folder import current_run_folder

if TYPE_CHECKING:
    from maskperf.engine.distributed import Topology

USAGE = "maskperf run RECIPE [runs=N] [processes=N] [key=value ...] [section.key=value ...]"
EXAMPLES = (
    ("maskperf run demo", "train a small model on synthetic pictures"),
    ("maskperf run demo optimizer.max_epochs=2 seed=7", "any value of the configuration can be changed"),
    ("maskperf run demo runs=5", "five runs one after another, each with its own seed, and their score"),
    (
        "maskperf run coco_batch_96 processes=8 runs=5 data.root=/data/coco model.backbone_weights=/data/R-50.pkl",
        "the same on the eight GPUs of this machine, one process for each",
    ),
    (
        "maskperf run coco_batch_96 processes=8 data.root=/data/coco mlperf.division=closed",
        "for the closed division: refused at once where one of its rules is broken (docs/rules.md)",
    ),
)
COUNTS = ("runs", "processes")  # words of this command, not of the configuration


@dataclass(frozen=True, kw_only=True)
class Words:
    """What the words behind `maskperf run` say."""

    recipe: str
    pairs: list[str]  # changes of the configuration
    runs: int
    processes: int


def run(arguments: list[str]) -> int:
    """Return the exit code: 0 where the targets are met or there are none, 6 where they are missed.

    Of several runs see `run_series`.
    """
    if not arguments or asks_for_help(arguments):
        print(help_text())
        return EXIT_DONE
    words = read_counts(arguments)
    config = resolve(words.recipe, words.pairs)
    _check_counts(words, config)
    refuse_broken_rules(config, int(os.environ.get("WORLD_SIZE", words.processes)))
    # torch and what needs it is imported only here, after every mistake in the words was found.
    if words.runs > 1:
        from maskperf.run.series import run_series

        processes = [f"processes={words.processes}"] if words.processes > 1 else []
        pairs = [pair for pair in words.pairs if pair.partition("=")[0].strip() != "run_dir"]
        code = run_series(words.recipe, [*pairs, *processes], runs=words.runs, run_dir=config.run_dir)
        _write_report()
        return code
    if words.processes > 1:
        from maskperf.cli.processes import run_processes

        return run_processes([words.recipe, *words.pairs], words.processes)
    from maskperf.engine.distributed import init_topology
    from maskperf.run.loop import run_benchmark
    from maskperf.run.summary import show_outcome

    topology = init_topology(config.system.device)
    with _reported(topology):
        finished = run_benchmark(config, topology)
        show_outcome(finished)
    return EXIT_DONE if finished.results.status in ("success", "done") else EXIT_TARGET_MISSED


@contextmanager
def _reported(topology: "Topology") -> Iterator[None]:
    """Write the report of the run inside the `with` block, also of a lost one, before any process leaves the group."""
    from maskperf.engine.distributed import close_topology, share_from_first

    try:
        yield
    except LostRunError:
        _write_report()
        share_from_first(None, topology)
        raise
    else:
        _write_report()
        share_from_first(None, topology)
    finally:
        close_topology()


def _write_report() -> None:
    """Write the report of the run or series of this process, if it left results; a problem of the report is shown."""
    from maskperf.report.write import write_report

    folder = current_run_folder()  # None in all processes but the first
    if folder is None or not any((*folder.glob("results.json"), *folder.glob("run_*/results.json"))):
        return
    try:
        page, _ = write_report(folder)
    except Exception as error:  # the result of the run stands, whatever is wrong with its page
        problem = f"{type(error).__name__}: {error}"
        print(f"the report could not be written: {problem}. Fix: maskperf report {folder}", file=sys.stderr)
        return
    print(f"report: {page}", flush=True)


def help_text() -> str:
    lines = [f"usage: {USAGE}", "", "Examples, to copy and paste:"]
    for command, purpose in EXAMPLES:
        lines += [f"  # {purpose}", f"  {command}"]
    lines += ["", "recipes:"]
    for name, recipe in RECIPES.items():
        lines.append(f"  {name:16s} {(recipe.__doc__ or 'A published reference convergence point.').splitlines()[0]}")
    lines += [
        "",
        "runs=N        N runs, each in a fresh process and a folder of its own; afterwards a table and series.json",
        "processes=N   each run on N processes of this machine, one GPU for each; on several machines use torchrun",
        "All keys and their values are printed at the start of a run.",
    ]
    return "\n".join(lines)


def read_counts(arguments: list[str]) -> Words:
    """Return the words in order: the recipe, the changes of the configuration, how many runs and processes.

    Errors: ConfigError for a count that is not a whole number above 0.
    """
    counts, pairs = dict.fromkeys(COUNTS, 1), []
    for word in arguments[1:]:
        key, _, text = word.partition("=")
        if key.strip() not in COUNTS:
            pairs.append(word)
        elif text.strip().isdecimal() and int(text) >= 1:
            counts[key.strip()] = int(text)
        else:
            raise ConfigError(f"{word}: cannot be used. Fix: give a whole number, 1 or more, such as {key}=5.")
    return Words(recipe=arguments[0], pairs=pairs, **counts)


def _check_counts(words: Words, config: RunConfig) -> None:
    """Errors: ConfigError where the number of runs or processes does not go with the rest."""
    if "WORLD_SIZE" in os.environ and words.processes > 1:
        raise ConfigError(
            f"processes={words.processes}: torchrun has started the processes of this run already (WORLD_SIZE is set). "
            "Fix: leave processes out, or start maskperf without torchrun."
        )
    if "WORLD_SIZE" in os.environ and words.runs > 1:
        raise ConfigError(
            f"runs={words.runs}: under torchrun (WORLD_SIZE is set) there is one run only. Fix: start maskperf "
            "without torchrun and give processes=N, or on several machines call torchrun in a loop."
        )
    if words.runs > 1 and config.seed >= 0:
        raise ConfigError(
            f"seed={config.seed}: with runs={words.runs} each run draws its own seed, and no two may have the same. "
            "Fix: leave seed out."
        )


def resolve(recipe: str, pairs: list[str]) -> RunConfig:
    """Return the recipe with the user's values, checked.

    Own data (data.train_json or data.root given) brings its own categories and counts: unless said otherwise, the
    classes follow the file and the counts of COCO 2017 are not demanded. The closed division demands them of data.root.
    Errors: ConfigError for an unknown recipe or key, or a value that cannot be used.
    """
    if recipe not in RECIPES:
        nearest = difflib.get_close_matches(recipe, RECIPES, n=1)
        hint = f"Did you mean {nearest[0]}?" if nearest else "Fix: choose a recipe."
        raise ConfigError(f"recipe {recipe!r} does not exist. {hint} There are {', '.join(RECIPES)}.")
    config = with_overrides(RECIPES[recipe](), pairs)
    given = {pair.partition("=")[0].strip() for pair in pairs}
    if "data.train_json" in given or ("data.root" in given and _root_is_own(config, given)):
        if "model.num_classes" not in given:
            config = replace(config, model=replace(config.model, num_classes=0))
        if "data.check_counts" not in given:
            config = replace(config, data=replace(config.data, check_counts=False))
        if "data.generate" not in given:
            config = replace(config, data=replace(config.data, generate=False))
    validate(config)
    return config


def _root_is_own(config: RunConfig, given: set[str]) -> bool:
    """Return whether data.root is a data set with categories and counts of its own, or may be one."""
    if config.data.generate:
        from maskperf.demo.dataset import holds_own_data

        return "data.generate" not in given and holds_own_data(Path(config.data.root))
    return config.mlperf.division != "closed"
