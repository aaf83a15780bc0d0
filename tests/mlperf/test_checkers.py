import pytest
from official_checkers import run_in_process
from synthetic_logs import LEFT_OUT, log_records, log_text, record, write_log, write_logs, write_package

from maskperf.errors import DataError
from maskperf.mlperf import checkers
from maskperf.mlperf.checkers import FILES, PACKAGE, REFERENCE, REPOSITORY, SEEDS, SYSTEM

ONCE = (
    *("submission_benchmark", "submission_org", "submission_division", "submission_status", "submission_platform"),
    *("global_batch_size", "num_image_candidates", "gradient_accumulation_steps", "min_image_size", "max_image_size"),
    *("opt_learning_rate_decay_factor", "opt_base_learning_rate", "opt_learning_rate_decay_steps"),
    *("opt_learning_rate_warmup_steps", "opt_learning_rate_warmup_factor", "init_stop", "run_start"),
    *("train_samples", "eval_samples", "run_stop"),
)
AT_LEAST_ONCE = (
    *("cache_clear", "init_start", "epoch_start", "epoch_stop", "eval_start", "eval_stop", "eval_accuracy"),
)
WRONG_VALUES = [
    ("submission_benchmark", "mask_rcnn"),
    ("submission_org", ""),
    ("submission_division", "close"),
    ("submission_status", "at home"),
    ("submission_platform", ""),
    ("global_batch_size", 0),
    ("num_image_candidates", 6500),
    ("gradient_accumulation_steps", 0),
    ("min_image_size", -800),
    ("max_image_size", -1333),
    ("opt_learning_rate_decay_factor", 0.2),
    ("opt_base_learning_rate", 0.13),
    ("opt_base_learning_rate", "0.12"),
    ("opt_learning_rate_decay_steps", [12000]),
    ("opt_learning_rate_decay_steps", 12000),
    ("opt_learning_rate_warmup_steps", -1),
    ("opt_learning_rate_warmup_factor", 0),
    ("train_samples", ""),
    ("eval_samples", ""),
    ("eval_accuracy", {"bbox": 0.4, "segm": 0.4}),
    ("eval_accuracy", {"BBOX": 0.4}),
    ("eval_accuracy", {"BBOX": 0.3769, "SEGM": 0.339}),
    ("eval_accuracy", {"BBOX": 0.377, "SEGM": 0.3389}),
    ("eval_accuracy", {"BBOX": 37.7, "SEGM": 33.9}),
]
MISPLACED = [  # these records, moved in front of that one
    (("init_stop",), "init_start"),
    (("run_start",), "init_stop"),
    (("run_stop",), "run_start"),
]
WITHOUT_METADATA = [
    *[(key, "epoch_num") for key in ("epoch_start", "epoch_stop", "eval_start", "eval_stop", "eval_accuracy")],
    ("run_stop", "status"),
]


@pytest.fixture(autouse=True)
def in_process(request, monkeypatch):
    if "slow_way" not in request.fixturenames:
        monkeypatch.setattr(checkers, "_run", run_in_process)


@pytest.fixture
def slow_way():
    """Leave each checker in a process of its own."""


def _judge(tmp_path, records):
    path = tmp_path / "log.txt"
    path.write_text(log_text(records), encoding="utf-8")
    return checkers.check_compliance(path)


def _refused(verdict, *words):
    """Require a refusal that is explained and fixed in words that hold all of these."""
    assert verdict.accepted is False
    refusals = [finding for finding in verdict.findings if finding.refuses]
    assert refusals and all(finding.explanation and finding.fix for finding in refusals), refusals
    text = "\n".join(f"{finding.text} {finding.explanation}" for finding in refusals)
    assert all(word in text for word in words), text


def _parts(verdict):
    return {part.checker: part.accepted for part in verdict.verdicts}


def _findings(verdict, checker):
    return [finding for part in verdict.verdicts if part.checker == checker for finding in part.findings]


def test_a_whole_log_is_accepted_without_findings(tmp_path):
    verdict = _judge(tmp_path, log_records(tracked_every=500))
    assert verdict.accepted is True and verdict.findings == ()


