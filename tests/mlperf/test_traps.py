import pytest
from synthetic_logs import LEFT_OUT, by_time, later, log_records, log_text, record, up_to, write_package

from maskperf.mlperf import checkers
from maskperf.mlperf.traps import check_traps, is_submission, meanings

WHOLE = log_records()
TWO_ON_ONE_LINE = log_text(WHOLE)[:-1].replace("\n:::MLLOG", ":::MLLOG", 1)
NOTE = record("note", "eval_accuracy fell", 30)
NOT_FINITE = {"loss": float("nan"), "BBOX": 0.1, "SEGM": float("inf")}
BROKEN = [
    (record("tracked_stats", NOT_FINITE, 21.2, epoch_num=14, step=50), False),
    (record("eval_accuracy", NOT_FINITE, 21.2, epoch_num=14), True),
]


LAST_SCORES = [entry for entry in WHOLE if entry["key"] == "eval_accuracy"][-1]
# A success that was taken back, as `MlperfLog.withdraw` does it.
WITHDRAWN = [*WHOLE, record("run_stop", "engines differ", 21.31, status="aborted")]
FROM_ZERO = [
    {**entry, "metadata": {**entry["metadata"], "epoch_num": entry["metadata"].get("epoch_num", 1) - 1}}
    for entry in WHOLE
]


@pytest.fixture
def check(log_of):
    """Return a function that returns the verdict on records, or on a text."""
    return lambda content: check_traps(log_of(content))


@pytest.mark.parametrize(
    "records",
    [
        log_records(tracked_every=50),
        log_records(division="open", min_image_size=640),
        log_records(division="open", targets=(0, 0)),
        *(log_records(seed=seed) for seed in (5, 10**60)),
        *(log_records(train_samples=number) for number in ("117266", 117266.0)),
        log_records(train_samples=1000, eval_samples=200, recipe="demo", targets=(0.3, 0.3)),
        log_records(train_samples=600, eval_samples=70, recipe="coco", targets=(0.1, 0.1)),
        log_records(train_samples=600, submission_benchmark="ssd"),
        log_records(train_samples=LEFT_OUT, eval_samples=LEFT_OUT),
        *(log_records(batch_size=batch, opt_learning_rate_decay_steps=[12000, 16000]) for batch in (96, 88)),
        log_records(batch_size=272, opt_learning_rate_decay_steps=[5294, 7058]),
    ],
)
def test_logs_in_order_have_no_findings(check, records):
    verdict = check(records)
    assert verdict.accepted and verdict.findings == ()


@pytest.mark.parametrize(
    ("text", "records"),
    [
        ("run_start is logged 2 times", [*up_to(WHOLE, "eval_stop"), record("run_start", None, 4), *WHOLE[28:]]),
        ("s before that of line", [*WHOLE[:40], *later(WHOLE[40:], -60)]),
        ("eval_accuracy stands behind run_stop", [*(e for e in WHOLE if e is not LAST_SCORES), LAST_SCORES]),
        ("contains the text eval_accuracy", [*WHOLE, NOTE]),
        ("contains the text global_batch_size", [record("config", {"global_batch_size": 9}, 0), *WHOLE]),
    ],
)
def test_what_the_official_checker_lets_pass_is_refused(log_of, text, records):
    log = log_of(records)
    verdict = check_traps(log)
    refusals = [finding for finding in verdict.findings if finding.refuses]
    assert verdict.accepted is False and any(text in finding.text for finding in refusals), refusals
    assert all(finding.explanation and finding.fix for finding in refusals)
    assert checkers.check_compliance(log.path).accepted is True  # it is a trap


@pytest.mark.parametrize(
    ("records", "refuses", "texts"),
    [
        (TWO_ON_ONE_LINE, True, ["2 records on one line"]),
        *(([*WHOLE[:-1], broken, WHOLE[-1]], refuses, [broken["key"], "not finite"]) for broken, refuses in BROKEN),
        (FROM_ZERO, True, ["from 1"]),
        *((log_records(seed=seed), False, [f"seed {seed}"]) for seed in (4_000_000_000, 2**70)),
        (log_records(min_image_size=640), False, ["640", "800"]),
        *(
            (log_records(batch_size=batch, opt_learning_rate_decay_steps=steps), False, [str(steps)])
            for batch, steps in ((256, [6125, 8000]), (110, [12000, 16000]), (96, [12000, 12000]))
        ),
    ],
)
def test_what_is_odd_is_named_and_refused_or_a_note(check, records, refuses, texts):
    verdict = check(records)
    assert verdict.accepted is not refuses and verdict.findings[0].refuses is refuses
    assert all(text in f"{verdict.findings[0].text} {verdict.findings[0].explanation}" for text in texts)


@pytest.mark.parametrize(
    ("targets", "accepted"),
    [
        *((targets, True) for targets in ((0.3, 0.3), (0.3, 0), (0, 0.3))),
        *((targets, False) for targets in ((0.5, 0.5), (0.39, 0), (0, 0.35))),
    ],
)
def test_a_success_must_meet_the_targets_that_there_are(check, targets, accepted):
    verdict = check(log_records(division="open", targets=targets))
    assert verdict.accepted is accepted and (accepted or "targets" in verdict.findings[0].explanation)
    assert check(log_records(division="open", targets=targets, status="aborted")).accepted


