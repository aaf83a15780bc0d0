import json
import shutil

import pytest
from synthetic_logs import write_log, write_logs, write_package, write_series
from synthetic_run_folders import write_run_folder

from maskperf.errors import DataError
from maskperf.report.gather import gather

FAILED = {"status": "aborted", "minutes": 30.0}


def own_place(contents):
    return next(place for place in contents.places if place.is_this)


@pytest.mark.parametrize(
    ("runs", "common", "score", "kept", "text"),
    [
        ([{}] * 5, {}, 19.5, [1, 2, 3], "the score is 19.500 minutes. Epochs compared with the reference's: passed"),
        ([{}, FAILED, {}, {}, {"minutes": 10.0}], {}, 19.467, [0, 2, 3], "4 of 5 runs reached"),
        ([{}, FAILED, {}, FAILED, {}], {}, None, [], "No score: 2 of 5 runs did not reach the targets"),
        ([{}] * 3, {}, None, [], "it takes 5 runs, and there are 3"),
        ([{"epochs": 9}] * 5, {"batch_size": 128}, 19.5, [1, 2, 3], "failed: 9.000 epochs"),  # too fast
    ],
)
def test_a_series_has_a_score_where_the_rules_give_one(tmp_path, runs, common, score, kept, text):
    contents = gather([write_series(tmp_path / "series", runs, **common)], [])
    found = contents.score
    assert found.score_minutes == (None if score is None else pytest.approx(score, abs=1e-3))
    assert [number for number, is_kept in enumerate(found.kept) if is_kept] == kept and len(found.kept) == len(runs)
    assert [took is None for took in found.minutes] == [run is FAILED for run in runs]
    assert text in found.sentence and (found.scaling_factor == 1.0) == ("passed" in text or "4 of" in text)


def test_a_series_is_named_as_one_and_placed_by_its_score(tmp_path):
    contents = gather([write_series(tmp_path / "series")], [])
    assert [run.name for run in contents.runs] == ["run_0", "run_1", "run_2", "run_3", "run_4"]
    assert contents.sentence == "5 of 5 runs reached their targets: score 19.50 minutes."
    assert contents.title == "Mask R-CNN: coco_batch_96, 5 runs" and "score of 5 runs" in contents.places_note
    contents = gather([write_series(tmp_path / "failed", [{}, FAILED, {}, FAILED, {}])], [])
    assert contents.places == () and "no score" in contents.places_note
    assert contents.sentence == "3 of 5 runs reached their targets, 2 missed them: no score."


def test_fewer_epochs_than_the_reference_scale_the_score_and_the_place(tmp_path):
    contents = gather([write_series(tmp_path / "series", [{"epochs": 13}] * 5, batch_size=48)], [])
    assert contents.score.scaling_factor == pytest.approx(13.1667 / 13, rel=1e-4)
    assert contents.score.score_minutes == pytest.approx(19.5)
    assert own_place(contents).minutes == pytest.approx(19.5 * contents.score.scaling_factor)
    assert "multiplied by the scaling factor" in contents.places_note


def test_a_run_that_its_series_counts_as_failed_has_no_time_with_its_folder_or_without(tmp_path):
    folder = write_series(tmp_path / "series")
    series = json.loads((folder / "series.json").read_text())
    series["runs"][2] |= {"exit_code": 5, "status": "failed"}
    (folder / "series.json").write_text(json.dumps(series))
    contents = gather([folder], [])
    assert contents.runs[2].verdict.state == "reached" and contents.score.minutes[2] is None
    assert contents.score.score_minutes == pytest.approx((19.4 + 19.6 + 19.7) / 3)
    shutil.rmtree(folder / "run_2")
    contents = gather([folder], [])
    assert contents.runs[2].verdict.state == "unfinished" and contents.score.minutes[2] is None
    assert any("folder run_2 is not there" in note for note in contents.runs[2].notes)
    assert any("failed: its command ended with exit code 5" in note for note in contents.runs[2].notes)


def test_the_results_folder_of_a_package_is_a_series(tmp_path):
    folder = write_package(tmp_path / "package") / "results" / "synthetic_system" / "maskrcnn"
    contents = gather([folder], [])
    assert [run.name for run in contents.runs] == [f"result_{number}.txt" for number in range(5)]
    assert contents.score.score_minutes == pytest.approx(19.5)


def test_five_single_runs_of_one_kind_have_a_score_and_others_have_none(tmp_path):
    logs = write_logs(tmp_path / "logs")
    assert gather(logs, []).score.score_minutes == pytest.approx(19.5)
    assert gather(logs[:4], []).score is None
    odd = write_log(tmp_path / "odd.txt", batch_size=48)
    assert gather([*logs[:4], odd], []).score is None
    assert "multiplied" not in gather(logs, []).places_note
    some_failed = gather(write_logs(tmp_path / "some", [{}, FAILED, {}]), [])
    assert some_failed.sentence == "2 of 3 runs reached their targets, 1 missed them." and len(some_failed.places) == 24


def test_compared_runs_are_beside_and_change_nothing(tmp_path):
    alone = gather([write_run_folder(tmp_path / "a" / "run")], [])
    others = [write_run_folder(tmp_path / "b" / "run"), write_series(tmp_path / "series")]
    both = gather([tmp_path / "a" / "run"], others)
    assert (both.sentence, both.places, both.score) == (alone.sentence, alone.places, alone.score)
    assert [run.name for run in both.runs] == ["a/run"]
    assert [run.name for run in both.compared] == ["b/run", "run_0", "run_1", "run_2", "run_3", "run_4"]


def test_names_differ_where_files_are_called_alike(tmp_path):
    first = write_log(tmp_path / "one" / "maskrcnn" / "result_0.txt")
    second = write_log(tmp_path / "two" / "maskrcnn" / "result_0.txt")
    names = [run.name for run in gather([first, second], []).runs]
    assert names == ["one/maskrcnn/result_0.txt", "two/maskrcnn/result_0.txt"]
    assert gather([write_log(tmp_path / "run" / "mlperf.log")], []).runs[0].name == "run/mlperf.log"


@pytest.mark.parametrize("text", ["{", "[]", '{"runs": []}', '{"runs": [{"folder": 3}]}'])
def test_a_broken_series_file_is_named(text, tmp_path):
    folder = write_series(tmp_path / "series")
    (folder / "series.json").write_text(text)
    with pytest.raises(DataError, match="series.json.*Fix:"):
        gather([folder], [])


def test_a_series_of_run_folders_fills_all_pages(tmp_path):
    folder = tmp_path / "series"
    for number in range(5):
        write_run_folder(folder / f"run_{number}", minutes=10.0 + number)
    entries = [{"folder": f"run_{number}", "exit_code": 0, "status": "success"} for number in range(5)]
    (folder / "series.json").write_text(json.dumps({"recipe": "coco_batch_96", "runs": entries}))
    contents = gather([folder], [])
    assert contents.score.score_minutes == pytest.approx(12.0)
    assert (own_place(contents).minutes, own_place(contents).accelerators) == (pytest.approx(12.0), 8)
