import json
import math
import time
from contextlib import ExitStack, nullcontext

import pytest
import torch

from maskperf.config import RunConfig, SystemConfig
from maskperf.engine.distributed import Topology
from maskperf.engine.step import StepResult
from maskperf.engine.stopwatch import Stopwatch
from maskperf.engine.under_way import Step
from maskperf.errors import LostRunError, NonFiniteError, UserError
from maskperf.mlperf.log import MlperfLog
from maskperf.run.recorder import MOST_STEPS_UNREAD, StepRecorder
from maskperf.run.session import PHASES, Session, TimeAccount
from maskperf.schema import WINDOW_STEPS, EpochRow, EvaluationLine, GuardLine, StepLine, read_metrics

STEP_PHASES = ("forward", "backward", "exchange", "optimizer")
TERMS = (0.5, 0.25, 1.0, 0.125, 2.0)


def step_result(losses=(0.2,) * 5, *, problems=(), world=2, dropped=0, learning_rate=0.02):
    not_finite = torch.zeros(world, 3)
    for rank, part in problems:
        not_finite[rank, part] = 1
    watch = Stopwatch(torch.device("cpu"))
    for phase in STEP_PHASES:
        watch.mark(phase)
    return StepResult(torch.tensor(losses), torch.tensor(dropped), not_finite, learning_rate, 4, watch)


@pytest.fixture
def make(tmp_path):
    with ExitStack() as resources:

        def recorder(every_steps=10, stop_on_collapse=True):
            on_collapse = "stop" if stop_on_collapse else "warn"
            system = SystemConfig(log_every_steps=every_steps, on_collapse=on_collapse)
            config, log = RunConfig(recipe="demo", system=system), MlperfLog(tmp_path / "mlperf.log")
            resources.callback(log.close)
            session = Session(config, Topology(world=2), tmp_path, log, resources)
            session.account.start()
            return StepRecorder(session, 100), session.account

        yield recorder


def add(recorder, step, result=None, epoch=1, wait=0.0):
    return recorder.add(Step(step, epoch, result or step_result(), wait))


def lines(tmp_path, kind):
    return [line for line in read_metrics(tmp_path / "metrics.jsonl") if isinstance(line, kind)]


