import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
import torch
from default_signals import default_signals
from safetensors.torch import load_file
from small_runs import NO_TARGETS, log_events, read_results, small_run, small_run_arguments, step_lines

from maskperf.cli.main import main
from maskperf.engine import build
from maskperf.errors import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_REQUEUE,
    EXIT_RULE,
    EXIT_USAGE,
    ConfigError,
    DataError,
    StorageError,
)
from maskperf.machine.threads import ThreadChoice
from maskperf.model.heads import MaskPredictor, RpnHead
from maskperf.overrides import with_overrides
from maskperf.recipes import RECIPES
from maskperf.run import checkpoint, loop
from maskperf.run.checkpoint import Checkpoints, write_checkpoint
from maskperf.run.collapse import CollapseGuard
from maskperf.run.resume import Resumption, newest_checkpoint, read_state, run_to_resume
from maskperf.run.stop_signals import StopSignals
from maskperf.schema import CheckpointState, EvaluationLine, GuardState, RecorderState, read_metrics
from maskperf.structures import LOSS_NAMES

THREE_EPOCHS = (*NO_TARGETS, "optimizer.max_epochs=3")  # of three steps
SOURCES = Path(checkpoint.__file__).parents[2]


def killed(*arguments, **options):
    raise SystemExit(99)


def numbers(folder):
    """Return all that a run computed: its losses step by step, its APs, and its last and best weights."""
    lines = read_metrics(folder / "metrics.jsonl")
    names = ("step", "epoch", *LOSS_NAMES, "total", "learning_rate")
    steps = [[getattr(line, name) for name in names] for line in step_lines(folder)]
    aps = [(line.epoch, line.box_ap, line.mask_ap) for line in lines if isinstance(line, EvaluationLine)]
    results = read_results(folder)
    rows = [(row["epoch"], row["mean_loss"], row["box_ap"]) for row in results["epochs_table"]]
    weights = {name: load_file(folder / name) for name in ("model.safetensors", "model_best.safetensors")}
    return steps, aps, rows, results["guard"]["steps_checked"], weights


def assert_equal_runs(folder, other):
    *found, weights = numbers(folder)
    *expected, expected_weights = numbers(other)
    assert found == expected
    for name, tensors in expected_weights.items():
        assert tensors.keys() == weights[name].keys()
        assert all(torch.equal(value, weights[name][key]) for key, value in tensors.items())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    assert small_run(folder, *THREE_EPOCHS) == EXIT_DONE
    assert not (folder / "run" / "checkpoint").exists()  # ten minutes were not over
    return folder / "run"


def run_until(folder, step, *more):
    """Let a run take a checkpoint after this step alone, and end as if killed."""
    honest_take, honest_step, last = Checkpoints.take, loop.train_step, []

    def take(self, done, epoch, asked):
        honest_take(self, done, epoch, asked)
        self._session.writer.wait()
        killed()

    def train(*arguments, update, **options):
        last[:] = [update]
        return honest_step(*arguments, update=update, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "take", take)
        patch.setattr(loop, "train_step", train)
        asked = checkpoint.PERIODIC
        patch.setattr(Checkpoints, "asked", lambda self, *, was_read: asked if last == [step] else 0)
        assert small_run(folder, *more) == 99


@pytest.mark.slow
def test_averages_of_weights_and_adamw_go_on_bitwise(tmp_path):
    more = (*THREE_EPOCHS, "optimizer.average_decay=0.9", "optimizer.method=adamw", "optimizer.learning_rate=0.001")
    (tmp_path / "unbroken").mkdir()
    assert small_run(tmp_path / "unbroken", *more) == EXIT_DONE
    run_until(tmp_path, 4, *more)
    assert small_run(tmp_path, *more, "resume=auto") == EXIT_DONE
    assert_equal_runs(tmp_path / "run", tmp_path / "unbroken" / "run")


@pytest.fixture
def broken(tmp_path):
    """Return the folder of a run that ended after step 5 of 9, and the arguments that go on with it."""
    run_until(tmp_path, 5, *THREE_EPOCHS)
    return tmp_path / "run", small_run_arguments(tmp_path, *THREE_EPOCHS)