@pytest.mark.parametrize("key", ONCE + AT_LEAST_ONCE)
def test_a_missing_key_is_refused_and_named(tmp_path, key):
    records = [entry for entry in log_records() if entry["key"] != key]
    verdict = _judge(tmp_path, records)
    _refused(verdict, key)
    assert any(f"no line {key}" in finding.explanation or key in finding.text for finding in verdict.findings)


@pytest.mark.parametrize("key", ONCE)
def test_a_key_logged_twice_with_two_values_is_refused(tmp_path, key):
    records = log_records()
    place = next(index for index, entry in enumerate(records) if entry["key"] == key)
    again = {**records[place], "value": "closed" if key == "submission_division" else records[place]["value"]}
    other = {"submission_benchmark": "ssd", "submission_division": "open", "submission_status": "cloud"}
    again["value"] = other.get(key, 7 if isinstance(again["value"], int | float) else [3, 4])
    verdict = _judge(tmp_path, [*records[: place + 1], again, *records[place + 1 :]])
    _refused(verdict, key)


def test_a_key_logged_twice_with_one_value_is_a_note(tmp_path):
    verdict = _judge(tmp_path, [entry for entry in log_records() for _ in range(1 + (entry["key"] == "train_samples"))])
    (finding,) = verdict.findings
    assert verdict.accepted is True and not finding.refuses and "train_samples is logged 2 times" in finding.explanation


@pytest.mark.parametrize(("key", "value"), WRONG_VALUES)
def test_a_wrong_value_is_refused_and_named(tmp_path, key, value):
    verdict = _judge(tmp_path, log_records(**{key: value}))
    _refused(verdict, *([] if key in ("submission_division", "submission_benchmark") else [key]))


@pytest.mark.parametrize(("moved", "before"), MISPLACED)
def test_a_wrong_order_is_refused_and_named(tmp_path, moved, before):
    records = log_records()
    taken = [entry for entry in records if entry["key"] in moved]
    rest = [entry for entry in records if entry["key"] not in moved]
    place = next(index for index, entry in enumerate(rest) if entry["key"] == before)
    _refused(_judge(tmp_path, [*rest[:place], *taken, *rest[place:]]), moved[0], "stands ")


def test_an_init_start_behind_run_start_is_refused(tmp_path):
    _refused(
        _judge(tmp_path, [*log_records(), record("init_start", None, 30)]), "init_start", "after init_stop or run_start"
    )


def test_a_block_before_run_start_is_refused(tmp_path):
    block = record("block_start", None, 0, first_epoch_num=1, epoch_count=1)
    _refused(_judge(tmp_path, [block, *log_records()]), "block_start", "after run_start")


@pytest.mark.parametrize(("key", "field"), WITHOUT_METADATA)
def test_missing_metadata_are_refused_and_named(tmp_path, key, field):
    records = log_records()
    for entry in records:
        if entry["key"] == key:
            del entry["metadata"][field]
    _refused(_judge(tmp_path, records), key, field)


@pytest.mark.parametrize(("division", "minutes", "accepted"), [("closed", 29.9, True), ("closed", 30.1, False)])
def test_init_may_last_thirty_minutes(tmp_path, division, minutes, accepted):
    verdict = _judge(tmp_path, log_records(division=division, init_minutes=minutes))
    assert verdict.accepted is accepted
    if not accepted:
        _refused(verdict, "init_stop", "30 minutes")


def test_init_of_the_open_division_may_last_longer(tmp_path):
    assert _judge(tmp_path, log_records(division="open", init_minutes=230)).accepted
    _refused(_judge(tmp_path, log_records(division="open", init_minutes=241)), "240")


def test_a_small_batch_may_divide_the_learning_rate_but_only_behind_the_batch_size(tmp_path):
    records = log_records(batch_size=8)
    assert _judge(tmp_path, records).accepted
    records.sort(key=lambda entry: entry["key"] == "global_batch_size")
    _refused(_judge(tmp_path, records), "opt_base_learning_rate", "global_batch_size")


def test_the_line_of_the_file_is_named_for_the_checkers_own_count(tmp_path):
    path = write_log(tmp_path / "a.txt", opt_base_learning_rate=0.13)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("starting up\n\n" + "".join(line + "step\r done\n" for line in lines))
    (finding,) = checkers.check_compliance(path).findings
    (place,) = [n for n, line in enumerate(path.read_bytes().split(b"\n"), 1) if b"opt_base_learning_rate" in line]
    assert finding.explanation.startswith(f"Line {place} of the file: ")
    assert f"in line {place}:" not in finding.text  # the checker counts otherwise


