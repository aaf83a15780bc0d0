"""`maskperf run RECIPE [key=value ...]`: trains a recipe until its targets are met, once or several times."""

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskperf.cli.arguments import CommandParser
from maskperf.config import Count, DataConfig, RunConfig
from maskperf.errors import EXIT_BUG, EXIT_DONE, EXIT_REQUEUE, EXIT_TARGET_MISSED, ConfigError, LostRunError, UserError
from maskperf.mlperf.rules import refuse_broken_rules
from maskperf.overrides import FIELDS, flatten, format_value, key_of, parse_value, validate, with_overrides
from maskperf.recipe_files import recipe_config
from maskperf.recipes import RECIPES
from maskperf.run.resume import Resumption, resumption_of, run_to_resume
from maskperf.run.run_folder import current_run_folder, require_run_folder
from maskperf.run.start import check_start

if TYPE_CHECKING:
    from maskperf.engine.distributed import Topology
    from maskperf.run.finish import FinishedRun

USAGE = "RECIPE [runs=N] [processes=N] [key=value ...] [section.key=value ...]"
_RECIPES = "\n".join(f"  {name:<16} {recipe.__doc__}" for name, recipe in RECIPES.items())
_KEYS = "\n".join(
    f"  {f'{key}={format_value(value)}':<38} {FIELDS[key].metadata.get('help', '')}"
    for key, value in flatten(RunConfig(recipe="")).items()
    if key != "recipe"
)
EXAMPLES = f"""examples, to copy and paste:
  # train a small model on synthetic images
  maskperf run demo
  # any value of the configuration can be changed
  maskperf run demo optimizer.max_epochs=2 seed=7
  # five runs one after another, each with its own seed, and their score
  maskperf run demo runs=5
  # the same on the eight GPUs of this machine, one process for each
  maskperf run coco_batch_96 processes=8 runs=5 model.backbone_weights=/data/R-50.pkl
  # go on with the newest run of this recipe that was killed, or start a new one
  maskperf run demo resume=auto
  # for the closed division: refused at once where one of its rules is broken (docs/rules.md)
  maskperf run coco_batch_96 processes=8 data.root=/data/coco mlperf.division=closed

recipes:
{_RECIPES}

runs=N        N runs, each in a fresh process and folder; afterwards a table and series.json
processes=N   N processes of this machine, one GPU for each; on several machines use torchrun
resume=auto   go on with the newest unfinished run of the recipe, or of run_dir, or else start one
resume=FOLDER go on with the run of this folder, with the same configuration

Ctrl-C, SIGTERM and SIGUSR1 finish the step under way and write a checkpoint (exit codes 130, 75,
75); a second Ctrl-C ends at once.

keys, with the default of the benchmark:
{_KEYS}"""
FORWARDED_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # to all processes, which have 30 s for a checkpoint
REQUEUE_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
FIRST_ENDS_SECONDS = 3.0  # for the first process to find the same problem by itself
COUNTS = {"runs": Count, "processes": Count}  # arguments of this command, not of the configuration
GENERATED = {"data.generate_images"}  # overruled by own data, even where it is given
FOR_OWN_DATA = ("model.num_classes=0", "data.check_counts=false", "data.generate_images=0,0")


def add_options(parser: CommandParser) -> None:
    text = "what to train, see below; or my_recipe.py, my_recipe.py:name, a run's config.json"
    parser.add_argument("recipe", metavar="RECIPE", help=text)
    parser.add_argument("--layers", action="store_true", help="show the layers of the model, and train nothing")
    parser.add_argument("settings", metavar="key=value", nargs="*", help="change a value of the configuration")


