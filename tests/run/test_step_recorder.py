import io
import math

import pytest
import torch

from maskperf.engine.step import StepResult
from maskperf.engine.stopwatch import Stopwatch
from maskperf.errors import LostRunError, NonFiniteError, UserError
from maskperf.run.metrics import MetricsWriter, read_metrics
from maskperf.run.progress import Progress
from maskperf.run.step_recorder import MOST_STEPS_UNREAD, StepRecorder
from maskperf.run.summary import EpochRecord
from maskperf.run.time_account import TimeAccount


def _result(total=1.0, *, problems=(), world=2, dropped=0):
    not_finite = torch.zeros(world, 3)
    for rank, part in problems:
        not_finite[rank, part] = 1
    watch = Stopwatch(torch.device("cpu"))
    for phase in ("forward", "backward", "exchange", "optimizer"):
        watch.mark(phase)
    losses = torch.full((5,), total / 5)
    return StepResult(losses, torch.tensor(dropped), not_finite, 0.02, 4, watch)


@pytest.fixture
def make(tmp_path):
    made = []

    def recorder(every_steps=10, stop_on_collapse=True):
        progress = Progress(2, 100, io.StringIO(), every_steps=every_steps)
        metrics = MetricsWriter(tmp_path / "metrics.jsonl")
        account = TimeAccount()
        account.start()
        made.append(
            StepRecorder(
                metrics, progress, account, every_steps=every_steps, world=2, stop_on_collapse=stop_on_collapse
            )
        )
        return made[-1]

    yield recorder
    for one in made:
        one.close()


def _lines(tmp_path, kind):
    return [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == kind]


@pytest.mark.parametrize("every_steps", [1, 7, 10, 1000])
@pytest.mark.parametrize("first_bad", [1, 10, 23])
def test_a_problem_is_known_at_most_ten_steps_after_it_happened(make, every_steps, first_bad):
    recorder = make(every_steps)
    for step in range(1, first_bad):
        recorder.add(_result(), epoch=1, step=step, data_wait_seconds=0.0)
    with pytest.raises(NonFiniteError) as caught:
        for step in range(first_bad, first_bad + MOST_STEPS_UNREAD):
            recorder.add(_result(problems=[(1, 1)]), epoch=1, step=step, data_wait_seconds=0.0)
    assert caught.value.step == first_bad
    assert step < first_bad + MOST_STEPS_UNREAD


def test_the_message_names_step_part_process_losses_and_learning_rate(make, tmp_path):
    recorder = make(1)
    with pytest.raises(NonFiniteError) as caught:
        recorder.add(_result(math.nan, problems=[(1, 0), (0, 2)]), epoch=3, step=42, data_wait_seconds=0.0)
    text = str(caught.value)
    for part in ("step 42", "epoch 3", "loss of process 1", "weight of process 0", "mask nan", "rate: 0.02"):
        assert part in text
    (line,) = _lines(tmp_path, "guard")
    assert line["event"] == "non-finite" and line["step"] == 42 and line["text"] == text
    assert _lines(tmp_path, "step")[0]["mask"] is None  # strict JSON has no word for it


def test_the_last_steps_of_an_epoch_are_judged_before_its_evaluation(make):
    recorder = make(10)
    for step in range(1, 4):
        recorder.add(_result(problems=[(0, 2)] if step == 3 else ()), epoch=1, step=step, data_wait_seconds=0.0)
    with pytest.raises(NonFiniteError, match="step 3 "):
        recorder.epoch_summary()


def _collapse(recorder):
    for step in range(1, 2001):
        loss = 1.0 + 0.02 * math.sin(step) if step <= 1200 else 4.0 + 0.02 * math.sin(step)
        recorder.add(_result(loss), epoch=1, step=step, data_wait_seconds=0.0)


def test_a_finite_collapse_stops_the_run(make, tmp_path):
    recorder = make()
    with pytest.raises(LostRunError) as caught:
        _collapse(recorder)
    assert not isinstance(caught.value, NonFiniteError)
    assert 1200 < caught.value.step <= 1300
    assert _lines(tmp_path, "guard")[0]["event"] == "collapse"


def test_a_finite_collapse_is_only_named_where_the_user_wants_so(make, tmp_path):
    recorder = make(stop_on_collapse=False)
    _collapse(recorder)
    assert [event.event for event in recorder.events] == ["collapse"]
    assert recorder.steps_checked == 2000


def test_dropped_masks_end_the_run(make):
    with pytest.raises(UserError, match="mask_slots_per_image"):
        make(1).add(_result(dropped=2), epoch=1, step=1, data_wait_seconds=0.0)


def test_the_time_account_has_the_phases_and_the_wait(make, tmp_path):
    recorder = make(2)
    for step in range(1, 5):
        recorder.add(_result(), epoch=1, step=step, data_wait_seconds=1e-7)
    account = recorder.account.phases()
    assert {"data wait", "forward", "backward", "exchange", "optimizer"} <= set(account)
    step = _lines(tmp_path, "step")[0]
    assert step["memory_gib"] > 0 and step["forward_seconds"] >= 0 and step["data_wait_seconds"] <= 1e-7


def test_an_evaluation_has_its_minutes_since_the_start(make, tmp_path):
    recorder = make()
    record = EpochRecord(
        epoch=2,
        step=20,
        mean_loss=1.0,
        box_ap=0.3,
        mask_ap=0.2,
        images_per_second=5.0,
        seconds_since_start=90.0,
        evaluation_seconds=7.0,
    )
    recorder.evaluation(record)
    (line,) = _lines(tmp_path, "evaluation")
    assert line["minutes"] == 1.5 and line["evaluation_seconds"] == 7.0 and line["box_ap"] == 0.3
    assert recorder.records == [record]
