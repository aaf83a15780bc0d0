import pytest
from official_checkers import run_in_process
from synthetic_logs import LEFT_OUT, by_time, later, log_records, log_text, record, up_to, write_log, write_package

from maskperf.mlperf import checkers
from maskperf.mlperf.read import read_log
from maskperf.mlperf.traps import check_traps, is_submission, meanings


def _log(tmp_path, records):
    path = tmp_path / "log.txt"
    path.write_text(log_text(records), encoding="utf-8")
    return read_log(path)


def _again_later(records, minutes):
    """Return a log whose run_start comes a second time, as a run that was taken up again may write it."""
    place = next(index for index, entry in enumerate(records) if entry["key"] == "eval_stop")
    again = {**record("run_start", None, 0), "time_ms": records[place]["time_ms"] + 1}
    return [*records[: place + 1], again, *records[place + 1 :]]


def _clock_back(records, minutes=60):
    half = len(records) // 2
    late = [{**entry, "time_ms": entry["time_ms"] - minutes * 60_000} for entry in records[half:]]
    return [*records[:half], *late]


def _stop_before_evaluation(records):
    stop = records[-1]
    place = max(index for index, entry in enumerate(records) if entry["key"] == "eval_accuracy")
    return [*records[:place], stop, *records[place:-1]]


TRAPS = [
    ("run_start is logged 2 times", lambda records: _again_later(records, 1)),
    ("s before that of line", _clock_back),
    ("eval_accuracy stands behind run_stop", _stop_before_evaluation),
    ("contains the word eval_accuracy", lambda records: [*records, record("note", "eval_accuracy fell", 30)]),
    ("contains the word global_batch_size", lambda records: [record("config", {"global_batch_size": 9}, 0), *records]),
]


def test_a_whole_log_has_no_findings(tmp_path):
    verdict = check_traps(read_log(write_log(tmp_path / "a.txt", tracked_every=50)))
    assert verdict.accepted and verdict.findings == ()


@pytest.mark.parametrize(("words", "spoil"), TRAPS)
def test_what_the_official_checker_lets_pass_is_refused(tmp_path, monkeypatch, words, spoil):
    log = _log(tmp_path, spoil(log_records()))
    verdict = check_traps(log)
    assert verdict.accepted is False
    refusals = [finding for finding in verdict.findings if finding.refuses]
    assert any(words in finding.text for finding in refusals), refusals
    assert all(finding.explanation and finding.fix for finding in refusals)
    monkeypatch.setattr(checkers, "_run", run_in_process)
    assert checkers.check_compliance(log.path).accepted is True  # it is a trap


def test_two_records_on_one_line_are_refused(tmp_path, monkeypatch):
    path = write_log(tmp_path / "a.txt")
    lines = path.read_text().splitlines()
    place = max(number for number, line in enumerate(lines) if '"eval_accuracy"' in line)
    lines[place : place + 2] = [lines[place] + lines[place + 1]]
    path.write_text("\n".join(lines) + "\n")
    verdict = check_traps(read_log(path))
    assert verdict.accepted is False and "2 records on one line" in verdict.findings[0].text


def test_a_word_of_another_key_breaks_the_official_rcp_checker_as_we_say(tmp_path, monkeypatch):
    monkeypatch.setattr(checkers, "_run", run_in_process)
    folder = write_package(tmp_path / "p")
    path = folder / "results/synthetic_system/maskrcnn/result_0.txt"
    path.write_text(log_text([*log_records(), record("note", "eval_accuracy fell", 30)]))
    assert not checkers.check_package(folder).accepted


@pytest.mark.parametrize(("key", "refused"), [("tracked_stats", False), ("eval_accuracy", True)])
def test_numbers_that_are_not_finite_are_named(tmp_path, key, refused):
    spoilt = record(key, {"loss": float("nan"), "BBOX": 0.1, "SEGM": float("inf")}, 21.2, epoch_num=14, step=50)
    verdict = check_traps(_log(tmp_path, [*log_records()[:-1], spoilt, log_records()[-1]]))
    assert verdict.accepted is not refused
    assert "not finite" in verdict.findings[0].text and key in verdict.findings[0].text


@pytest.mark.parametrize(("seed", "named"), [(4_000_000_007, False), (4_000_000_000, True), (5, False), (2**70, True)])
def test_seeds_that_may_have_been_rounded_are_a_note(tmp_path, seed, named):
    verdict = check_traps(_log(tmp_path, log_records(seed=seed)))
    assert verdict.accepted and bool(verdict.findings) is named


def test_a_seed_too_large_for_a_float_is_no_bug(tmp_path):
    assert check_traps(_log(tmp_path, log_records(seed=10**60))).accepted