@pytest.mark.parametrize("step", [1, *(pytest.param(step, marks=pytest.mark.slow) for step in (3, 4))])
def test_a_resumed_run_is_bitwise_equal_to_the_unbroken_one(unbroken, tmp_path, capsys, step):
    """Inside an epoch, at its last step, and while an evaluation is under way."""
    run_until(tmp_path, step, *THREE_EPOCHS)
    assert not (tmp_path / "run" / "results.json").exists()
    assert small_run(tmp_path, *THREE_EPOCHS, "resume=auto") == EXIT_DONE
    assert f"resuming step {step} of 9, epoch {-(-step // 3)}, from " in capsys.readouterr().out
    assert_equal_runs(tmp_path / "run", unbroken)
    results = read_results(tmp_path / "run")
    assert results["resumed_at_steps"] == [step]
    assert any("no result of the benchmark" in notice for notice in results["notices"])
    assert "no result of the benchmark" in (tmp_path / "run" / "report.md").read_text()
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_a_resumed_run_has_the_threads_it_had_though_the_machine_is_busier_now(broken, monkeypatch, capsys):
    folder, arguments = broken
    other = ThreadChoice(count=torch.get_num_threads() + 1, reason="other programs")
    monkeypatch.setattr("maskperf.run.session.threads_of_process", lambda wanted: other)
    arguments = ["system.threads=0" if word == "system.threads=1" else word for word in arguments]
    assert main([*arguments, f"resume={folder}"]) == EXIT_DONE
    said = capsys.readouterr().out
    assert "as before the run was resumed" in said and "rounded otherwise" not in said


def test_the_log_of_a_resumed_run_goes_on_and_is_refused_with_the_reason(broken, capsys):
    folder, arguments = broken
    before = (folder / "mlperf.log").read_text()
    assert main([*arguments, f"resume={folder}"]) == EXIT_DONE
    assert (folder / "mlperf.log").read_text().startswith(before)
    (marker,) = [event for event in log_events(folder) if event["key"] == "maskperf_resumed"]
    assert marker["value"] == 5
    capsys.readouterr()
    assert main(["check", str(folder)]) == EXIT_RULE
    assert "after step 5: the run was taken up again" in capsys.readouterr().out
    assert main([*arguments, f"resume={folder}"]) == EXIT_USAGE
    assert "has come to its end" in capsys.readouterr().err


def test_a_run_that_ended_before_its_first_checkpoint_begins_again_in_its_folder(unbroken, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "asked", killed)
        assert small_run(tmp_path, *THREE_EPOCHS) == 99
    assert small_run(tmp_path, *THREE_EPOCHS, "resume=auto") == EXIT_DONE
    assert_equal_runs(tmp_path / "run", unbroken)
    assert read_results(tmp_path / "run")["resumed_at_steps"] == [0]


def test_a_folder_whose_run_was_killed_at_its_first_file_is_used_again(tmp_path):
    config = with_overrides(RECIPES["demo"](), [f"run_dir={tmp_path}"])
    left_over = tmp_path / ".config.json.0123456789ab.tmp"
    for other in (tmp_path / "mine.txt", None):
        left_over.touch()
        if other is not None:
            other.touch()
        assert run_to_resume("auto", config) is None
        assert left_over.exists() == (other is not None)
        if other is not None:
            other.unlink()


def test_auto_takes_the_newest_unfinished_run_of_the_recipe(broken, tmp_path, monkeypatch, capsys):
    folder, arguments = broken
    monkeypatch.chdir(tmp_path)
    without_folder = [argument for argument in arguments if not argument.startswith("run_dir=")]
    (tmp_path / "runs").mkdir()
    for name, recipe in (("older", "demo"), ("newer", "demo"), ("other", "coco")):
        target = tmp_path / "runs" / name
        target.mkdir()
        config = json.loads((folder / "config.json").read_text())
        (target / "config.json").write_text(json.dumps({**config, "recipe": recipe}))
        (target / "checkpoint").mkdir()
        subprocess.run(["cp", "-r", folder / "checkpoint" / "step_000000005", target / "checkpoint"], check=True)
        os.utime(target / "checkpoint", ns=(time.time_ns(), time.time_ns()))
    assert main([*without_folder, "resume=auto", "optimizer.momentum=0.5"]) == EXIT_USAGE
    message = capsys.readouterr().err
    assert "runs/newer" in message and "optimizer.momentum=0.9" in message and "seed" not in message
    (tmp_path / "runs" / "newer" / "results.json").write_text("{}")
    assert main([*without_folder, "resume=auto", "optimizer.momentum=0.5"]) == EXIT_USAGE
    assert "runs/older" in capsys.readouterr().err
    assert main([*without_folder, "resume=auto", "processes=2"]) == EXIT_USAGE
    assert "of 1 processes, and these are 2. Fix: processes=1" in capsys.readouterr().err


def test_keys_that_change_no_number_may_differ(broken, unbroken):
    folder, arguments = broken
    changed = ("resume=auto", "system.log_every_steps=7", "checkpoint.minutes=0", "data.loader_threads=1", "seed=-1")
    assert main([*arguments, *changed]) == EXIT_DONE
    assert_equal_runs(folder, unbroken)


