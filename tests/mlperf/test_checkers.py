import pytest
from official_checkers import run_in_process
from synthetic_logs import LEFT_OUT, log_records, log_text, moved, record, write_log, write_logs, write_package

from maskperf.errors import DataError
from maskperf.mlperf import checkers
from maskperf.mlperf.checkers import FILES, PACKAGE, REFERENCE, REPOSITORY, SEEDS, SYSTEM
from maskperf.mlperf.findings import explanations

SEVERAL_TIMES = ["cache_clear", "init_start", "epoch_start", "epoch_stop", "eval_start", "eval_stop", "eval_accuracy"]
ONCE = tuple(key for key in explanations().values if key not in [*SEVERAL_TIMES, "block_start", "block_stop"])
WRONG_VALUES = {
    "submission_benchmark": ["mask_rcnn"],
    "submission_division": ["close"],
    "submission_status": ["at home"],
    **dict.fromkeys(("submission_org", "submission_platform", "train_samples", "eval_samples"), [""]),
    **dict.fromkeys(("global_batch_size", "gradient_accumulation_steps", "opt_learning_rate_warmup_factor"), [0]),
    "num_image_candidates": [6500],
    **dict.fromkeys(("min_image_size", "max_image_size", "opt_learning_rate_warmup_steps"), [-1]),
    "opt_learning_rate_decay_factor": [0.2],
    "opt_base_learning_rate": [0.13, "0.12"],
    "opt_learning_rate_decay_steps": [[12000], 12000],
    "eval_accuracy": [
        {"bbox": 0.4, "segm": 0.4},
        {"BBOX": 0.4},
        {"BBOX": 0.3769, "SEGM": 0.339},
        {"BBOX": 0.377, "SEGM": 0.3389},
        {"BBOX": 37.7, "SEGM": 33.9},
    ],
}


@pytest.fixture
def verdict_on(log_of):
    """Return a function that returns the compliance checker's verdict on records, or on a text."""
    return lambda content: checkers.check_compliance(log_of(content).path)


def _parts(verdict):
    return {part.checker: part.accepted for part in verdict.verdicts}


def _findings(verdict, checker):
    return [finding for part in verdict.verdicts if part.checker == checker for finding in part.findings]


def _twice(key):
    """Return a log with a key logged twice, with two values."""
    others = {"submission_benchmark": "ssd", "submission_division": "open", "submission_status": "cloud"}
    (entry,) = (entry for entry in log_records() if entry["key"] == key)
    value = others.get(key, 7 if isinstance(entry["value"], int | float) else [3, 4])
    return [
        again for entry in log_records() for again in (entry, {**entry, "value": value})[: 1 + (entry["key"] == key)]
    ]


def _without_metadata(key, field):
    records = log_records()
    for entry in records:
        if entry["key"] == key:
            del entry["metadata"][field]
    return records


