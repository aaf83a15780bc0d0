import pytest
from synthetic_logs import LEFT_OUT, by_time, later, log_records, log_text, record, up_to, write_package

from maskperf.mlperf import checkers
from maskperf.mlperf.traps import check_traps, is_submission, meanings

WHOLE = log_records()


def _stop_before_evaluation(records):
    index = max(index for index, entry in enumerate(records) if entry["key"] == "eval_accuracy")
    return [*records[:index], records[-1], *records[index:-1]]


def _start_again(records):
    """Return a log whose run_start comes a second time, as a run that was taken up again may write it."""
    index = 1 + next(index for index, entry in enumerate(records) if entry["key"] == "eval_stop")
    again = {**record("run_start", None, 0), "time_ms": records[index - 1]["time_ms"] + 1}
    return [*records[:index], again, *records[index:]]


def _withdrawn(records):
    """Return a log whose success was taken back, as `MlperfLog.withdraw` does it."""
    stop = records[-1]
    return [*records, {**stop, "value": "engines differ", "metadata": {**stop["metadata"], "status": "aborted"}}]


@pytest.fixture
def check(log_of):
    """Return a function that returns the verdict on records, or on a text."""
    return lambda content: check_traps(log_of(content))


def test_a_whole_log_has_no_findings(check):
    verdict = check(log_records(tracked_every=50))
    assert verdict.accepted and verdict.findings == ()


@pytest.mark.parametrize(
    ("words", "records"),
    [
        ("run_start is logged 2 times", _start_again(WHOLE)),
        ("s before that of line", [*WHOLE[:40], *later(WHOLE[40:], -60)]),
        ("eval_accuracy stands behind run_stop", _stop_before_evaluation(WHOLE)),
        ("contains the text eval_accuracy", [*WHOLE, record("note", "eval_accuracy fell", 30)]),
        ("contains the text global_batch_size", [record("config", {"global_batch_size": 9}, 0), *WHOLE]),
    ],
)
def test_what_the_official_checker_lets_pass_is_refused(log_of, words, records):
    log = log_of(records)
    verdict = check_traps(log)
    refusals = [finding for finding in verdict.findings if finding.refuses]
    assert verdict.accepted is False and any(words in finding.text for finding in refusals), refusals
    assert all(finding.explanation and finding.fix for finding in refusals)
    assert checkers.check_compliance(log.path).accepted is True  # it is a trap


def test_two_records_on_one_line_are_refused(check):
    lines = log_text(WHOLE).splitlines()
    index = max(index for index, line in enumerate(lines) if '"eval_accuracy"' in line)
    lines[index : index + 2] = [lines[index] + lines[index + 1]]
    verdict = check("\n".join(lines) + "\n")
    assert verdict.accepted is False and "2 records on one line" in verdict.findings[0].text


@pytest.mark.parametrize(("key", "refused"), [("tracked_stats", False), ("eval_accuracy", True)])
def test_numbers_that_are_not_finite_are_named(check, key, refused):
    spoilt = record(key, {"loss": float("nan"), "BBOX": 0.1, "SEGM": float("inf")}, 21.2, epoch_num=14, step=50)
    verdict = check([*WHOLE[:-1], spoilt, WHOLE[-1]])
    assert verdict.accepted is not refused
    assert "not finite" in verdict.findings[0].text and key in verdict.findings[0].text


@pytest.mark.parametrize(
    ("seed", "named"), [(4_000_000_007, False), (4_000_000_000, True), (5, False), (2**70, True), (10**60, False)]
)
def test_seeds_that_may_have_been_rounded_are_a_note(check, seed, named):
    verdict = check(log_records(seed=seed))
    assert verdict.accepted and bool(verdict.findings) is named


@pytest.mark.parametrize(
    ("changes", "accepted"),
    [
        ({"targets": (0.5, 0.5), "recipe": "demo"}, False),
        ({"targets": (0.3, 0.3)}, True),
        ({"status": "aborted"}, True),
        ({"targets": (0.3, 0)}, True),
        ({"targets": (0, 0.3)}, True),
        ({"targets": (0.39, 0)}, False),
        ({"targets": (0, 0.35)}, False),
    ],
)
def test_a_success_must_meet_the_targets_that_there_are(check, changes, accepted):
    verdict = check(log_records(division="open", **changes))
    assert verdict.accepted is accepted
    assert accepted or "targets" in verdict.findings[0].explanation


def test_a_success_without_targets_is_done_and_nothing_is_refused(log_of):
    log = log_of(log_records(targets=(0, 0), division="open"))
    assert log.status == "done" and check_traps(log).findings == () and not is_submission(log)
    assert any("the run had no targets" in text for text in meanings(log))


def test_a_success_that_was_taken_back_is_refused_by_all(log_of):
    log = log_of(_withdrawn(WHOLE))
    assert log.status == "aborted"
    (finding,) = check_traps(log).findings
    assert finding.refuses and "taken back: engines differ" in finding.text
    assert checkers.check_compliance(log.path).accepted is False
    for two_runs in ([*log_records(status="aborted"), *WHOLE], [*WHOLE, *log_records(status="aborted")]):
        assert not any("taken back" in finding.text for finding in check_traps(log_of(two_runs)).findings)


