import json
from dataclasses import fields

import pytest

from maskperf.cli import plan as command
from maskperf.cli.main import main
from maskperf.errors import EXIT_DONE, EXIT_USAGE
from maskperf.mlperf.plan import PlanQuestion

EIGHT = ["--accelerators", "8", "--per-gpu-images-per-second", "186"]


def output_of(capsys, *words):
    assert main(["plan", *words]) == EXIT_DONE
    return capsys.readouterr().out


def test_plan_for_eight_devices_shows_table_place_limits_and_assumptions(capsys):
    text = output_of(capsys, *EIGHT)
    chosen = next(line for line in text.splitlines() if line.startswith("> "))
    assert chosen.split()[1:5] == ["96", "12", "1222", "14.3"]
    assert "64.5" in chosen
    assert "place 8 of 24" in text
    for heading in ("step ms", "all-reduce ms", "evaluation s", "What limits it:", "Assumed, with the option"):
        assert heading in text
    assert max(len(line) for line in text.partition("What limits")[0].splitlines()) <= 120


def test_plan_for_1024_devices_is_answered(capsys):
    text = output_of(capsys, "--accelerators", "1024", "--per-gpu-images-per-second", "94")
    assert "no reference point above batch 272" in text
    assert "752 of 1024 would only evaluate or be idle" in text
    assert "place 1 of 24" in text


def test_json_has_the_same_numbers(capsys):
    found = json.loads(output_of(capsys, *EIGHT, "--json"))
    assert found["plan"]["batch_size"] == 96
    assert found["plan"]["score_minutes"]["expected"] == pytest.approx(19.56, abs=0.005)
    assert [other["batch_size"] for other in found["other_batch_sizes"]] == [8, 48, 64]
    assert len(found["places"]) == 24
    assert found["limits"] and found["assumptions"]


def test_check_shows_every_published_system_and_the_errors(capsys):
    text = output_of(capsys, "--check")
    assert "Errors of 23 systems" in text
    found = json.loads(output_of(capsys, "--check", "--json"))
    assert len(found["systems"]) == 23
    assert found["median_error"] <= 0.05
    assert found["largest_error"] <= 0.15


def test_every_value_of_a_question_has_an_option(capsys):
    options = {action.dest for action in command.make_parser()._actions}
    assert {entry.name for entry in fields(PlanQuestion)} == options - {"json", "check"}


def test_options_change_what_they_name(capsys):
    words = [*EIGHT, "--batch-size", "64", "--epochs", "20", "--interconnect-gib-per-second", "2", "--gradient-bytes"]
    words += ["2", "--overlap-share", "0", "--evaluation-images-per-second", "500", "--scoring-seconds", "5", "--json"]
    words += ["--start-seconds", "1", "--tail-seconds", "2", "--init-seconds", "3", "--failing-share", "0"]
    plan = json.loads(output_of(capsys, *words))["plan"]
    assert (plan["batch_size"], plan["epochs"]["expected"], plan["void_share"]) == (64, 20, 0)
    times = plan["times"]
    assert times["exchange_ms"] == pytest.approx(1000 * 2 * 7 / 8 * 44_125_173 * 2 / (2 * 2**30))
    assert times["exposed_exchange_ms"] == times["exchange_ms"]
    assert times["evaluation_seconds"] == pytest.approx(5000 / (8 * 500) + 5)
    assert (times["start_seconds"], times["tail_seconds"], times["init_seconds"]) == (1, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--accelerators", "8"], "--per-gpu-images-per-second is missing"),
        (["--per-gpu-images-per-second", "8"], "--accelerators is missing"),
        (["--accelerators", "0", "--per-gpu-images-per-second", "8"], "an integer >= 1"),
        (["--accelerators", "2.5", "--per-gpu-images-per-second", "8"], "an integer >= 1"),
        (["--accelerators", "8", "--per-gpu-images-per-second", "nan"], "a number > 0"),
        (["--accelerators", "8", "--per-gpu-images-per-second", "inf"], "a number > 0"),
        ([*EIGHT, "--overlap-share", "1.5"], "a number >= 0 and < 1"),
        ([*EIGHT, "--scoring-seconds", "soon"], "a number >= 0"),
        ([*EIGHT, "--gradient-bytes", "8"], "invalid choice: 8"),
        ([*EIGHT, "--batch-size", "100"], "96 or 104"),
        ([*EIGHT, "--batch-size", "1000"], "no reference point above batch 272"),
        ([*EIGHT, "--batchsize", "96"], "did you mean --batch-size?"),
        (["--check", "--accelerators", "8"], "--check takes no other option"),
    ],
)
def test_arguments_that_cannot_be_used_are_explained(arguments, named, capsys):
    assert main(["plan", *arguments]) == EXIT_USAGE
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--help"], ["-h", "--accelerators", "8"]])
def test_help_has_examples_that_work(capsys, words):
    text = output_of(capsys, *words)
    examples = [line.strip() for line in text.splitlines() if line.strip().startswith("maskperf plan --")]
    assert len(examples) == 4
    for example in examples:
        assert main(example.split()[1:]) == EXIT_DONE


def test_a_plan_needs_no_torch(new_process):
    program = "import sys; from maskperf.cli.main import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    assert new_process("-c", program, "plan", *EIGHT).returncode == 0
