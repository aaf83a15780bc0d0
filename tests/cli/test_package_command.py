import json

import pytest
from synthetic_logs import write_logs, write_series

from maskperf.errors import EXIT_DATA, EXIT_DONE, EXIT_RULE, EXIT_STORAGE, EXIT_USAGE
from maskperf.mlperf import checkers
from maskperf.overrides import to_json_text
from maskperf.recipes import RECIPES

OTHER_MACHINE = {
    "cpu_model": "Xeon of elsewhere",
    "gpus": [{"name": "H200", "memory_gib": 139.8}] * 8,
    "processes": 8,
    "git_commit": "abc",
}


@pytest.fixture
def series(tmp_path):
    return write_series(tmp_path / "series")


@pytest.fixture
def package_in_processes(maskperf):
    """Return a function that makes the package `me`, each checker in a process of its own."""
    return lambda *more: maskperf("package", "--submitter", "me", "--system", "box", "--output", "me", *more)


@pytest.fixture
def package(package_in_processes, checkers_in_process):
    return package_in_processes


@pytest.fixture
def description(package, tmp_path):
    """Return a function that makes the package and returns its system description."""

    def run(*more):
        assert package(*more).code == EXIT_DONE
        return json.loads((tmp_path / "me" / "systems" / "box.json").read_text())

    return run


def test_five_runs_become_a_package_that_the_official_checkers_accept(tmp_path, package_in_processes, series):
    shown = package_in_processes(series)
    assert shown.code == EXIT_DONE
    assert "package checker             accepted" in shown.out and "repository checker          accepted" in shown.out
    output = checkers._run("package_checker", [str(tmp_path / "me"), "training", "3.1.0"])
    assert "PACKAGE CHECKER FOUND NO ERRORS, SUCCESS" in output


def test_unknown_fields_are_listed_on_the_screen_and_beside_the_package(tmp_path, package, series):
    shown, text = package(series).out, (tmp_path / "me-to-fill.txt").read_text()
    empty = [line.strip() for line in text.splitlines() if line.startswith("  ") and "--" not in line]
    assert "cooling" in empty and all(name in shown for name in empty)
    written = json.loads((tmp_path / "me" / "systems" / "box.json").read_text())
    assert all(written[name] == "" for name in empty)


def test_fields_are_filled_from_options_and_from_a_file(tmp_path, description, series):
    given = tmp_path / "given.json"
    given.write_text(json.dumps({"cooling": "water", "host_networking": "none", "submitter": "somebody else"}))
    found = description("--fill", "cooling=air", "--system-json", given, "--fill", "hw_notes=a=b, c", series)
    expected = {"cooling": "air", "host_networking": "none", "submitter": "me", "hw_notes": "a=b, c"}
    expected |= {"division": "closed", "status": "onprem"}
    assert {name: found[name] for name in expected} == expected
    assert "cooling" not in (tmp_path / "me-to-fill.txt").read_text()


def test_runs_of_another_machine_are_described_from_what_they_recorded(tmp_path, description, series):
    (series / "run_0" / "environment.json").write_text(json.dumps(OTHER_MACHINE))
    (series / "run_0" / "config.json").write_text(to_json_text(RECIPES["coco_batch_96"]()))
    found = description(series)
    expected = {"host_processor_model_name": "Xeon of elsewhere", "number_of_nodes": "1", "host_storage_type": ""}
    expected |= {"sw_notes": "maskperf at commit abc", "accelerators_per_node": "8"}
    assert {name: found[name] for name in expected} == expected
    script = (tmp_path / "me/benchmarks/maskrcnn/implementations/box/run_and_time.sh").read_text()
    assert "coco_batch_96" in script and "processes=8" in script


def test_a_scaling_factor_lies_in_the_package(tmp_path, package):
    runs = [{"epochs": epochs} for epochs in (12, 12, 13, 13, 13)]
    assert package(write_series(tmp_path / "series", runs, batch_size=8)).code == EXIT_DONE
    path = tmp_path / "me" / "results" / "box" / "maskrcnn" / "scaling.json"
    assert json.loads(path.read_text())["scaling_factor"] == pytest.approx(12.75 / (38 / 3))


def test_five_logs_do_as_well_as_a_series(tmp_path, package):
    assert package(*write_logs(tmp_path / "logs")).code == EXIT_DONE


def test_a_package_that_the_checkers_refuse_is_reported(tmp_path, package):
    shown = package(write_series(tmp_path / "series", batch_size=128, epochs=13))
    assert shown.code == EXIT_RULE and "fewer epochs" in shown.out


def test_five_demos_are_packed_but_called_demos(tmp_path, package):
    shown = package(write_series(tmp_path / "series", recipe="demo", targets=(0.3, 0.3), division="open"))
    assert shown.code == EXIT_DONE and shown.out.splitlines()[-1].startswith("accepted in form only")
    system = tmp_path / "me/benchmarks/maskrcnn/implementations/box"
    assert all("a demo is not a submission" in text for text in (shown.out, (system / "README.md").read_text()))
    assert "DATA_ROOT" not in (system / "run_and_time.sh").read_text()


@pytest.mark.parametrize("taken", ["me", "me-to-fill.txt"])
def test_nothing_is_written_over(tmp_path, package, series, taken):
    (tmp_path / taken).write_text("mine")
    shown = package(series)
    assert shown.code == EXIT_STORAGE and taken in shown.err and "exists already" in shown.err
    assert (tmp_path / taken).read_text() == "mine" and [path.name for path in tmp_path.glob("me*")] == [taken]


def test_mistakes_are_found_before_anything_is_written(tmp_path, package, series):
    (write_series(tmp_path / "lost") / "run_2" / "mlperf.log").unlink()
    for arguments, code, named in (
        (["--system", "two words", series], EXIT_USAGE, "name of a folder"),
        (["--division", "open", series], EXIT_RULE, "mlperf.division=open"),
        (write_logs(tmp_path / "logs", [{}] * 4), EXIT_USAGE, "4 logs"),
        ([tmp_path / "lost"], EXIT_DATA, "run_2"),
    ):
        shown = package(*arguments)
        assert shown.code == code and named in shown.err
    assert not (tmp_path / "me").exists()


@pytest.mark.parametrize("name", ["environment.json", "config.json"])
def test_a_run_folder_that_was_changed_is_an_error_of_the_user(package, series, name):
    (series / "run_0" / name).write_text("[]")
    shown = package(series)
    assert shown.code == EXIT_DATA and name in shown.err
