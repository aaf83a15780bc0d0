"""What sends the records of metrics.jsonl to TensorBoard and to trackers of experiments, where the user asks for them.

Each is imported only where it is asked for. One that fails during a run is reported and left alone: training goes on.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from maskperf.config import RunConfig
from maskperf.errors import ConfigError
from maskperf.overrides import flatten, format_value
from maskperf.schema import EvaluationLine, GuardLine, MetricsLine
from maskperf.structures import LOSS_NAMES

PROJECT = "maskperf"
TENSORBOARD_FOLDER = "tensorboard"
PARAMETERS_PER_CALL = 50  # MLflow takes 100 at most


@dataclass(frozen=True)
class Tracker:
    """One place that records are sent to: numbers by name with their step, and texts with theirs."""

    numbers: Callable[[dict[str, float], int], object]
    text: Callable[[str, int], object]
    close: Callable[[], object]


class Trackers:
    """The trackers that a configuration asks for; `write` sends a record to all of them."""

    def __init__(self, config: RunConfig, folder: Path, say: Callable[[str], None]):
        """Open all. Errors: ConfigError where one cannot be opened, with its own message."""
        self._say = say
        self._open: dict[str, Tracker] = {}
        for name in config.log.packages:
            try:
                self._open[name] = MAKERS[name](config, folder)
            except Exception as error:
                self.close()
                text = f"log.trackers: {name} cannot be opened ({type(error).__name__}: {error})"
                raise ConfigError(f"{text}. Fix: what it asks for, or leave it out") from error

    def write(self, line: MetricsLine) -> None:
        """Send a record of metrics.jsonl."""
        for name, tracker in list(self._open.items()):
            try:
                if isinstance(line, GuardLine):
                    tracker.text(f"{line.event}: {line.text}", line.step)
                else:
                    tracker.numbers(values_of(line), line.step)
            except Exception as error:  # a server that went away must not end a run of days
                del self._open[name]
                self._say(f"{name} failed and gets no more records ({type(error).__name__}: {error})")

    def close(self) -> None:
        for name, tracker in self._open.items():
            try:
                tracker.close()
            except Exception as error:
                self._say(f"{name} could not be closed ({type(error).__name__}: {error})")
        self._open.clear()


def values_of(line: MetricsLine) -> dict[str, float]:
    """Return the known numbers of a record by name, such as loss/box, step/learning_rate or evaluation/box_ap."""
    group = "evaluation" if isinstance(line, EvaluationLine) else "step"
    losses = {"total", *LOSS_NAMES}
    return {
        f"{'loss' if name in losses else group}/{name}": float(value)
        for name, value in msgspec.structs.asdict(line).items()
        if name != "step" and value is not None
    }


def _tensorboard(config: RunConfig, folder: Path) -> Tracker:
    """Event files in the run folder."""
    writer: Any = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(folder / TENSORBOARD_FOLDER))
    writer.add_text("configuration", "".join(f"    {key}={value}\n" for key, value in _parameters(config).items()))

    def numbers(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return Tracker(numbers, lambda text, step: writer.add_text("guard", text, step), writer.close)


def _wandb(config: RunConfig, folder: Path) -> Tracker:
    """A run of wandb. An evaluation comes after later steps, so the step is a number of its own and not wandb's."""
    module: Any = importlib.import_module("wandb")
    run = module.init(project=PROJECT, name=folder.name, dir=str(folder), config=_parameters(config))
    run.define_metric("*", step_metric="step")
    texts = run.summary
    return Tracker(
        lambda values, step: run.log({**values, "step": step}),
        lambda text, step: texts.update({"guard": text}),
        run.finish,
    )


def _mlflow(config: RunConfig, folder: Path) -> Tracker:
    """A run of the experiment `maskperf`; its place is that of MLFLOW_TRACKING_URI."""
    module: Any = importlib.import_module("mlflow")
    module.set_experiment(PROJECT)
    module.start_run(run_name=folder.name)
    pairs = list(_parameters(config).items())
    for start in range(0, len(pairs), PARAMETERS_PER_CALL):
        module.log_params(dict(pairs[start : start + PARAMETERS_PER_CALL]))
    return Tracker(
        lambda values, step: module.log_metrics(values, step=step),
        lambda text, step: module.set_tag("guard", text),
        module.end_run,
    )


def _trackio(config: RunConfig, folder: Path) -> Tracker:
    """A run of trackio."""
    module: Any = importlib.import_module("trackio")
    module.init(project=PROJECT, name=folder.name, config=_parameters(config))
    return Tracker(
        lambda values, step: module.log(values, step=step),
        lambda text, step: module.log({"guard": text}, step=step),
        module.finish,
    )


def _parameters(config: RunConfig) -> dict[str, str]:
    return {key: format_value(value) for key, value in flatten(config).items()}


MAKERS: dict[str, Callable[[RunConfig, Path], Tracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}