def test_a_step_is_one_line_with_every_value_by_its_name_readable_at_once(make, tmp_path):
    recorder, _ = make(1)
    for step in (1, 2):
        assert add(recorder, step, step_result(TERMS), epoch=3, wait=1e-7)
        text = (tmp_path / "metrics.jsonl").read_text()
        assert len(text.splitlines()) == step
        line = json.loads(text.splitlines()[-1])
    expected = {"kind": "step", "step": 2, "epoch": 3, "objectness": 0.5, "rpn_box": 0.25, "classification": 1.0}
    expected |= {"box": 0.125, "mask": 2.0, "total": 3.875, "learning_rate": 0.02}
    assert list(line.items())[:10] == list(expected.items())
    names = ("images_per_second", "data_wait_seconds", "step_seconds", "memory_gib")
    assert list(line)[10:] == [*names, *(f"{phase}_seconds" for phase in STEP_PHASES)]
    assert line["memory_gib"] > 0 and 0 <= line["data_wait_seconds"] <= 1e-7 and line["images_per_second"] > 0


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_become_null(make, tmp_path, number):
    with pytest.raises(LostRunError):
        add(make(1)[0], 1, step_result((*TERMS[:4], number)))
    (line,) = lines(tmp_path, StepLine)
    assert line.mask is None and line.total is None and line.box == 0.125
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_older_lines_stay_and_a_line_cut_off_by_a_crash_is_left_out(make, tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        add(make(1)[0], step)
    for end, steps in ((None, [1, 2]), (-20, [1])):
        path.write_bytes(path.read_bytes()[:end])
        assert [line.step for line in read_metrics(path)] == steps


def test_an_evaluation_is_a_line_with_its_minutes_since_the_start(make, tmp_path):
    recorder, _ = make()
    found = {"step": 20, "epoch": 2, "box_ap": 0.3, "mask_ap": 0.2, "evaluation_seconds": 7.0}
    row = EpochRow(**found, mean_loss=1.0, images_per_second=5.0, seconds_since_start=90.0)
    recorder.evaluation(row)
    assert lines(tmp_path, EvaluationLine) == [EvaluationLine(**found, minutes=1.5)] and recorder.counted.rows == [row]


def test_a_window_is_logged_with_the_means_of_its_steps(make, tmp_path, monkeypatch):
    recorder, _ = make(1)
    clock = iter(0.5 * step for step in range(1, 10_000))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    recorder.start_epoch()
    for step in range(1, WINDOW_STEPS + 1):
        assert (tmp_path / "mlperf.log").read_text() == ""
        add(recorder, step, step_result((1.0, 1.0, 1.0, float(step), 1.0), learning_rate=0.01 * step))
    window = json.loads((tmp_path / "mlperf.log").read_text().removeprefix(":::MLLOG "))
    assert (window["metadata"]["step"], window["metadata"]["epoch_num"]) == (WINDOW_STEPS, 1)
    values = window["value"]
    assert values["loss_box_reg"] == pytest.approx((WINDOW_STEPS + 1) / 2) and values["loss_mask"] == pytest.approx(1)
    assert values["learning_rate"] == pytest.approx(0.01 * WINDOW_STEPS)
    mean_loss, speed = recorder.epoch_summary()
    assert mean_loss == pytest.approx(4 + (WINDOW_STEPS + 1) / 2)
    assert values["throughput"] == speed > 0


@pytest.mark.parametrize("every_steps", [1, 7, 10, 1000])
@pytest.mark.parametrize("first_bad", [1, 10, 23])
def test_a_problem_is_known_at_most_ten_steps_after_it_happened(make, every_steps, first_bad):
    recorder, _ = make(every_steps)
    for step in range(1, first_bad):
        add(recorder, step)
    with pytest.raises(NonFiniteError) as caught:
        for step in range(first_bad, first_bad + MOST_STEPS_UNREAD):
            add(recorder, step, step_result(problems=[(1, 1)]))
    assert caught.value.step == first_bad and step < first_bad + MOST_STEPS_UNREAD


def test_the_message_names_step_part_process_losses_and_learning_rate(make, tmp_path):
    recorder, _ = make(1)
    with pytest.raises(NonFiniteError) as caught:
        add(recorder, 42, step_result((math.nan,) * 5, problems=[(1, 0), (0, 2)]), epoch=3)
    text = str(caught.value)
    for part in ("step 42", "epoch 3", "loss of process 1", "weight of process 0", "mask nan", "rate: 0.02"):
        assert part in text
    assert lines(tmp_path, GuardLine) == [GuardLine(step=42, epoch=3, event="non-finite", text=text)]


def test_the_last_steps_of_an_epoch_are_checked_before_its_evaluation(make):
    recorder, _ = make(10)
    for step in range(1, 4):
        add(recorder, step, step_result(problems=[(0, 2)] if step == 3 else ()))
    with pytest.raises(NonFiniteError, match="step 3 "):
        recorder.epoch_summary()


@pytest.mark.parametrize("stops", [True, False])
def test_a_finite_collapse_is_named_and_stops_the_run_unless_the_user_wants_it_to_go_on(make, tmp_path, stops):
    recorder, _ = make(stop_on_collapse=stops)
    with pytest.raises(LostRunError) if stops else nullcontext() as caught:
        for step in range(1, 2001):
            loss = (1.0 if step <= 1200 else 4.0) + 0.02 * math.sin(step)
            add(recorder, step, step_result((loss / 5,) * 5))
    assert [line.event for line in lines(tmp_path, GuardLine)] == ["collapse"]
    assert [event.event for event in recorder.counted.events] == ["collapse"]
    assert not stops or not isinstance(caught.value, NonFiniteError)
    assert 1200 < recorder.counted.events[0].step <= 1300 and (recorder.counted.steps_checked == 2000) == (not stops)


def test_dropped_masks_end_the_run(make):
    with pytest.raises(UserError, match="mask_slots_per_image"):
        add(make(1)[0], 1, step_result(dropped=2))


def test_the_time_account_has_the_phases_of_the_steps_and_the_wait(make):
    recorder, account = make(2)
    for step in range(1, 5):
        add(recorder, step, wait=1e-7)
    assert {"data wait", *STEP_PHASES} <= set(account.phases())


def test_phases_and_the_rest_sum_to_the_whole_also_of_a_phase_that_fails():
    account = TimeAccount()
    assert account.total_seconds() == 0.0
    account.start()
    with pytest.raises(KeyError), account.measure("evaluation"):
        time.sleep(0.02)
        raise KeyError
    account.add("forward", 0.001)
    account.add("forward", 0.002)
    time.sleep(0.01)
    account.stop()
    total, phases = account.total_seconds(), account.phases()
    assert sum(phases.values()) == pytest.approx(total, rel=1e-9)
    assert phases["forward"] == pytest.approx(0.003) and phases["evaluation"] >= 0.02 and phases["other"] > 0
    assert list(phases) == [phase for phase in (*PHASES, "other") if phase in phases]
    time.sleep(0.01)
    account.stop()
    assert account.total_seconds() == total
    with pytest.raises(KeyError, match="lunch"):
        account.add("lunch", 1.0)