@pytest.mark.parametrize(
    ("count", "records"), [(2, _withdrawn(WHOLE)), (1, [*WHOLE, record("note", "eval_accuracy fell", 30)])]
)
def test_the_official_package_checker_refuses_such_logs(tmp_path, count, records):
    folder = write_package(tmp_path / "p")
    assert checkers.check_package(folder).accepted
    for number in range(count):
        path = folder / f"results/synthetic_system/maskrcnn/result_{number}.txt"
        seeded = [{**entry, "value": 100 + number} if entry["key"] == "seed" else entry for entry in records]
        path.write_text(log_text(seeded))
    assert not checkers.check_package(folder).accepted


def test_epochs_counted_from_nought_are_refused(check):
    records = log_records()
    for entry in records:
        if "epoch_num" in entry["metadata"]:
            entry["metadata"]["epoch_num"] -= 1
    assert "from 1" in check(records).findings[0].explanation


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
def test_decay_steps_outside_the_rule_are_a_note(check, batch_size, steps, fine):
    verdict = check(log_records(batch_size=batch_size, opt_learning_rate_decay_steps=steps))
    assert verdict.accepted and (verdict.findings == ()) is fine


@pytest.mark.parametrize(
    "odd", [float("inf"), float("nan"), 10**400, "96", True], ids=["inf", "nan", "huge", "text", "bool"]
)
def test_odd_numbers_where_steps_and_batch_size_belong_are_no_bug(check, odd):
    check(log_records(global_batch_size=odd))
    check(log_records(opt_learning_rate_decay_steps=[odd, 16000]))


def test_other_image_sizes_are_a_note_in_the_closed_division_only(check):
    (finding,) = check(log_records(min_image_size=640)).findings
    assert "640" in finding.text and "800" in finding.text and not finding.refuses
    assert check(log_records(min_image_size=640, division="open")).findings == ()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        *(("train_samples", value, "1,021 images without annotations") for value in (118287, "118287")),
        *(("train_samples", value, "any number") for value in (117267, 117265, 1000, 0, None, [117266])),
        ("train_samples", 40000, "limit of steps"),
        ("eval_samples", 1, "Published logs"),
        *(("eval_samples", value, "any number") for value in (4952, "five thousand")),
    ],
)
@pytest.mark.parametrize("division", ["closed", "open"])
def test_other_numbers_of_images_are_a_note_with_their_line(log_of, key, value, words, division):
    log = log_of(log_records(division=division, **{key: value}))
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
def test_numbers_of_images_of_coco_or_of_other_data_are_not_named(check, choices):
    assert check(log_records(**choices)).findings == ()


def test_a_second_run_is_named_with_its_line_what_it_did_and_where_to_cut(log_of):
    log = log_of([*up_to(WHOLE, "epoch_start", 2), *later(WHOLE, 40)])
    finding = check_traps(log).findings[0]
    assert finding.refuses and finding.text == "line 30: a second run begins; this file holds 2 runs"
    for words in ("lines 1 to 29: stopped in epoch 2, no run_stop", "lines 30 to the end: success in epoch 14"):
        assert words in finding.explanation.lower()
    assert f"sed -n '30,$p' {log.path} > run_1.txt" in finding.fix and "run_2" not in finding.fix


@pytest.mark.parametrize(
    ("records", "refuses", "words"),
    [
        ([*WHOLE, *later(log_records(seed=7), 40)], True, "run_2.txt"),
        ([*WHOLE, *WHOLE], True, "a copy of those from line 1 on"),
        ([*up_to(WHOLE, "seed"), *later(WHOLE, 4)], False, "Only one of them began to train"),
        ([*up_to(WHOLE, "init_stop"), *WHOLE], False, "stopped before the training began"),
        ([*WHOLE, *up_to(later(WHOLE, 40), "run_start")], True, "stopped in the first epoch"),
        ([*up_to(WHOLE, "run_start"), *up_to(WHOLE, "epoch_start")], True, "None of them is whole"),
        ([*up_to(WHOLE, "eval_stop", 2), *log_records(status="aborted")], True, "aborted in epoch 14"),
        (
            [*WHOLE, *later(WHOLE, 40), *up_to(later(WHOLE, 80), "eval_start")],
            True,
            "lines 95, 189: further runs begin; this file holds 3 runs",
        ),
    ],
)
def test_what_each_run_of_a_file_did_is_said(check, records, refuses, words):
    finding = check(records).findings[0]
    assert finding.refuses is refuses and words in f"{finding.text} {finding.explanation} {finding.fix}"


def test_mixed_lines_are_never_cut(check):
    finding = check(by_time(WHOLE, later(log_records(minutes=19.7), 6))).findings[0]
    assert finding.refuses and "mixed" in finding.text and "cannot be cut" in finding.explanation
    assert "sed" not in finding.fix


def test_a_run_taken_up_again_is_a_note(check):
    first = up_to(WHOLE, "epoch_start", 4)
    (finding,) = check([*first, record("init_start", None, 7.0), *WHOLE[len(first) :]]).findings
    assert not finding.refuses and finding.text == f"line {len(first) + 1}: the run was taken up again here"


def test_what_is_no_submission_is_called_so(log_of):
    closed = log_of(log_records(recipe="coco_batch_96", targets=(0.377, 0.339)))
    assert is_submission(closed) and meanings(closed) == []
    demo = log_of(log_records(recipe="demo", targets=(0.55, 0.55), division="open"))
    assert not is_submission(demo)
    assert [text.split(":")[0] for text in meanings(demo)] == ["a demo is not a submission", "open division"]
    other = log_of(log_records(targets=(0.3, 0.3)))
    assert not is_submission(other) and "not a submission: the targets were 0.3" in meanings(other)[0]
    assert "benchmark ssd" in meanings(log_of(log_records(submission_benchmark="ssd")))[0]
