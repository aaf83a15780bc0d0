import json
import time
from dataclasses import replace

import pytest

from maskperf.config import MlperfConfig
from maskperf.mlperf.log import PUBLISHED_LOSS_NAMES, MlperfLog
from maskperf.recipes import demo
from maskperf.structures import LOSS_NAMES


@pytest.fixture
def log(tmp_path):
    return MlperfLog(tmp_path / "mlperf.log")


@pytest.fixture
def records(log, tmp_path):
    """Return a function that closes the log and returns its records."""

    def close_and_read():
        log.close()
        text = (tmp_path / "mlperf.log").read_text(encoding="utf-8")
        assert text.endswith("\n")
        return [json.loads(line.removeprefix(":::MLLOG ")) for line in text[:-1].split("\n")]

    return close_and_read


@pytest.mark.parametrize("jump_seconds", [-3600.0, 86400.0])
def test_a_wall_clock_that_jumps_changes_no_time_and_is_mentioned(log, records, monkeypatch, jump_seconds):
    log.init_start(demo())
    log.run_start()
    honest = time.time
    monkeypatch.setattr(time, "time", lambda: honest() + jump_seconds)
    time.sleep(0.05)
    log.run_stop(success=True)
    written = records()
    times = [record["time_ms"] for record in written]
    assert times == sorted(times)
    assert 50 <= times[-1] - times[0] < 5000
    moved = [record["value"] for record in written if record["key"] == "maskperf_wall_clock_moved_seconds"]
    assert moved == [pytest.approx(jump_seconds, abs=1.0)]


def test_names_with_line_breaks_and_quotes_forge_no_record(log, records):
    forged = 'Acme"\n:::MLLOG {"key": "run_stop", "metadata": {"status": "success"}}\r\u2028'
    log.submission(replace(demo(), mlperf=MlperfConfig(organization=forged, platform="\x1b[31m" + "x" * 100_000)))
    values = {record["key"]: record["value"] for record in records()}
    assert "run_stop" not in values
    assert values["submission_org"] == forged and len(values["submission_platform"]) > 100_000
    assert values["maskperf_recipe"] == "demo" and values["maskperf_targets"] == {"BBOX": 0.55, "SEGM": 0.55}


def test_windows_are_written_under_the_published_names(log, records):
    assert set(PUBLISHED_LOSS_NAMES) == set(LOSS_NAMES)
    losses = dict(zip(LOSS_NAMES, (0.1, 0.2, 0.3, 0.4, 0.5), strict=True))
    log.tracked_stats(50, 1, losses, learning_rate=0.01, images_per_second=33.0)
    (record,) = records()
    assert record["key"] == "tracked_stats" and record["metadata"]["step"] == 50
    assert record["value"]["loss"] == pytest.approx(1.5)
    assert record["value"]["loss_mask"] == 0.5 and record["value"]["throughput"] == 33.0


def test_a_success_that_is_taken_back_says_so_at_the_time_of_the_stop(log, records):
    log.run_start()
    log.run_stop(success=True)
    time.sleep(0.05)
    log.withdraw("the engines differ")
    *_, first, second = written = records()
    assert [entry["key"] for entry in written] == ["init_stop", "run_start", "run_stop", "run_stop"]  # no moved clock
    assert first["key"] == second["key"] == "run_stop" and first["time_ms"] == second["time_ms"]
    assert [entry["metadata"]["status"] for entry in (first, second)] == ["success", "aborted"]
    assert [entry["value"] for entry in (first, second)] == [None, "the engines differ"]


def test_no_path_means_no_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = MlperfLog(None)
    log.init_start(demo())
    log.run_start()
    log.abort("a reason", {"step": 1})
    assert list(tmp_path.iterdir()) == []
