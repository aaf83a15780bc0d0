import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from maskperf.cli import plan as command
from maskperf.cli.main import main
from maskperf.errors import EXIT_DONE, EXIT_USAGE, ConfigError
from maskperf.mlperf.plan import PlanQuestion

SOURCES = Path(command.__file__).resolve().parents[2]
EIGHT = ["--accelerators", "8", "--per-gpu-images-per-second", "186"]


@pytest.fixture(autouse=True)
def in_own_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # a report of a bug would be written there


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
    options = {action.dest for action in command._make_parser()._actions}
    assert {entry.name for entry in fields(PlanQuestion)} - {"last_decay_step"} == options - {"json", "check"}


def test_options_change_what_they_name(capsys):
    words = [*EIGHT, "--batch-size", "64", "--epochs", "20", "--interconnect-gib-per-second", "2", "--json"]
    plan = json.loads(output_of(capsys, *words, "--accelerators-per-node", "4"))["plan"]
    assert (plan["batch_size"], plan["epochs"]["expected"], plan["nodes"]) == (64, 20, 2)
    assert plan["times"]["exchange_ms"] == pytest.approx(1000 * 2 * 7 / 8 * 44_125_173 * 4 / (2 * 2**30))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--accelerators", "8"], "--per-gpu-images-per-second is missing"),
        (["--per-gpu-images-per-second", "8"], "--accelerators is missing"),
        (["--accelerators", "0", "--per-gpu-images-per-second", "8"], "'0' is not a whole number"),
        (["--accelerators", "2.5", "--per-gpu-images-per-second", "8"], "'2.5' is not a whole number"),
        (["--accelerators", "8", "--per-gpu-images-per-second", "nan"], "'nan' is not a number above 0"),
        (["--accelerators", "8", "--per-gpu-images-per-second", "inf"], "'inf' is not a number above 0"),
        ([*EIGHT, "--epochs", "soon"], "'soon' is not a number above 0"),
        ([*EIGHT, "--batch-size", "100"], "96 or 104"),
        ([*EIGHT, "--batch-size", "1000"], "no reference point above batch 272"),
        ([*EIGHT, "--batchsize", "96"], "did you mean --batch-size?"),
        (["--check", "--accelerators", "8"], "--check takes no other option"),
    ],
)
def test_words_that_cannot_be_used_are_explained(words, said):
    with pytest.raises(ConfigError) as caught:
        command.plan(words)
    assert said in str(caught.value)
    assert main(["plan", *words]) == EXIT_USAGE


@pytest.mark.parametrize("words", [[], ["--help"], ["-h", "--accelerators", "8"]])
def test_help_has_examples_that_work(capsys, words):
    text = output_of(capsys, *words)
    examples = [line.strip() for line in text.splitlines() if line.strip().startswith("maskperf plan --")]
    assert len(examples) == 4
    for example in examples:
        assert main(example.split()[1:]) == EXIT_DONE


def test_a_plan_needs_no_torch():
    program = (
        "import sys; from maskperf.cli.main import main; code = main(sys.argv[1:]); "
        "print('torch' in sys.modules, file=sys.stderr); sys.exit(code)"
    )
    words = [sys.executable, "-c", program, "plan", *EIGHT]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=True)
    assert done.stderr.strip() == "False"