def test_success_without_the_targets_is_refused(tmp_path):
    records = log_records(targets=(0.5, 0.5), recipe="demo", division="open")
    assert "0.5" in check_traps(_log(tmp_path, records)).findings[0].explanation
    assert check_traps(_log(tmp_path, log_records(targets=(0.3, 0.3)))).accepted
    assert check_traps(_log(tmp_path, log_records(status="aborted"))).accepted


def _withdrawn(records):
    """Return a log whose success was taken back, as `MlperfLog.withdraw` does it."""
    stop = records[-1]
    return [*records, {**stop, "value": "engines differ", "metadata": {**stop["metadata"], "status": "aborted"}}]


def test_a_success_that_was_taken_back_is_refused_by_all(tmp_path, monkeypatch):
    monkeypatch.setattr(checkers, "_run", run_in_process)
    log = _log(tmp_path, _withdrawn(log_records()))
    assert log.status == "aborted"
    (finding,) = check_traps(log).findings
    assert finding.refuses and "taken back: engines differ" in finding.text
    assert checkers.check_compliance(log.path).accepted is False
    again = [*log_records(status="aborted"), *log_records()]  # two runs: what the first one was is no withdrawal
    assert not any("taken back" in finding.text for finding in check_traps(_log(tmp_path, again)).findings)
    again = [*log_records(), *log_records(status="aborted")]
    assert not any("taken back" in finding.text for finding in check_traps(_log(tmp_path, again)).findings)


def test_two_withdrawn_runs_of_five_are_no_package(tmp_path, monkeypatch):
    monkeypatch.setattr(checkers, "_run", run_in_process)
    folder = write_package(tmp_path / "p")
    assert checkers.check_package(folder).accepted
    for number in (0, 1):
        path = folder / f"results/synthetic_system/maskrcnn/result_{number}.txt"
        path.write_text(log_text(_withdrawn(log_records(seed=100 + number))))
    assert not checkers.check_package(folder).accepted


def test_epochs_counted_from_nought_are_refused(tmp_path):
    records = log_records()
    for entry in records:
        if "epoch_num" in entry["metadata"]:
            entry["metadata"]["epoch_num"] -= 1
    assert "from 1" in check_traps(_log(tmp_path, records)).findings[0].explanation


@pytest.mark.parametrize(
    ("batch_size", "steps", "fine"),
    [
        (96, [12000, 16000], True),
        (272, [5294, 7058], True),
        (88, [12000, 16000], True),
        (256, [6125, 8000], False),
        (110, [12000, 16000], False),
        (96, [12000, 12000], False),
    ],
)
def test_decay_steps_outside_the_rule_are_a_note(tmp_path, batch_size, steps, fine):
    records = log_records(batch_size=batch_size, opt_learning_rate_decay_steps=steps)
    verdict = check_traps(_log(tmp_path, records))
    assert verdict.accepted and (verdict.findings == ()) is fine


@pytest.mark.parametrize(
    "odd", [float("inf"), float("nan"), 10**400, "96", True], ids=["inf", "nan", "huge", "text", "bool"]
)
def test_odd_numbers_where_steps_and_batch_size_belong_are_no_bug(tmp_path, odd):
    check_traps(_log(tmp_path, log_records(global_batch_size=odd)))
    check_traps(_log(tmp_path, log_records(opt_learning_rate_decay_steps=[odd, 16000])))


def test_other_image_sizes_are_a_note_in_the_closed_division_only(tmp_path):
    (finding,) = check_traps(_log(tmp_path, log_records(min_image_size=640))).findings
    assert "640" in finding.text and "800" in finding.text and not finding.refuses
    assert check_traps(_log(tmp_path, log_records(min_image_size=640, division="open"))).findings == ()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train_samples", 118287, "1,021 images without annotations"),
        ("train_samples", "118287", "1,021 images without annotations"),
        ("train_samples", 117267, "any number"),
        ("train_samples", 117265, "any number"),
        ("train_samples", 40000, "limit of steps"),
        ("train_samples", 1000, "any number"),
        ("train_samples", 0, "any number"),
        ("train_samples", None, "any number"),
        ("train_samples", [117266], "any number"),
        ("eval_samples", 1, "Published logs"),
        ("eval_samples", 4952, "any number"),
        ("eval_samples", "five thousand", "any number"),
    ],
)
@pytest.mark.parametrize("division", ["closed", "open"])
def test_other_numbers_of_images_are_a_note_with_their_line(tmp_path, key, value, words, division):
    log = _log(tmp_path, log_records(division=division, **{key: value}))
    (finding,) = check_traps(log).findings
    assert not finding.refuses and words in finding.explanation
    line = next(entry.line for entry in log.records if entry.key == key)
    assert finding.text.startswith(f"line {line}: {key} is ")
    assert {"train_samples": "117,266", "eval_samples": "5,000"}[key] in finding.text


