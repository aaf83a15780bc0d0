import json

import pytest

from maskperf.errors import EXIT_DONE

EIGHT = ["--accelerators", "8", "--per-gpu-images-per-second", "186"]


@pytest.fixture
def plan(maskperf):
    """Return a function that makes a plan and returns its text."""

    def run(*arguments):
        shown = maskperf("plan", *arguments)
        assert (shown.code, shown.err) == (EXIT_DONE, "")
        return shown.out

    return run


def test_plan_for_eight_devices_shows_table_place_limits_and_assumptions(plan):
    text = plan(*EIGHT)
    chosen = next(line for line in text.splitlines() if line.startswith("> "))
    assert chosen.split()[1:5] == ["96", "12", "1222", "14.3"] and "64.5" in chosen
    assert "place 8 of 24" in text
    for heading in ("step ms", "all-reduce ms", "evaluation s", "What limits it:", "Assumed, with the option"):
        assert heading in text
    assert max(len(line) for line in text.partition("What limits")[0].splitlines()) <= 120


def test_plan_for_1024_devices_is_answered(plan):
    text = plan("--accelerators", "1024", "--per-gpu-images-per-second", "94")
    assert "no reference point above batch 272" in text
    assert "752 of 1024 would only evaluate or be idle" in text and "place 1 of 24" in text


def test_json_has_the_same_numbers(plan):
    found = json.loads(plan(*EIGHT, "--json"))
    assert found["plan"]["batch_size"] == 96
    assert found["plan"]["score_minutes"]["expected"] == pytest.approx(19.56, abs=0.005)
    assert [other["batch_size"] for other in found["other_batch_sizes"]] == [8, 48, 64]
    assert len(found["places"]) == 24 and found["limits"] and found["assumptions"]


def test_check_shows_every_published_system_and_the_errors(plan):
    assert "Errors of 23 systems" in plan("--check")
    found = json.loads(plan("--check", "--json"))
    assert len(found["systems"]) == 23
    assert found["median_error"] <= 0.05 and found["largest_error"] <= 0.15


def test_options_change_what_they_name(plan):
    options = ["--batch-size", "64", "--epochs", "20", "--interconnect-gib-per-second", "2", "--json"]
    found = json.loads(plan(*EIGHT, *options, "--accelerators-per-node", "4"))["plan"]
    assert (found["batch_size"], found["epochs"]["expected"], found["nodes"]) == (64, 20, 2)
    assert found["times"]["exchange_ms"] == pytest.approx(1000 * 2 * 7 / 8 * 44_125_173 * 4 / (2 * 2**30))


def test_the_examples_of_the_help_work(plan):
    examples = [line.split() for line in plan("--help").splitlines() if line.startswith("  maskperf plan --")]
    assert len(examples) == 4
    for _, _, *arguments in examples:
        assert plan(*arguments)