def test_a_success_that_was_taken_back_is_refused_by_all(log_of):
    log = log_of(WITHDRAWN)
    assert log.status == "aborted"
    (finding,) = check_traps(log).findings
    assert finding.refuses and "taken back: engines differ" in finding.text
    assert checkers.check_compliance(log.path).accepted is False
    for two_runs in ([*log_records(status="aborted"), *WHOLE], [*WHOLE, *log_records(status="aborted")]):
        assert not any("taken back" in finding.text for finding in check_traps(log_of(two_runs)).findings)


@pytest.mark.parametrize(("count", "records"), [(2, WITHDRAWN), (1, [*WHOLE, NOTE])])
def test_the_official_package_checker_refuses_such_logs(tmp_path, count, records):
    folder = write_package(tmp_path / "p")
    assert checkers.check_package(folder).accepted
    for number in range(count):
        path = folder / f"results/synthetic_system/maskrcnn/result_{number}.txt"
        seeded = [{**entry, "value": 100 + number} if entry["key"] == "seed" else entry for entry in records]
        path.write_text(log_text(seeded))
    assert not checkers.check_package(folder).accepted


@pytest.mark.parametrize("odd", [float("inf"), float("nan"), 10**400, "96", True], ids=lambda odd: str(odd)[:5])
def test_odd_numbers_where_steps_and_batch_size_belong_are_no_bug(check, odd):
    check(log_records(global_batch_size=odd))
    check(log_records(opt_learning_rate_decay_steps=[odd, 16000]))


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        *(("train_samples", value, "1,021 images without annotations") for value in (118287, "118287")),
        *(("train_samples", value, "any number") for value in (117267, 117265, 1000, 0, None, [117266])),
        ("train_samples", 40000, "limit of steps"),
        ("eval_samples", 1, "Published logs"),
        *(("eval_samples", value, "any number") for value in (4952, "five thousand")),
    ],
)
@pytest.mark.parametrize("division", ["closed", "open"])
def test_other_numbers_of_images_are_a_note_with_their_line(log_of, key, value, text, division):
    log = log_of(log_records(division=division, **{key: value}))
    (finding,) = check_traps(log).findings
    assert not finding.refuses and text in finding.explanation
    line = next(entry.line for entry in log.records if entry.key == key)
    assert finding.text.startswith(f"line {line}: {key} is ")
    assert {"train_samples": "117,266", "eval_samples": "5,000"}[key] in finding.text


def test_a_second_run_is_named_with_its_line_what_it_did_and_where_to_cut(log_of):
    log = log_of([*up_to(WHOLE, "epoch_start", 2), *later(WHOLE, 40)])
    finding = check_traps(log).findings[0]
    assert finding.refuses and finding.text == "line 30: a second run begins; this file holds 2 runs"
    for text in ("lines 1 to 29: stopped in epoch 2, no run_stop", "lines 30 to the end: success in epoch 14"):
        assert text in finding.explanation.lower()
    assert f"sed -n '30,$p' {log.path} > run_1.txt" in finding.fix and "run_2" not in finding.fix


@pytest.mark.parametrize(
    ("records", "refuses", "text"),
    [
        ([*WHOLE, *later(log_records(seed=7), 40)], True, "run_2.txt"),
        ([*WHOLE, *WHOLE], True, "a copy of those from line 1 on"),
        ([*up_to(WHOLE, "seed"), *later(WHOLE, 4)], False, "Only one of them began to train"),
        ([*up_to(WHOLE, "init_stop"), *WHOLE], False, "stopped before the training began"),
        ([*WHOLE, *up_to(later(WHOLE, 40), "run_start")], True, "stopped in the first epoch"),
        ([*up_to(WHOLE, "run_start"), *up_to(WHOLE, "epoch_start")], True, "None of them is whole"),
        ([*up_to(WHOLE, "eval_stop", 2), *log_records(status="aborted")], True, "aborted in epoch 14"),
        ([*WHOLE, *later(WHOLE, 40), *up_to(later(WHOLE, 80), "eval_start")], True, "lines 95, 189: further runs"),
        (by_time(WHOLE, later(log_records(minutes=19.7), 6)), True, "cannot be cut"),
        ([*WHOLE[:39], record("init_start", None, 7.0), *WHOLE[39:]], False, "line 40: the run was"),
    ],
)
def test_what_each_run_of_a_file_did_is_reported(check, records, refuses, text):
    finding = check(records).findings[0]
    assert finding.refuses is refuses and text in f"{finding.text} {finding.explanation} {finding.fix}"


@pytest.mark.parametrize(
    ("choices", "submits", "expected"),
    [
        ({"recipe": "coco_batch_96", "targets": (0.377, 0.339)}, True, []),
        ({"recipe": "demo", "targets": (0.55, 0.55), "division": "open"}, False, ["a demo is not a", "open division"]),
        ({"targets": (0.3, 0.3)}, False, ["not a submission: the targets were 0.3"]),
        ({"targets": (0, 0)}, False, ["not a submission: the run had no targets"]),
        ({"submission_benchmark": "ssd"}, False, ["benchmark ssd"]),
    ],
)
def test_what_is_no_submission_is_called_so(log_of, choices, submits, expected):
    log = log_of(log_records(**choices))
    assert is_submission(log) is submits
    assert all(text.startswith(start) for text, start in zip(meanings(log), expected, strict=True))
