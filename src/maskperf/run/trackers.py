"""What sends the records of metrics.jsonl to TensorBoard and to trackers of experiments, where the user asks for them.

Each is imported only where it is asked for. One that fails during a run is reported and left alone: training goes on.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from maskperf.config import RunConfig
from maskperf.overrides import flatten, format_value
from maskperf.run.start import trackers_of
from maskperf.schema import EvaluationLine, GuardLine, MetricsLine
from maskperf.structures import LOSS_NAMES

PROJECT = "maskperf"
TENSORBOARD_FOLDER = "tensorboard"
PARAMETERS_PER_CALL = 50  # MLflow takes 100 at most


class Tracker(Protocol):
    """One place that records are sent to."""

    def numbers(self, values: dict[str, float], step: int) -> None: ...
    def text(self, text: str, step: int) -> None: ...
    def close(self) -> None: ...


class Trackers:
    """The trackers that a configuration asks for; `write` sends a record to all of them."""

    def __init__(self, config: RunConfig, folder: Path, say: Callable[[str], None]):
        self._say = say
        self._open = {name: MAKERS[name](config, folder) for name in trackers_of(config)}

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


class TensorBoard:
    """Event files in the run folder."""

    def __init__(self, config: RunConfig, folder: Path):
        module = importlib.import_module("torch.utils.tensorboard")
        self._writer: Any = module.SummaryWriter(str(folder / TENSORBOARD_FOLDER))
        pairs = "".join(f"    {key}={value}\n" for key, value in _parameters(config).items())
        self._writer.add_text("configuration", pairs)

    def numbers(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def text(self, text: str, step: int) -> None:
        self._writer.add_text("guard", text, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of wandb. An evaluation comes after later steps, so the step is a number of its own and not wandb's."""

    def __init__(self, config: RunConfig, folder: Path):
        module: Any = importlib.import_module("wandb")
        self._run = module.init(project=PROJECT, name=folder.name, dir=str(folder), config=_parameters(config))
        self._run.define_metric("*", step_metric="step")

    def numbers(self, values: dict[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def text(self, text: str, step: int) -> None:
        self._run.summary["guard"] = text

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of the experiment `maskperf`; its place is that of MLFLOW_TRACKING_URI."""

    def __init__(self, config: RunConfig, folder: Path):
        self._module: Any = importlib.import_module("mlflow")
        self._module.set_experiment(PROJECT)
        self._module.start_run(run_name=folder.name)
        pairs = list(_parameters(config).items())
        for start in range(0, len(pairs), PARAMETERS_PER_CALL):
            self._module.log_params(dict(pairs[start : start + PARAMETERS_PER_CALL]))

    def numbers(self, values: dict[str, float], step: int) -> None:
        self._module.log_metrics(values, step=step)

    def text(self, text: str, step: int) -> None:
        self._module.set_tag("guard", text)

    def close(self) -> None:
        self._module.end_run()


class Trackio:
    """A run of trackio."""

    def __init__(self, config: RunConfig, folder: Path):
        self._module: Any = importlib.import_module("trackio")
        self._module.init(project=PROJECT, name=folder.name, config=_parameters(config))

    def numbers(self, values: dict[str, float], step: int) -> None:
        self._module.log(values, step=step)

    def text(self, text: str, step: int) -> None:
        self._module.log({"guard": text}, step=step)

    def close(self) -> None:
        self._module.finish()


def _parameters(config: RunConfig) -> dict[str, str]:
    return {key: format_value(value) for key, value in flatten(config).items()}


MAKERS: dict[str, Callable[[RunConfig, Path], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "trackio": Trackio,
}