@pytest.mark.parametrize("damage", ["flipped", "short", "no manifest", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(tmp_path, damage):
    root = tmp_path / "checkpoint"
    for step in (1, 2, 3):
        write(root, step)
    assert sorted(os.listdir(root)) == ["step_000000002", "step_000000003"]
    path = root / "step_000000003" / "tensors.safetensors"
    if damage == "flipped":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "short":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "gone":
        path.unlink()
    else:
        path = path.with_name("manifest.json")
        path.unlink()
    run = newest_checkpoint(Resumption(folder=tmp_path, config=RECIPES["demo"]()))
    assert run.state.step == 2 and run.checkpoint == root / "step_000000002"
    (notice,) = run.notices
    assert str(path) in notice
    (root / "step_000000002" / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="2 problems in all"):
        newest_checkpoint(Resumption(folder=tmp_path, config=RECIPES["demo"]()))
    write(root, 3)  # the same step again takes the place of the damaged one
    assert newest_checkpoint(Resumption(folder=tmp_path, config=RECIPES["demo"]())).state.step == 3


def write(root, step):
    recorder = RecorderState(steps_checked=step, guard=CollapseGuard().state)
    facts = {"train_images": 3, "val_images": 2, "steps_per_epoch": 4, "processes": 1, "rounding": {}}
    state = CheckpointState(step=step, epoch=1, **facts, seconds=1.0, phase_seconds={}, pending=None, recorder=recorder)
    content = msgspec.json.encode(state)
    write_checkpoint(root / f"step_{step:09d}", {"model.a": torch.full((3,), float(step))}, content, [])


def test_a_kill_at_any_moment_of_the_writing_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    """Every call that changes the disk is the last one, once."""
    root, moment = tmp_path / "checkpoint", 0
    write(root, 1)
    places = [(checkpoint, name) for name in ("write_tensor_file", "replace_file", "link_or_copy", "sync_folder")]
    places += [(checkpoint.os, "rename"), (checkpoint.shutil, "rmtree")]
    calls = []

    def counted(honest, most):
        def call(*arguments, **options):
            calls.append(honest)
            if len(calls) > most:
                killed()
            return honest(*arguments, **options)

        return call

    while True:
        calls.clear()
        with monkeypatch.context() as patch:
            for owner, name in places:
                patch.setattr(owner, name, counted(getattr(owner, name), moment))
            try:
                write(root, moment + 2)
                break
            except SystemExit:
                pass
        run = newest_checkpoint(Resumption(folder=tmp_path, config=RECIPES["demo"]()))
        assert run.state.step >= 1 and run.notices == ()
        moment += 1
    assert moment >= 6 and read_state(root / f"step_{moment + 2:09d}").step == moment + 2


def test_a_disk_that_is_full_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    root = tmp_path / "checkpoint"
    write(root, 1)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "sync_folder", full)
    with pytest.raises(StorageError, match="step_000000002: cannot be written"):
        write(root, 2)
    assert os.listdir(root) == ["step_000000001"]


def test_the_guard_goes_on_as_if_it_had_never_stopped():
    draw = random.Random(3)
    losses = [draw.uniform(0.9, 1.1) * (1 if step < 900 else 3) for step in range(1, 1400)]
    whole, parts = CollapseGuard(), CollapseGuard()
    for step, loss in enumerate(losses, start=1):
        expected, found = whole.add(step, loss), parts.add(step, loss)
        assert found == expected
        if step % 137 == 0:
            parts = CollapseGuard(msgspec.json.decode(msgspec.json.encode(parts.state), type=GuardState))
    assert parts.state == whole.state and whole.state.named


def start(folder, *more):
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "maskperf", *small_run_arguments(folder, *more)]
    with default_signals():
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_steps(run, steps, process):
    while process.poll() is None:
        time.sleep(0.02)
        path = run / "metrics.jsonl"
        if path.exists() and path.read_bytes().count(b'"kind":"step"') >= steps:
            return
    raise AssertionError(process.communicate()[0])


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(one, marks=pytest.mark.slow) for one in (signal.SIGTERM, signal.SIGUSR1))],
)
def test_a_signal_saves_and_ends_with_its_code_and_the_run_goes_on(unbroken, tmp_path, number):
    process = start(tmp_path, *THREE_EPOCHS, "system.log_every_steps=1")
    wait_for_steps(tmp_path / "run", 1, process)
    process.send_signal(number)
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == (EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_REQUEUE), shown
    assert f"{number.name}: a checkpoint of step " in shown and f"resume={tmp_path / 'run'}" in shown
    assert log_events(tmp_path / "run")[-1]["metadata"]["status"] == "aborted"
    assert small_run(tmp_path, *THREE_EPOCHS, "resume=auto") == EXIT_DONE
    assert_equal_runs(tmp_path / "run", unbroken)


