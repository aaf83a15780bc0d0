import json
import math
import re
from pathlib import Path

import msgspec
import pytest
from synthetic_contents import synthetic_analysis
from synthetic_run_folders import append_record, write_metrics, write_results, write_run_folder

from maskperf.errors import DataError, UserError
from maskperf.recipes import OWN_DATA
from maskperf.report.contents import TERM_TITLES
from maskperf.report.gather import gather
from maskperf.structures import LOSS_NAMES


@pytest.fixture
def folder(tmp_path):
    return write_run_folder(tmp_path / "run")


def page_of(path):
    contents = gather([path], [])
    assert len(contents.runs) == 1
    return contents.runs[0]


def change_json(path, change):
    """Let `change` alter the content of a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def remove(folder, *names):
    for name in names:
        (folder / f"{name}.json").unlink()


def has_note(page, *parts):
    return any(all(part in note for part in parts) for note in page.notes)


def test_a_whole_run_folder_fills_every_part(folder):
    contents = gather([folder], [])
    page = contents.runs[0]
    assert contents.title == "Mask R-CNN: coco_batch_96" and contents.sentence == page.verdict.sentence
    assert (page.name, page.recipe, page.verdict.state) == ("run", "coco_batch_96", "reached")
    assert page.verdict.sentence == "Both targets met in epoch 14 after 19.3 minutes."
    assert (page.verdict.box_ap, page.verdict.mask_target) == (0.3785, 0.339)
    assert [point.epoch for point in page.evaluations] == list(range(1, 15))
    assert 0 < page.evaluations[0].minutes < page.evaluations[-1].minutes < 19.3
    assert len(page.losses) == 40 and page.losses[4].total == pytest.approx(1.055)
    assert (page.losses[4].mask, page.losses[4].objectness) == (0.405, 0.1)
    assert page.phases == pytest.approx({"forward": 579.0, "backward": 347.4, "other": 231.6})
    assert [(row.name, row.box_ap, row.mask_ap) for row in page.categories] == [("cat", 0.5, 0.4), ("dog", None, None)]
    assert [picture.title for picture in page.pictures] == ["a.jpg"]
    assert [(entry.event, entry.text) for entry in page.guard] == [("summary", "40 steps checked: nothing noticed.")]
    settings = {("batch size", "96"), ("seed", "4000000007"), ("decay steps", "12000, 16000")}
    assert settings <= set(page.settings)
    assert {("GPUs", "8 x Made Up GPU, 80 GiB"), ("torch", "2.13.0")} <= set(page.system)
    assert page.images_per_second == 120.5 and page.peak_memory == (("process", 4.25),)
    assert tuple(TERM_TITLES) == LOSS_NAMES


def test_own_data_is_not_called_synthetic(tmp_path):
    folder = write_run_folder(tmp_path / "run", recipe="demo")
    assert has_note(page_of(folder), "it trains a small network on synthetic images")
    change_json(folder / "config.json", lambda config: config["data"].update(generate_images=[0, 0]))
    assert has_note(page_of(folder), "A demo is not a submission") and not has_note(page_of(folder), "synthetic")


def test_the_analysis_and_the_twelve_numbers_of_a_run_are_read(folder):
    assert page_of(folder).analysis is None and page_of(folder).categories[0].missed is None
    analysis = msgspec.structs.replace(synthetic_analysis(), categories=("cat", "dog"), confusions=((0, 2, 3),))
    (folder / "analysis.json").write_bytes(msgspec.json.encode(analysis))
    change_json(folder / "results.json", lambda results: results.update(box_stats={"AP": 0.5}, mask_stats={"AP": -1}))
    page = page_of(folder)
    assert page.analysis == analysis and page.stats == (("AP", 0.5, None),)
    assert [row.missed for row in page.categories] == [3, 0]


def test_every_rule_is_shown_and_a_drawn_seed_breaks_none(folder):
    rules = page_of(folder).rules
    assert len(rules) > 20 and [row.rule for row in rules if not row.kept] == []
    command = "python -m maskperf run coco_batch_96 seed=4000000007"
    change_json(folder / "environment.json", lambda environment: environment.update(command_line=command))
    page = page_of(folder)
    assert [row.field for row in page.rules if not row.kept] == ["seed"]
    assert not page.is_closed and not has_note(page, "rules of the closed division")
    change_json(folder / "config.json", lambda config: config["mlperf"].update(division="closed"))
    page = page_of(folder)
    assert page.is_closed and has_note(page, f"of {len(rules)} rules of the closed division are not kept")


def test_a_coco_run_has_a_place_among_the_published_systems(tmp_path):
    contents = gather([write_run_folder(tmp_path / "run", minutes=1.0)], [])
    own = contents.places[0]
    assert len(contents.places) == 24 and own.is_this
    assert (own.minutes, own.accelerators, own.minutes_times_accelerators) == (1.0, 8, 8.0)
    assert (own.accelerator, own.batch_size) == ("Made Up GPU", 96)
    assert contents.places_note.startswith("The time of one run, not the mean")
    assert contents.band.batch_size == 96 and contents.band.epochs[0].epoch == 1
    (tmp_path / "run" / "environment.json").write_text(json.dumps({"gpus": [], "processes": 2}))
    contents = gather([tmp_path / "run"], [])
    own = next(place for place in contents.places if place.is_this)
    assert (own.accelerators, own.minutes_times_accelerators) == (None, None)
    assert "not known" in contents.places_note


def test_a_demo_says_that_it_is_no_submission_and_has_no_place(tmp_path):
    contents = gather([write_run_folder(tmp_path / "run", recipe="demo", status="aborted")], [])
    assert contents.runs[0].notes[0].startswith("A demo is not a submission")
    assert contents.places == () and "targets are not those of the benchmark" in contents.places_note
    assert contents.band is None


def test_a_training_on_own_data_is_not_compared_with_the_benchmark(tmp_path):
    folder, none = write_run_folder(tmp_path / "run"), {"box_target": 0.0, "mask_target": 0.0}
    change_json(folder / "config.json", lambda config: config["evaluation"].update(none))
    assert has_note(gather([folder], []).runs[0], "the benchmark's are")
    change_json(folder / "config.json", lambda config: config.update(recipe=OWN_DATA))
    contents = gather([folder], [])
    assert contents.places == () and contents.places_note == ""
    assert not any(has_note(run, "the benchmark's") for run in contents.runs)


def test_a_run_stopped_by_the_guard_gives_the_reason(tmp_path):
    folder = write_run_folder(tmp_path / "run", status="aborted", epochs=2, run_stop=None)
    text = "step 40 (epoch 3): not a finite number. Losses: mask nan."
    event = {"event": "non-finite", "step": 40, "epoch": 3, "text": text}
    write_results(folder, status="aborted", reason=text, guard={"steps_checked": 40, "events": [event]})
    (folder / "metrics.jsonl").unlink()
    write_metrics(folder / "metrics.jsonl", 40, mask=math.nan)
    append_record(folder / "mlperf.log", "maskperf_stop", text, 21.0, step=40)
    page = page_of(folder)
    assert page.verdict.state == "aborted"
    assert page.verdict.sentence.endswith("last evaluation in epoch 2: step 40 (epoch 3): not a finite number.")
    last = page.losses[-1]
    assert (last.total, last.mask, last.box) == (None, None, 0.2)
    assert [(entry.event, entry.text) for entry in page.guard[1:]] == [("summary", "40 steps checked: 1 event.")]


def test_a_run_ended_by_an_error_has_no_results_and_is_aborted(tmp_path):
    folder = write_run_folder(tmp_path / "run", status="aborted")
    remove(folder, "results")
    lines = (folder / "mlperf.log").read_text().splitlines(keepends=True)
    last = max(index for index, line in enumerate(lines) if '"eval_start"' in line)
    (folder / "mlperf.log").write_text("".join([*lines[:last], lines[-1]]))
    verdict = page_of(folder).verdict
    assert verdict.state == "aborted" and "an error or Ctrl-C" in verdict.sentence


def test_a_killed_run_is_reported_from_what_is_there(folder):
    remove(folder, "results", "pictures")
    log = (folder / "mlperf.log").read_text().splitlines(keepends=True)
    second = [index for index, line in enumerate(log) if '"eval_stop"' in line][1]
    (folder / "mlperf.log").write_text("".join(log[: second + 3]) + log[second + 3][:70])
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind":"step","step":41,')
    page = page_of(folder)
    assert (page.verdict.state, page.verdict.minutes) == ("unfinished", None)
    assert "40 steps" in page.verdict.sentence and "last evaluation in epoch 2" in page.verdict.sentence
    assert len(page.losses) == 40 and len(page.evaluations) == 2
    assert has_note(page, "metrics.jsonl: the last line is torn") and has_note(page, "mlperf.log", "torn")
    assert list(page.phases) == ["training", "evaluation", "other"]


def test_a_run_that_only_began_is_reported(folder):
    remove(folder, "results", "pictures", "environment")
    (folder / "metrics.jsonl").unlink()
    (folder / "mlperf.log").write_text("")
    page = page_of(folder)
    assert page.verdict.state == "unfinished" and page.losses == () and page.phases == {}
    assert "mlperf.log has no line yet." in page.notes and ("batch size", "96") in page.settings


def test_a_run_without_its_log_is_reported_from_its_results(folder):
    (folder / "mlperf.log").unlink()
    row = {"epoch": 3, "step": 9, "box_ap": 0.38, "mask_ap": 0.34, "seconds_since_start": 90.0, "mean_loss": 1.0}
    row |= {"images_per_second": 8.0, "evaluation_seconds": 5.0}
    write_results(folder, epochs_table=[row])
    page = page_of(folder)
    assert [(point.epoch, point.minutes) for point in page.evaluations] == [(3, 1.5)]
    assert page.verdict.state == "reached" and "mlperf.log is missing." in page.notes


@pytest.mark.parametrize("lacks", [("data", "skip_bad"), ("evaluation", "every_epochs"), ("optimizer", "momentum")])
def test_a_config_of_before_a_key_was_added_is_checked_with_its_default_and_a_note(lacks, folder):
    whole = page_of(folder)
    change_json(folder / "config.json", lambda config: config[lacks[0]].pop(lacks[1]))
    page = page_of(folder)
    assert page.rules == whole.rules != ()
    (note,) = set(page.notes) - set(whole.notes)
    assert note.startswith("config.json: written by an earlier version, without " + ".".join(lacks))


def test_a_config_with_a_key_that_is_gone_is_shown_but_not_checked(folder):
    change_json(folder / "config.json", lambda config: config["optimizer"].update(momentum_of_old=0.9))
    page = page_of(folder)
    assert page.rules == () and ("batch size", "96") in page.settings
    assert has_note(page, "not of this version", "momentum_of_old")


def test_an_older_run_without_the_new_fields_is_reported(folder):
    added = ("time_account", "peak_memory_gib", "guard", "reason")
    change_json(folder / "results.json", lambda results: [results.pop(name) for name in added])
    page = page_of(folder)
    assert page.peak_memory == (("highest on record", 3.5),) and page.guard == ()
    assert list(page.phases) == ["training", "evaluation", "other"]


ABORTED = {"status": "aborted"}
CLOCK_MOVED = ("maskperf_wall_clock_moved_seconds", 3600.0)
STOPPED = ("maskperf_stop", "the loss is lost")
NEVER_EVALUATED = {**ABORTED, "minutes": 0.5, "box_ap": None, "mask_ap": None, "time_account": {}}
RESUMED = {"resumed_at_steps": [120, 340]}
DIFFERENT = {**ABORTED, "reason": "engines do not agree", "engine_differences": ["box AP 0.1 and 0.2"]}


@pytest.mark.parametrize(
    ("log", "results", "record", "state", "text"),
    [
        ({}, {}, None, "reached", "Open division: model, data, method and targets were free"),
        ({}, {"time_account": {"forward": 1158.0 * 0.99}}, None, "reached", "time account differ from the 1158.0 s"),
        ({"eval_accuracy": {"BBOX": 0.3, "SEGM": 0.3}}, {}, None, "missed", "calls itself a success, but no"),
        ({}, {}, CLOCK_MOVED, "reached", "moved by 3600.0 s"),
        ({}, {"minutes": 10.0}, None, "reached", "differ by +558.0 s"),
        ({"run_stop": None}, DIFFERENT, None, "missed", "fast and the official engine differ: box AP 0.1 and 0.2."),
        ({"run_stop": None}, DIFFERENT, None, "missed", "no success all the same: engines do not agree"),
        (ABORTED, ABORTED, None, "missed", "14 epochs (19.3 minutes); nearest in epoch 14: box AP 0.0070 and mask AP"),
        ({**ABORTED, "epochs": 0}, NEVER_EVALUATED, STOPPED, "aborted", "30.0 seconds, no evaluation: the loss is"),
        ({}, RESUMED, None, "reached", " minutes. Resumed at step 120, 340: not a benchmark result."),
    ],
)
def test_a_note_or_the_verdict_says_what_a_reader_must_know(tmp_path, log, results, record, state, text):
    folder = write_run_folder(tmp_path / "run", **log)
    write_results(folder, **results)
    if record is not None:
        append_record(folder / "mlperf.log", *record, 22.0)
    page = page_of(folder)
    assert page.verdict.state == state and (has_note(page, text) or text in page.verdict.sentence)


def test_a_small_gap_of_the_time_account_gets_no_note_and_notices_are_on_the_page(folder):
    write_results(folder, time_account={"forward": 1158.0 * 0.997}, notices=["a.json: 3 images left out"])
    page = page_of(folder)
    assert page.notices == ("a.json: 3 images left out",) and not has_note(page, "time account")


def without_targets(folder, **results):
    """Return the page of a run without targets; `results` replace fields of its results.json."""
    write_run_folder(folder, targets=(0, 0))
    change_json(folder / "config.json", lambda config: config["evaluation"].update(box_target=0, mask_target=0))
    write_results(folder, **{"status": "done", "targets": (0, 0), "reason": "", **results})
    return page_of(folder)


@pytest.mark.parametrize(
    ("results", "state", "text"),
    [
        ({}, "done", "Trained to its end, without targets: 14 epochs after 19.3 minutes; best in epoch 14: box AP"),
        ({"status": "success"}, "done", "Trained to its end, without targets"),  # as it was called before
        ({"status": "aborted", "reason": "engines do not agree"}, "aborted", "engines do not agree"),
    ],
)
def test_a_run_without_targets_is_done_at_its_end(tmp_path, results, state, text):
    page = without_targets(tmp_path / "run", **results)
    assert page.verdict.state == state and text in page.verdict.sentence
    assert has_note(page, "The run had no targets; the benchmark's are") and not has_note(
        page, "calls itself a success"
    )


def test_five_runs_without_targets_have_no_score_and_their_logs_alone_are_done_too(tmp_path):
    for number in range(5):
        without_targets(tmp_path / f"run_{number}")
    contents = gather([tmp_path / f"run_{number}" for number in range(5)], [])
    assert contents.score is None and contents.sentence.startswith("5 of 5 runs trained to their end")
    assert page_of(tmp_path / "run_0" / "mlperf.log").verdict.state == "done"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("results.json", "{", "results.json"),
        ("results.json", '{"status": "success", "seconds": "long"}', "$.seconds"),
        ("results.json", "[]", "results.json"),
        ("config.json", "nonsense", "config.json"),
        ("environment.json", "[1]", "environment.json"),
        ("pictures.json", '[{"kind": "best"}]', "pictures.json"),
        ("metrics.jsonl", '{"kind":"step","step":1,"epoch":1}\nbroken\n', "line 2"),
        ("metrics.jsonl", '{"kind":"step","step":1,"epoch":1,"total":NaN}\n', "line 1"),
        ("metrics.jsonl", '{"kind":"step","step":"one","epoch":1}\n', "$.step"),
    ],
)
def test_a_broken_file_is_named_with_its_fix(name, text, expected, folder):
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=f"{re.escape(str(folder / name))}.*Fix:") as caught:
        gather([folder], [])
    assert expected in str(caught.value)


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, lambda path: path.write_text("hello\n")])
def test_a_path_that_is_no_run_is_refused(make, tmp_path):
    make(tmp_path / "odd")
    with pytest.raises(UserError, match=r"odd.*Fix:"):
        gather([tmp_path / "odd"], [])
