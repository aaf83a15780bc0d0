"""What trackers get of the records of a run: TensorBoard's own reader, and stand-ins with the others' functions."""

import importlib
import sys

import pytest
from small_runs import NO_TARGETS, small_run

from maskperf.cli.main import main
from maskperf.cli.run import resolve
from maskperf.errors import EXIT_DONE, EXIT_USAGE, ConfigError
from maskperf.run.trackers import Trackers, values_of
from maskperf.schema import EvaluationLine, GuardLine, StepLine, read_metrics

STEP = StepLine(step=3, epoch=1, objectness=0.5, box=0.25, total=0.75, learning_rate=0.02, images_per_second=8.0)
EVALUATION = EvaluationLine(step=2, epoch=1, box_ap=0.25, mask_ap=0.125, evaluation_seconds=4.0, minutes=1.5)
GUARD = GuardLine(step=4, epoch=1, event="plateau", text="no progress")
STEP_VALUES = {"step/epoch": 1, "loss/objectness": 0.5, "loss/box": 0.25, "loss/total": 0.75}
STEP_VALUES |= {"step/learning_rate": 0.02, "step/images_per_second": 8.0}
# Functions of the real packages, with their parameters; what they get is kept in `calls`.
STAND_INS = {
    "wandb": """
calls = []
class Run:
    summary = {}
    def define_metric(self, name, step_metric=None): calls.append(("define_metric", name, step_metric))
    def log(self, data, step=None, commit=None): calls.append(("log", data, step))
    def finish(self, exit_code=None): calls.append(("finish", dict(self.summary)))
def init(entity=None, project=None, dir=None, id=None, name=None, config=None):
    calls.append(("init", project, name, config["optimizer.momentum"]))
    return Run()
""",
    "mlflow": """
calls = []
def set_experiment(experiment_name): calls.append(("set_experiment", experiment_name))
def start_run(run_id=None, experiment_id=None, run_name=None): calls.append(("start_run", run_name))
def log_params(params):
    assert 0 < len(params) <= 100
    calls.append(("log_params", params.get("optimizer.momentum")))
def log_metrics(metrics, step=None): calls.append(("log_metrics", metrics, step))
def set_tag(key, value): calls.append(("set_tag", key, value))
def end_run(status="FINISHED"): calls.append(("end_run",))
""",
    "trackio": """
calls = []
def init(project, name=None, config=None): calls.append(("init", project, name, config["optimizer.momentum"]))
def log(metrics, step=None): calls.append(("log", metrics, step))
def finish(): calls.append(("finish",))
""",
}
EXPECTED = {
    "wandb": [
        ("init", "maskperf", "a-run", "0.9"),
        ("define_metric", "*", "step"),
        ("log", {**STEP_VALUES, "step": 3}, None),
        ("finish", {"guard": "plateau: no progress"}),
    ],
    "mlflow": [
        ("set_experiment", "maskperf"),
        ("start_run", "a-run"),
        ("log_params", "0.9"),
        ("log_metrics", STEP_VALUES, 3),
        ("set_tag", "guard", "plateau: no progress"),
        ("end_run",),
    ],
    "trackio": [
        ("init", "maskperf", "a-run", "0.9"),
        ("log", STEP_VALUES, 3),
        ("log", {"guard": "plateau: no progress"}, 4),
        ("finish",),
    ],
}


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Return a function that installs the stand-in of a package and returns its calls."""

    def install(name):
        (tmp_path / f"{name}.py").write_text(STAND_INS[name])
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    yield install
    for name in STAND_INS:
        sys.modules.pop(name, None)


def test_a_tracker_that_cannot_be_opened_is_an_error_of_the_start(stand_in, tmp_path):
    stand_in("trackio").init = lambda *arguments, **named: 1 / 0
    closed = stand_in("mlflow").calls
    config = resolve("demo", ["log.trackers=mlflow,trackio"])
    with pytest.raises(ConfigError, match="trackio cannot be opened .ZeroDivisionError: division by zero"):
        Trackers(config, tmp_path / "a-run", pytest.fail)
    assert closed[-1] == ("end_run",)


@pytest.mark.parametrize("name", STAND_INS)
def test_a_tracker_gets_configuration_steps_and_events(name, stand_in, tmp_path):
    module = stand_in(name)
    trackers = Trackers(resolve("demo", [f"log.trackers={name}"]), tmp_path / "a-run", pytest.fail)
    trackers.write(STEP)
    trackers.write(GUARD)
    trackers.close()
    calls = [call for call in module.calls if call != ("log_params", None)]
    assert calls == EXPECTED[name]


def test_an_evaluation_has_names_of_its_own():
    assert values_of(EVALUATION) == {
        "evaluation/epoch": 1,
        "evaluation/box_ap": 0.25,
        "evaluation/mask_ap": 0.125,
        "evaluation/evaluation_seconds": 4.0,
        "evaluation/minutes": 1.5,
    }


def test_a_tracker_that_fails_is_reported_once_and_the_run_goes_on(stand_in, tmp_path):
    module = stand_in("trackio")
    module.log = lambda *arguments, **named: 1 / 0
    said = []
    trackers = Trackers(resolve("demo", ["log.trackers=trackio"]), tmp_path / "a-run", said.append)
    for _ in range(3):
        trackers.write(STEP)
    trackers.close()
    assert said == ["trackio failed and gets no more records (ZeroDivisionError: division by zero)"]


def test_a_tracker_that_is_not_installed_is_an_error_at_the_start(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("maskperf.run.start.find_spec", lambda name: None)
    assert main(["run", "demo", "log.tensorboard=true", "log.trackers=wandb,mlflow"]) == EXIT_USAGE
    error = capsys.readouterr().err
    assert "log.tensorboard=true and log.trackers=wandb and log.trackers=mlflow: " in error
    assert "Fix: pip install tensorboard wandb mlflow" in error and list(tmp_path.iterdir()) == []


def test_tensorboard_reads_back_what_is_in_the_metrics_of_a_run(tmp_path, capsys):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    few = ("data.generate_images=4,2", "optimizer.max_steps=2", "optimizer.batch_size=2")
    assert small_run(tmp_path, *NO_TARGETS, *few, "log.tensorboard=true") == EXIT_DONE, capsys.readouterr().err
    events = accumulators.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    for line in read_metrics(tmp_path / "run" / "metrics.jsonl"):
        for name, value in values_of(line).items():
            (found,) = [event.value for event in events.Scalars(name) if event.step == line.step]
            assert found == pytest.approx(value, rel=1e-6)  # stored as float32
    assert {"loss/total", "loss/rpn_box", "step/data_wait_seconds", "evaluation/mask_ap"} <= set(
        events.Tags()["scalars"]
    )