def test_a_torn_line_is_refused(tmp_path):
    path = write_log(tmp_path / "a.txt")
    path.write_text(path.read_text()[:-30])
    _refused(checkers.check_compliance(path), "a line that cannot be read", "run_stop")


def test_a_finding_that_nobody_knows_is_shown_as_it_is():
    verdict = checkers.compliance_verdict("WARNING -  The moon is full\nERROR - FAILED\n")
    (finding,) = verdict.findings
    assert finding.text == "The moon is full" and finding.refuses and finding.explanation == ""


@pytest.mark.parametrize("output", ["", "Killed\n", "INFO - Running compliance on file: SUCCESS\n"])
def test_without_the_word_success_nothing_is_accepted(output):
    assert checkers.compliance_verdict(output).accepted is False
    assert checkers.compliance_verdict(output).findings
    assert not checkers.PackageVerdict(verdicts=checkers.package_verdicts(output), scaling_factors={}).accepted


@pytest.mark.parametrize("changes", [{}, {"seed": LEFT_OUT, "submission_org": ""}, {"eval_accuracy": {"bbox": 1}}])
def test_a_process_of_its_own_says_the_same_as_in_process(tmp_path, slow_way, changes):
    path = write_log(tmp_path / "a.txt", **changes)
    whole = checkers.check_compliance(path)
    alone = checkers.compliance_verdict(
        run_in_process("compliance_checker", ["--usage", "training", "--ruleset", "3.1.0", str(path)]),
        checkers.lines_with_a_record(path),
    )
    assert whole == alone


