import json

import pytest
from official_checkers import run_in_process
from synthetic_logs import write_logs, write_series

from maskperf.cli.main import execute
from maskperf.errors import EXIT_DONE, EXIT_RULE, ConfigError, DataError, RuleError, StorageError
from maskperf.mlperf import checkers
from maskperf.overrides import to_json_text
from maskperf.recipes import RECIPES

OTHER_MACHINE = {
    "cpu_model": "Xeon of elsewhere",
    "gpus": [{"name": "H200", "memory_gib": 139.8}] * 8,
    "processes": 8,
    "git_commit": "abc",
}


@pytest.fixture(autouse=True)
def in_process(request, monkeypatch):
    if "slow_way" not in request.fixturenames:
        monkeypatch.setattr(checkers, "_run", run_in_process)


@pytest.fixture
def slow_way():
    """Leave each checker in a process of its own."""


def package(folder, *more, system="box"):
    options = ["--submitter", "me", "--system", system, "--output", str(folder / "me")]
    return execute(["package", *options, *map(str, more)])


def _description(folder):
    return json.loads((folder / "me" / "systems" / "box.json").read_text())


def test_five_runs_become_a_package_that_the_official_checkers_accept(tmp_path, capsys, slow_way):
    series = write_series(tmp_path / "series")
    assert package(tmp_path, series) == EXIT_DONE
    shown = capsys.readouterr().out
    assert "package checker             accepted" in shown and "repository checker          accepted" in shown
    output = checkers._run("package_checker", [str(tmp_path / "me"), "training", "3.1.0"])
    assert "PACKAGE CHECKER FOUND NO ERRORS, SUCCESS" in output


def test_unknown_fields_are_listed_on_the_screen_and_beside_the_package(tmp_path, capsys):
    assert package(tmp_path, write_series(tmp_path / "series")) == EXIT_DONE
    shown, text = capsys.readouterr().out, (tmp_path / "me-to-fill.txt").read_text()
    empty = [line.strip() for line in text.splitlines() if line.startswith("  ") and "--" not in line]
    assert "cooling" in empty and all(name in shown for name in empty)
    assert all(_description(tmp_path)[name] == "" for name in empty)


def test_fields_are_filled_from_options_and_from_a_file(tmp_path):
    given = tmp_path / "given.json"
    given.write_text(json.dumps({"cooling": "water", "host_networking": "none", "submitter": "somebody else"}))
    fill = ["--fill", "cooling=air", "--system-json", given, "--fill", "hw_notes=a=b, c"]
    assert package(tmp_path, *fill, write_series(tmp_path / "series")) == EXIT_DONE
    description = _description(tmp_path)
    assert (description["cooling"], description["host_networking"]) == ("air", "none")
    assert description["submitter"] == "me" and description["hw_notes"] == "a=b, c"
    assert description["division"] == "closed" and description["status"] == "onprem"
    assert "cooling" not in (tmp_path / "me-to-fill.txt").read_text()


def test_runs_of_another_machine_are_not_described_as_this_one(tmp_path, capsys):
    series = write_series(tmp_path / "series")
    (series / "run_0" / "environment.json").write_text(json.dumps(OTHER_MACHINE))
    (series / "run_0" / "config.json").write_text(to_json_text(RECIPES["coco_batch_96"]()))
    assert package(tmp_path, series) == EXIT_DONE
    assert "another machine" in capsys.readouterr().out
    description = _description(tmp_path)
    assert description["host_processor_model_name"] == "Xeon of elsewhere" and description["number_of_nodes"] == "1"
    assert description["sw_notes"] == "maskperf at commit abc"
    assert description["accelerators_per_node"] == "8" and description["host_storage_type"] == ""
    script = tmp_path / "me/benchmarks/maskrcnn/implementations/box/run_and_time.sh"
    assert "coco_batch_96" in script.read_text() and "processes=8" in script.read_text()


def test_a_scaling_factor_lies_in_the_package(tmp_path):
    series = write_series(tmp_path / "series", [{"epochs": epochs} for epochs in (12, 12, 13, 13, 13)], batch_size=8)
    assert package(tmp_path, series) == EXIT_DONE
    path = tmp_path / "me" / "results" / "box" / "maskrcnn" / "scaling.json"
    assert json.loads(path.read_text())["scaling_factor"] == pytest.approx(12.75 / (38 / 3))


def test_five_logs_do_as_well_as_a_series_and_a_refusal_is_reported(tmp_path, capsys):
    assert package(tmp_path, *write_logs(tmp_path / "logs")) == EXIT_DONE
    code = package(tmp_path / "other", write_series(tmp_path / "series", batch_size=128, epochs=13))
    assert code == EXIT_RULE and "fewer epochs" in capsys.readouterr().out


def test_five_demos_are_packed_but_called_demos(tmp_path, capsys):
    choices = {"recipe": "demo", "targets": (0.3, 0.3), "division": "open"}
    assert package(tmp_path, write_series(tmp_path / "series", **choices)) == EXIT_DONE
    shown = capsys.readouterr().out
    assert "a demo is not a submission" in shown and shown.splitlines()[-1].startswith("accepted in form only")
    system = tmp_path / "me/benchmarks/maskrcnn/implementations/box"
    assert "a demo is not a submission" in (system / "README.md").read_text()
    assert "DATA_ROOT" not in (system / "run_and_time.sh").read_text()


def test_nothing_is_written_over(tmp_path):
    series = write_series(tmp_path / "series")
    (tmp_path / "me").mkdir()
    with pytest.raises(StorageError, match="exists already"):
        package(tmp_path, series)
    (tmp_path / "me").rmdir()
    (tmp_path / "me-to-fill.txt").write_text("mine")
    with pytest.raises(StorageError, match="to-fill"):
        package(tmp_path, series)
    assert not (tmp_path / "me").exists() and (tmp_path / "me-to-fill.txt").read_text() == "mine"


def test_mistakes_are_found_before_anything_is_written(tmp_path):
    series = write_series(tmp_path / "series")
    with pytest.raises(ConfigError, match="name of a folder"):
        package(tmp_path, series, system="two words")
    with pytest.raises(RuleError, match="mlperf.division=open"):
        package(tmp_path, "--division", "open", series)
    with pytest.raises(ConfigError, match="4 logs"):
        package(tmp_path, *write_logs(tmp_path / "logs", [{}] * 4))
    (series / "run_2" / "mlperf.log").unlink()
    with pytest.raises(DataError, match="run_2"):
        package(tmp_path, series)
    assert not (tmp_path / "me").exists()


@pytest.mark.parametrize("name", ["environment.json", "config.json"])
def test_a_run_folder_that_was_changed_is_an_error_of_the_user(tmp_path, name):
    series = write_series(tmp_path / "series")
    (series / "run_0" / name).write_text("[]")
    with pytest.raises(DataError, match=name):
        package(tmp_path, series)