def run(options: argparse.Namespace) -> int:
    """Return 0 where the targets are met or there are none, 6 where they are missed; of several runs see `run_series`.

    torch is imported only after every mistake in the arguments was found.
    """
    pairs, resume, counts = read_start(options.settings)
    config = resolve(options.recipe, pairs)
    _check_counts(counts, config)
    if options.layers:
        return _show_layers(config)
    world = int(os.environ.get("WORLD_SIZE", counts["processes"]))
    refuse_broken_rules(config, world)
    check_start(config, world)
    resumption = _find_resumption(resume, config, world, runs=counts["runs"])
    # Before torch is imported, which takes seconds.
    if os.environ.get("RANK", "0") == "0" and resumption is None:
        require_run_folder(config.run_dir)
    if counts["runs"] > 1:
        from maskperf.run.series import run_series

        pairs = [pair for pair in pairs if key_of(pair) != "run_dir"]
        pairs += [f"processes={counts['processes']}"] if counts["processes"] > 1 else []
        code = run_series(options.recipe, pairs, runs=counts["runs"], run_dir=config.run_dir)
        _write_report()
        return code
    if counts["processes"] > 1:
        going_on = [f"resume={resumption.folder.absolute()}"] if resumption is not None else []
        return start_processes([options.recipe, *pairs, *going_on], counts["processes"])
    from maskperf.run.loop import run_benchmark
    from maskperf.run.summary import show_outcome

    with ready_to_run(config, resumption) as ready:
        finished = run_benchmark(*ready)
        show_outcome(finished)
    return exit_code_of(finished)


def exit_code_of(finished: "FinishedRun") -> int:
    """Return 0 where the targets are met or there are none, 6 where they are missed."""
    return EXIT_DONE if finished.results.status in ("success", "done") else EXIT_TARGET_MISSED


@contextmanager
def ready_to_run(
    config: RunConfig, resumption: Resumption | None
) -> Iterator[tuple[RunConfig, "Topology", Resumption | None]]:
    """Give what `run_benchmark` takes, here or in processes of torchrun, and write the report, of a lost run too.

    `resumption` is that of the first process.
    """
    from maskperf.engine.distributed import close_topology, init_topology, share_from_first

    topology = init_topology(config.system.device)

    def report() -> None:
        _write_report()
        share_from_first(None, topology)  # all processes stay in the group until it is written

    try:
        resumption = share_from_first(resumption, topology)
        config = config if resumption is None else resumption.config
        if topology.is_first and config.data.is_generated:
            _generate(config.data)
        share_from_first(None, topology)  # the others wait until the data is there
        try:
            yield config, topology, resumption
        except UserError as error:
            if isinstance(error, LostRunError):
                report()
            elif not topology.is_first:  # torchrun ends the first process with this one, and it has a folder to discard
                time.sleep(FIRST_ENDS_SECONDS)
            raise
        report()
    finally:
        close_topology()


def _show_layers(config: RunConfig) -> int:
    from maskperf.engine.distributed import Topology
    from maskperf.run.data import complete_config
    from maskperf.run.session import describe_layers

    print(describe_layers(complete_config(config, Topology())))
    return EXIT_DONE


def read_start(settings: Sequence[str], kinds: Mapping[str, Any] = COUNTS) -> tuple[list[str], str, dict[str, Any]]:
    """Return the changes of the configuration, what `resume=` names ("": nothing), and the numbers by these names.

    Counts are 1 where they are not given.
    Errors: ConfigError for `resume=` without a value, and a number that is not of its kind.
    """
    pairs, resume, numbers = list[str](), "", dict[str, Any](dict.fromkeys(COUNTS, 1))
    for setting in settings:
        name, text = key_of(setting), setting.partition("=")[2].strip()
        if name == "resume":
            if not text:
                raise ConfigError("resume: names no run. Fix: resume=auto, or resume=FOLDER with the folder of a run")
            resume = text
        elif name in kinds:
            try:
                numbers[name] = parse_value(text, kinds[name])
            except ValueError as error:
                raise ConfigError(f"{setting}: {error}. Fix: give a number, such as {name}=5.") from error
        else:
            pairs.append(setting)
    return pairs, resume, numbers


def _find_resumption(wanted: str, config: RunConfig, processes: int, *, runs: int) -> Resumption | None:
    """Return the run to go on with, in the first process alone; None for a new one."""
    if not wanted or int(os.environ.get("RANK", "0")):
        return None
    if runs > 1:
        raise ConfigError(f"resume={wanted}: runs={runs} are a series, and one run can be resumed. Fix: leave runs out")
    folder = run_to_resume(wanted, config)
    if folder is not None:
        return resumption_of(folder, wanted, config, processes)
    print(f"resume={wanted}: no run of {config.recipe} is unfinished; a new one starts", flush=True)
    return None