def test_a_package_is_accepted_and_left_as_it_is(tmp_path, slow_way):
    folder = write_package(tmp_path / "package", tracked_every=500)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    verdict = checkers.check_package(folder)
    assert verdict.accepted and verdict.scaling_factors == {}
    assert _parts(verdict) == dict.fromkeys((SYSTEM, FILES, SEEDS, REFERENCE, PACKAGE), True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_fewer_epochs_than_the_reference_give_a_scaling_factor(tmp_path):
    folder = write_package(tmp_path / "p", [{"epochs": epochs} for epochs in (12, 12, 13, 13, 13)], batch_size=8)
    verdict = checkers.check_package(folder)
    assert verdict.accepted and verdict.scaling_factors == {"synthetic_system": pytest.approx(12.75 / (38 / 3))}
    assert not list(folder.rglob("scaling.json"))


@pytest.mark.parametrize(
    ("runs", "common", "checker", "words"),
    [
        ([{}] * 4, {}, FILES, "4 files"),
        ([{}] * 6, {}, FILES, "6 files"),
        ([{"seed": 1}, {"seed": 1}, {}, {}, {}], {}, SEEDS, "seed 1"),
        ([{"seed": LEFT_OUT}, {}, {}, {}, {}], {}, SEEDS, "logs no seed"),
        ([{"status": "aborted"}] * 2 + [{}] * 3, {}, FILES, "2 of the five"),
        ([{"status": "aborted"}] * 2 + [{}] * 3, {}, REFERENCE, "More than one"),
        ([{}] * 5, {"batch_size": 128, "epochs": 13}, REFERENCE, "fewer epochs"),
        ([{"batch_size": 128, "epochs": epochs} for epochs in (13, 13, 14, 14, 14)], {}, REFERENCE, "fewer epochs"),
        ([{}] * 5, {"batch_size": 96, "epochs": 13}, REFERENCE, "fewer epochs"),
        ([{}] * 5, {"batch_size": 4, "epochs": 12}, REFERENCE, "batch size of 4"),
        ([{}] * 5, {"batch_size": 512, "epochs": 20}, REFERENCE, "batch size of 512"),
        ([{"batch_size": 128}, {}, {}, {}, {}], {}, REFERENCE, "same global batch size"),
        ([{"eval_accuracy": {"bbox": 0.4, "segm": 0.4}}, {}, {}, {}, {}], {}, PACKAGE, "upper case"),
        ([{"init_minutes": 31}] * 2 + [{}] * 3, {}, FILES, "2 of the five"),
        ([{"opt_base_learning_rate": 0.13}] * 5, {}, FILES, "5 of the five"),
    ],
)
def test_five_runs_that_break_a_rule_are_refused_by_the_part_that_names_it(tmp_path, runs, common, checker, words):
    verdict = checkers.check_package(write_package(tmp_path / "p", runs, **common))
    assert not verdict.accepted and _parts(verdict)[checker] is False
    found = [finding for finding in _findings(verdict, checker) if finding.refuses]
    assert words in "\n".join(f"{finding.text}\n{finding.explanation}" for finding in found)
    assert all(finding.explanation and finding.fix for finding in found)


def test_one_aborted_run_of_five_is_accepted_with_a_note(tmp_path):
    verdict = checkers.check_package(write_package(tmp_path / "p", [{"status": "aborted"}] + [{}] * 4))
    assert verdict.accepted
    assert any("counts as the slowest" in finding.explanation for finding in _findings(verdict, FILES))


def test_several_seeds_in_a_log_are_a_note(tmp_path):
    folder = write_package(tmp_path / "p")
    path = folder / "results" / "synthetic_system" / "maskrcnn" / "result_0.txt"
    path.write_text(log_text([record("seed", 12, 0)]) + path.read_text())
    verdict = checkers.check_package(folder)
    assert verdict.accepted and any("several seeds" in finding.explanation for finding in _findings(verdict, SEEDS))


def test_a_description_without_a_field_is_refused(tmp_path):
    folder = write_package(tmp_path / "p")
    path = folder / "systems" / "synthetic_system.json"
    path.write_text(path.read_text().replace('"cooling": "",', ""))
    verdict = checkers.check_package(folder)
    assert not verdict.accepted and _parts(verdict)[SYSTEM] is False
    assert "cooling" in _findings(verdict, SYSTEM)[0].text and "33" in _findings(verdict, SYSTEM)[0].explanation


def test_a_missing_description_is_refused(tmp_path):
    folder = write_package(tmp_path / "p")
    (folder / "systems" / "synthetic_system.json").rename(folder / "systems" / "other.json")
    verdict = checkers.check_package(folder)
    assert not verdict.accepted
    assert any("synthetic_system.json is missing" in finding.explanation for finding in _findings(verdict, PACKAGE))


def test_a_package_whose_logs_the_official_checker_passes_over_is_refused(tmp_path):
    folder = write_package(tmp_path / "p")
    (folder / "results/synthetic_system/maskrcnn").rename(folder / "results/synthetic_system/mask_rcnn")
    verdict = checkers.check_package(folder)
    assert _parts(verdict)[PACKAGE] is True and not verdict.accepted  # the official words are SUCCESS


def test_a_folder_that_is_no_package_is_an_error_of_the_user(tmp_path):
    with pytest.raises(DataError, match="systems"):
        checkers.check_package(tmp_path)


def test_loose_logs_are_judged_under_their_own_names(tmp_path):
    logs = write_logs(tmp_path / "logs", [{"seed": 1}, {"seed": 1}, {}, {}, {}], name="mine_{}.log")
    verdict = checkers.check_runs(logs, "closed")
    assert not verdict.accepted and SYSTEM not in _parts(verdict)
    assert str(logs[1]) in _findings(verdict, SEEDS)[0].text


def test_files_unfit_for_a_repository_are_named(tmp_path):
    folder = write_package(tmp_path / "p")
    assert checkers.check_repository(folder).accepted is True
    (folder / "with space.txt").touch()
    verdict = checkers.check_repository(folder)
    assert verdict.checker == REPOSITORY and verdict.accepted is False
    assert "with space.txt" in verdict.findings[0].text and "spaces" in verdict.findings[0].explanation


def test_a_checker_that_never_ends_is_a_refusal(tmp_path, slow_way, monkeypatch):
    monkeypatch.setattr(checkers, "TIMEOUT_SECONDS", 0.01)
    verdict = checkers.check_compliance(write_log(tmp_path / "a.txt"))
    assert verdict.accepted is False and "did not finish" in verdict.findings[0].text