@pytest.mark.slow
def test_two_processes_go_on_bitwise_where_both_were_stopped(tmp_path):
    more = (*THREE_EPOCHS, "processes=2", "system.log_every_steps=1")
    whole = start(tmp_path / "unbroken", *more)
    shown, _ = whole.communicate(timeout=240)
    assert whole.returncode == EXIT_DONE, shown
    process = start(tmp_path, *more)
    wait_for_steps(tmp_path / "run", 4, process)
    process.send_signal(signal.SIGTERM)
    shown, _ = process.communicate(timeout=240)
    assert process.returncode == EXIT_REQUEUE, shown
    resumed = start(tmp_path, *more, "resume=auto")
    shown, _ = resumed.communicate(timeout=240)
    assert resumed.returncode == EXIT_DONE, shown
    assert "resuming step " in shown and shown.count("done, without targets") == 1  # one process speaks
    assert_equal_runs(tmp_path / "run", tmp_path / "unbroken" / "run")


def test_a_second_ctrl_c_ends_at_once():
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with StopSignals(speaks=False) as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_layer_in_one_way_of_the_rpn_head_alone_is_refused_at_the_start(tmp_path, monkeypatch, capsys):
    honest = RpnHead.forward
    monkeypatch.setattr(RpnHead, "forward", lambda self, feature: honest(self, feature.relu()))
    assert small_run(tmp_path, *NO_TARGETS) == EXIT_USAGE
    message = capsys.readouterr().err
    assert "RpnHead.forward and of_patches" in message and "speed.without=sparse_rpn_backward" in message


def test_a_layer_in_one_way_of_the_mask_head_alone_is_refused_at_the_start(monkeypatch):
    honest = MaskPredictor.forward
    monkeypatch.setattr(MaskPredictor, "forward", lambda self, hidden: honest(self, hidden + 0.1))
    with pytest.raises(ConfigError, match=r"MaskPredictor\.of_class"):
        build.build_model(RECIPES["demo"]().model, 3)


@pytest.mark.parametrize("is_called", [True, False])
def test_a_trainable_parameter_without_a_gradient_is_named_after_the_first_step(
    tmp_path, monkeypatch, capsys, is_called
):
    """The layer is used nowhere, or in forward, which computes proposals, and adds nothing to them."""
    initialize, honest = RpnHead.__init__, RpnHead.forward

    def with_another_layer(self, channels, anchors, num_convs=1):
        initialize(self, channels, anchors, num_convs)
        self.forgotten = torch.nn.Conv2d(channels, channels, 1)

    def forward(self, feature):
        return honest(self, feature + 0 * self.forgotten(feature) if is_called else feature)

    monkeypatch.setattr(RpnHead, "__init__", with_another_layer)
    monkeypatch.setattr(RpnHead, "forward", forward)
    assert small_run(tmp_path, *NO_TARGETS) == EXIT_USAGE
    message = capsys.readouterr().err
    assert "rpn.head.forgotten.weight, rpn.head.forgotten.bias" in message
    assert len(step_lines(tmp_path / "run")) <= 1


@pytest.mark.slow
def test_killed_at_ten_moments_and_resumed_a_run_is_equal_ten_times_of_ten(unbroken, tmp_path):
    """With a checkpoint as often as they can be written; the moments are from the first file to the last step."""
    draw, resumed_at, number = random.Random(11), [], 0
    while len(resumed_at) < 10:
        number += 1
        folder = tmp_path / str(number)
        arguments = (*THREE_EPOCHS, "checkpoint.minutes=0.0001", "resume=auto")
        process = start(folder, *arguments)
        steps = draw.randint(0, 8)
        while not steps and process.poll() is None and not (folder / "run").exists():
            time.sleep(0.001)
        if steps:
            wait_for_steps(folder / "run", steps, process)
        time.sleep(draw.uniform(0, 0.5))
        process.kill()
        process.communicate()
        if (folder / "run" / "results.json").exists():  # it was over already
            continue
        process = start(folder, *arguments)
        shown, _ = process.communicate()
        assert process.returncode == EXIT_DONE, shown
        resumed_at += read_results(folder / "run")["resumed_at_steps"]
        assert_equal_runs(folder / "run", unbroken)
    print(f"resumed at {resumed_at}")
    assert len(set(resumed_at)) >= 3  # the moments are different ones