def _check_counts(counts: dict[str, int], config: RunConfig) -> None:
    for name, count in counts.items():
        if count > 1 and "WORLD_SIZE" in os.environ:
            raise ConfigError(
                f"{name}={count}: under torchrun (WORLD_SIZE is set) there is one run, on the processes that torchrun "
                f"started. Fix: leave {name} out, or start maskperf without torchrun."
            )
    if counts["runs"] > 1 and config.seed >= 0:
        raise ConfigError(
            f"seed={config.seed}: with runs={counts['runs']} each run draws its own seed, and no two may have the "
            "same. Fix: leave seed out."
        )


def resolve(recipe: str, pairs: list[str]) -> RunConfig:
    """Return the recipe with the user's values, checked.

    Own data (data.train_json or data.root given) brings its own categories and counts: unless said otherwise, the
    classes follow the file and the counts of COCO 2017 are not demanded. The closed division demands them of data.root.
    Errors: ConfigError for an unknown recipe or key, or a value that cannot be used.
    """
    config = with_overrides(recipe_config(recipe), pairs)
    given = {key_of(pair) for pair in pairs}
    if "data.train_json" in given or ("data.root" in given and _root_is_own(config)):
        config = with_overrides(config, [pair for pair in FOR_OWN_DATA if key_of(pair) not in given - GENERATED])
    return validate(config)


def _root_is_own(config: RunConfig) -> bool:
    """Return whether data.root is a data set with categories and counts of its own, or may be one."""
    if config.data.is_generated:
        from maskperf.demo.dataset import holds_own_data

        return holds_own_data(Path(config.data.root))
    return config.mlperf.division != "closed"


def _generate(data: DataConfig) -> None:
    """Write the synthetic data set, unless it is there."""
    from maskperf.demo.dataset import write_demo_dataset

    written = write_demo_dataset(Path(data.root), *data.generate_images)
    where = f"{'written to' if written else 'found in'} {data.root}"
    print(f"demo data set of {sum(data.generate_images[:2])} images {where}", flush=True)


def _write_report() -> None:
    """Write the report of the run or series of this process, if it left results; a problem of the report is shown."""
    from maskperf.report.write import write_report

    folder = current_run_folder()  # None in all processes but the first
    if folder is None or not any((*folder.glob("results.json"), *folder.glob("run_*/results.json"))):
        return
    try:
        page = folder / "report.html"
        write_report([folder], [], page)
        print(f"report: {page}", flush=True)
    except Exception as error:  # the result of the run stands, whatever is wrong with its page
        problem = f"{type(error).__name__}: {error}"
        print(f"the report could not be written: {problem}. Fix: maskperf report {folder}", file=sys.stderr)


def start_processes(arguments: list[str], processes: int) -> int:
    """Return the exit code of `maskperf run <arguments>` on several processes: that of the first one that failed.

    torchrun's own command would give 1 for each of them, and a traceback for a target that was missed; so its
    launcher is called here, and is silent: each process reports itself why it ends.
    Errors: KeyboardInterrupt and SystemExit where a signal ended the run, after all processes were stopped.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in list(logging.root.manager.loggerDict):  # each has a level of its own
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    command = ["--standalone", f"--nproc-per-node={processes}", f"--signals-to-handle={FORWARDED_SIGNALS}"]
    command += ["-m", "maskperf", "run", *arguments]
    try:
        torchrun.run(torchrun.parse_args(command))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode
        name = signal.Signals(-failure.exitcode).name
        text = f"process {rank} of {processes} was ended by {name}; all are stopped now"
        fix = " Fix: if memory ran out, a smaller optimizer.batch_size or fewer processes."
        print(f"error: {text}.{fix if name == 'SIGKILL' else ''}", file=sys.stderr)
        return EXIT_BUG
    except SignalException as stop:
        if stop.sigval == signal.SIGINT:
            raise KeyboardInterrupt from stop
        raise SystemExit(EXIT_REQUEUE if stop.sigval in REQUEUE_SIGNALS else 128 + stop.sigval) from stop
    return EXIT_DONE