BLOCK = record("block_start", None, 0, first_epoch_num=1, epoch_count=1)
NAMELESS = ("submission_benchmark", "submission_division")  # where they are wrong, no rules are found
WRONG = [(key, value) for key, values in WRONG_VALUES.items() for value in values]
BROKEN = {
    **{f"no {key}": (log_records(**{key: LEFT_OUT}), [key]) for key in (*ONCE, *SEVERAL_TIMES)},
    **{f"two {key}": (_twice(key), [key]) for key in ONCE},
    **{f"{key} {value}": (log_records(**{key: value}), [key] if key not in NAMELESS else []) for key, value in WRONG},
    **{f"{key} without": (_without_metadata(key, "epoch_num"), [key, "epoch_num"]) for key in SEVERAL_TIMES[2:]},
    "run_stop without": (_without_metadata("run_stop", "status"), ["run_stop", "status"]),
    "init_stop early": (moved(log_records(), "init_stop", "init_start"), ["init_stop", " stands "]),
    "run_start early": (moved(log_records(), "run_start", "init_stop"), ["run_start", " stands "]),
    "run_stop early": (moved(log_records(), "run_stop", "run_start"), ["run_stop", " stands "]),
    "init_start late": (
        [*log_records(), record("init_start", None, 30)],
        ["init_start", "after init_stop or run_start"],
    ),
    "block early": ([BLOCK, *log_records()], ["block_start", "after run_start"]),
    "size late": (moved(log_records(batch_size=8), "global_batch_size", "run_stop"), ["opt_base_learning_rate"]),
    "torn": (log_text(log_records())[:-30], ["a line that cannot be read", "run_stop"]),
    "long init": (log_records(init_minutes=30.1), ["init_stop", "30"]),
    "long open init": (log_records(init_minutes=240.1, division="open"), ["init_stop", "240"]),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_log_is_refused_and_what_is_wrong_is_named(verdict_on, broken):
    records, texts = BROKEN[broken]
    verdict = verdict_on(records)
    refusals = [finding for finding in verdict.findings if finding.refuses]
    found = "\n".join(f"{finding.text} {finding.explanation}" for finding in refusals)
    assert verdict.accepted is False and refusals and all(text in found for text in texts), found
    assert all(finding.explanation and finding.fix for finding in refusals), refusals


def test_a_key_logged_twice_with_one_value_is_a_note(verdict_on):
    verdict = verdict_on([entry for entry in log_records() for _ in range(1 + (entry["key"] == "train_samples"))])
    (finding,) = verdict.findings
    assert verdict.accepted is True and not finding.refuses and "train_samples is logged 2 times" in finding.explanation


@pytest.mark.parametrize(
    "choices",
    [{"tracked_every": 500}, {"init_minutes": 29.9}, {"init_minutes": 239.9, "division": "open"}, {"batch_size": 8}],
)
def test_what_is_allowed_is_accepted_without_findings(verdict_on, choices):
    verdict = verdict_on(log_records(**choices))
    assert verdict.accepted is True and verdict.findings == ()


def test_the_line_of_the_file_is_named_for_the_checkers_own_count(verdict_on):
    lines = log_text(log_records(opt_base_learning_rate=0.13)).splitlines(keepends=True)
    text = "starting up\n\n" + "".join(line + "step\r done\n" for line in lines)
    (finding,) = verdict_on(text).findings
    (number,) = [n for n, line in enumerate(text.split("\n"), 1) if "opt_base_learning_rate" in line]
    assert finding.explanation.startswith(f"Line {number} of the file: ")
    assert f"in line {number}:" not in finding.text  # the checker counts otherwise


@pytest.mark.parametrize(
    ("output", "text"),
    [
        *((output, "the checker said neither") for output in ("", "Killed\n", "INFO - Running on file: SUCCESS\n")),
        ("WARNING -  The moon is full\nERROR - FAILED\n", "The moon is full"),  # a finding that nobody knows
    ],
)
def test_without_the_word_success_nothing_is_accepted(output, text):
    verdict = checkers.compliance_verdict(output)
    assert verdict.accepted is False and verdict.findings[0].text.startswith(text)
    assert (verdict.findings[0].explanation == "") == ("moon" in text)
    assert not checkers.PackageVerdict(verdicts=checkers.package_verdicts(output), scaling_factors={}).accepted


@pytest.mark.parametrize("changes", [{}, {"seed": LEFT_OUT, "submission_org": ""}, {"eval_accuracy": {"bbox": 1}}])
def test_a_process_of_its_own_says_the_same_as_in_process(tmp_path, own_process, changes):
    path = write_log(tmp_path / "a.txt", **changes)
    output = run_in_process("compliance_checker", ["--usage", "training", "--ruleset", "3.1.0", str(path)])
    expected = checkers.compliance_verdict(output, checkers.lines_with_a_record(path))
    assert checkers.check_compliance(path) == expected


def test_a_package_is_accepted_and_left_as_it_is(tmp_path, own_process):
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
    ("runs", "common", "checker", "text"),
    [
        *(([{}] * count, {}, FILES, f"{count} files") for count in (4, 6)),
        ([{"seed": 1}, {"seed": 1}, {}, {}, {}], {}, SEEDS, "seed 1"),
        ([{"seed": LEFT_OUT}, {}, {}, {}, {}], {}, SEEDS, "logs no seed"),
        ([{"status": "aborted"}] * 2 + [{}] * 3, {}, FILES, "2 of the five"),
        ([{"status": "aborted"}] * 2 + [{}] * 3, {}, REFERENCE, "More than one"),
        ([{"batch_size": 128, "epochs": epochs} for epochs in (13, 13, 14, 14, 14)], {}, REFERENCE, "fewer epochs"),
        ([{}] * 5, {"batch_size": 4, "epochs": 12}, REFERENCE, "batch size of 4"),
        ([{}] * 5, {"batch_size": 512, "epochs": 20}, REFERENCE, "batch size of 512"),
        ([{"batch_size": 128}, {}, {}, {}, {}], {}, REFERENCE, "same global batch size"),
        ([{"eval_accuracy": {"bbox": 0.4, "segm": 0.4}}, {}, {}, {}, {}], {}, PACKAGE, "upper case"),
        ([{"init_minutes": 31}] * 2 + [{}] * 3, {}, FILES, "2 of the five"),
        ([{"opt_base_learning_rate": 0.13}] * 5, {}, FILES, "5 of the five"),
    ],
)
def test_five_runs_that_break_a_rule_are_refused_by_the_part_that_names_it(tmp_path, runs, common, checker, text):
    verdict = checkers.check_package(write_package(tmp_path / "p", runs, **common))
    assert not verdict.accepted and _parts(verdict)[checker] is False
    found = [finding for finding in _findings(verdict, checker) if finding.refuses]
    assert text in "\n".join(f"{finding.text}\n{finding.explanation}" for finding in found)
    assert all(finding.explanation and finding.fix for finding in found)