@pytest.mark.parametrize(
    "choices",
    [
        {"train_samples": "117266"},
        {"train_samples": 117266.0},
        {"train_samples": 1000, "eval_samples": 200, "recipe": "demo", "targets": (0.3, 0.3)},
        {"train_samples": 600, "eval_samples": 70, "recipe": "coco", "targets": (0.1, 0.1)},
        {"train_samples": 600, "submission_benchmark": "ssd"},
        {"train_samples": LEFT_OUT, "eval_samples": LEFT_OUT},
    ],
)
def test_numbers_of_images_of_coco_or_of_other_data_are_not_named(tmp_path, choices):
    assert check_traps(_log(tmp_path, log_records(**choices))).findings == ()


def test_a_second_run_is_named_with_its_line_what_it_did_and_where_to_cut(tmp_path):
    log = _log(tmp_path, [*up_to(log_records(), "epoch_start", 2), *later(log_records(), 40)])
    finding = check_traps(log).findings[0]
    assert finding.refuses and finding.text == "line 30: a second run begins; this file holds 2 runs"
    assert "lines 1 to 29: stopped in epoch 2, no run_stop; lines 30 to the end: success in epoch 14" in (
        finding.explanation.lower()
    )
    assert f"sed -n '30,$p' {log.path} > run_1.txt" in finding.fix and "run_2" not in finding.fix


@pytest.mark.parametrize(
    ("records", "refuses", "words"),
    [
        ([*log_records(), *later(log_records(seed=7), 40)], True, "run_2.txt"),
        ([*log_records(), *log_records()], True, "a copy of those from line 1 on"),
        ([*up_to(log_records(), "seed"), *later(log_records(), 4)], False, "Only one of them began to train"),
        ([*up_to(log_records(), "init_stop"), *log_records()], False, "stopped before the training began"),
        ([*log_records(), *up_to(later(log_records(), 40), "run_start")], True, "stopped in the first epoch"),
        ([*up_to(log_records(), "run_start"), *up_to(log_records(), "epoch_start")], True, "None of them is whole"),
        ([*up_to(log_records(), "eval_stop", 2), *log_records(status="aborted")], True, "aborted in epoch 14"),
        (
            [*log_records(), *later(log_records(), 40), *up_to(later(log_records(), 80), "eval_start")],
            True,
            "lines 95, 189: further runs begin; this file holds 3 runs",
        ),
    ],
)
def test_what_each_run_of_a_file_did_is_said(tmp_path, records, refuses, words):
    finding = check_traps(_log(tmp_path, records)).findings[0]
    assert finding.refuses is refuses and words in f"{finding.text} {finding.explanation} {finding.fix}"


def test_mixed_lines_are_never_cut(tmp_path):
    log = _log(tmp_path, by_time(log_records(), later(log_records(minutes=19.7), 6)))
    finding = check_traps(log).findings[0]
    assert finding.refuses and "mixed" in finding.text and "cannot be cut" in finding.explanation
    assert "sed" not in finding.fix


def test_a_run_taken_up_again_is_a_note(tmp_path):
    first = up_to(log_records(), "epoch_start", 4)
    (finding,) = check_traps(
        _log(tmp_path, [*first, record("init_start", None, 7.0), *log_records()[len(first) :]])
    ).findings
    assert not finding.refuses and finding.text == f"line {len(first) + 1}: the run was taken up again here"


def test_what_is_no_submission_is_called_so(tmp_path):
    closed = _log(tmp_path, log_records(recipe="coco_batch_96", targets=(0.377, 0.339)))
    assert is_submission(closed) and meanings(closed) == []
    demo = _log(tmp_path, log_records(recipe="demo", targets=(0.55, 0.55), division="open"))
    assert not is_submission(demo)
    assert [text.split(":")[0] for text in meanings(demo)] == ["a demo is not a submission", "open division"]
    other = _log(tmp_path, log_records(targets=(0.3, 0.3)))
    assert not is_submission(other) and "not a submission: the targets were 0.3" in meanings(other)[0]
    assert "benchmark ssd" in meanings(_log(tmp_path, log_records(submission_benchmark="ssd")))[0]


def test_a_success_without_targets_is_done_and_nothing_is_refused(tmp_path):
    log = read_log(write_log(tmp_path / "a.txt", targets=(0, 0), division="open"))
    assert log.status == "done" and check_traps(log).findings == () and not is_submission(log)
    assert any("the run had no targets" in text for text in meanings(log))


@pytest.mark.parametrize(
    ("targets", "accepted"), [((0.3, 0), True), ((0, 0.3), True), ((0.39, 0), False), ((0, 0.35), False)]
)
def test_a_success_with_one_target_must_meet_it(tmp_path, targets, accepted):
    log = read_log(write_log(tmp_path / "a.txt", targets=targets, division="open"))
    assert log.status == "success" and check_traps(log).accepted is accepted