def test_one_aborted_run_of_five_and_several_seeds_in_a_log_are_notes(tmp_path):
    folder = write_package(tmp_path / "p", [{"status": "aborted"}] + [{}] * 4)
    path = folder / "results/synthetic_system/maskrcnn/result_1.txt"
    path.write_text(log_text([record("seed", 12, 0)]) + path.read_text())
    verdict = checkers.check_package(folder)
    assert verdict.accepted
    assert any("counts as the slowest" in finding.explanation for finding in _findings(verdict, FILES))
    assert any("several seeds" in finding.explanation for finding in _findings(verdict, SEEDS))


def test_system_descriptions_that_lack_a_field_or_are_missing_are_refused(tmp_path):
    folder = write_package(tmp_path / "p")
    path = folder / "systems" / "synthetic_system.json"
    path.write_text(path.read_text().replace('"cooling": "",', ""))
    verdict = checkers.check_package(folder)
    assert not verdict.accepted and _parts(verdict)[SYSTEM] is False
    assert "cooling" in _findings(verdict, SYSTEM)[0].text and "33" in _findings(verdict, SYSTEM)[0].explanation
    path.rename(folder / "systems" / "other.json")
    verdict = checkers.check_package(folder)
    assert not verdict.accepted
    assert any("synthetic_system.json is missing" in finding.explanation for finding in _findings(verdict, PACKAGE))


def test_a_package_whose_logs_the_official_checker_passes_over_is_refused(tmp_path):
    folder = write_package(tmp_path / "p")
    (folder / "results/synthetic_system/maskrcnn").rename(folder / "results/synthetic_system/mask_rcnn")
    verdict = checkers.check_package(folder)
    assert _parts(verdict)[PACKAGE] is True and not verdict.accepted  # the official verdict is SUCCESS


def test_a_folder_that_is_no_package_is_an_error_of_the_user(tmp_path):
    with pytest.raises(DataError, match="systems"):
        checkers.check_package(tmp_path)


def test_loose_logs_are_checked_under_their_own_names(tmp_path):
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


def test_a_checker_that_never_ends_is_a_refusal(tmp_path, own_process, monkeypatch):
    monkeypatch.setattr(checkers, "TIMEOUT_SECONDS", 0.01)
    verdict = checkers.check_compliance(write_log(tmp_path / "a.txt"))
    assert verdict.accepted is False and "did not finish" in verdict.findings[0].text
