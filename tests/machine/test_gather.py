import resource

import pytest

from maskperf.machine import probe as module
from maskperf.machine.probe import (
    checkout_folder,
    docker_state,
    gather,
    is_writable_folder,
    look_for_data,
    parse_docker_runtimes,
    parse_docker_version,
    parse_timedatectl,
    process_limits,
    read_pins,
    watched,
)
from maskperf.machine.situation import DockerFacts
from maskperf.machine.sources import Answer
from maskperf.recipes import coco


def test_variables_that_no_check_looks_at_are_left_out():
    environment = {"HOME": "/root", "API_TOKEN": "secret", "NCCL_DEBUG": "INFO", "RANK": "0", "OMP_NUM_THREADS": "1"}
    assert watched(environment) == {"NCCL_DEBUG": "INFO", "RANK": "0", "OMP_NUM_THREADS": "1"}


def test_data_and_weights_that_are_there(tmp_path):
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "instances_train2017.json").touch()
    (root / "val2017").mkdir()
    for name in ("1.jpg", "2.jpg", "readme.txt"):
        (root / "val2017" / name).touch()
    (tmp_path / "R-50.pkl").touch()
    place = look_for_data(root, "data/R-50.pkl", was_asked_for=True)
    assert (place.train_json, place.val_json) == (True, False)
    assert (place.train_images, place.val_images) == (None, 2)
    assert place.weights == str(tmp_path / "R-50.pkl")


def test_data_that_is_not_there(tmp_path):
    place = look_for_data(tmp_path / "none", "R-50.pkl", was_asked_for=False)
    assert (place.train_json, place.train_images, place.weights) == (False, None, None)


def test_pins_of_a_checkout(tmp_path):
    (tmp_path / "constraints.txt").write_text("# versions\ntorch==2.13.0\nmlperf-logging==4.1.68\n")
    assert read_pins(tmp_path) == {"torch": "2.13.0", "mlperf-logging": "4.1.68"}
    assert read_pins(None) == {}


def test_this_checkout_pins_torch():
    checkout = checkout_folder()
    if checkout is None:
        pytest.skip("an installed copy has no constraints.txt")
    assert "torch" in read_pins(checkout)


def test_limits_of_this_process():
    limits = process_limits()
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert limits.open_files == (None if soft == resource.RLIM_INFINITY else soft)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Timezone=UTC\nNTP=yes\nNTPSynchronized=yes\n", True),
        ("NTPSynchronized=no", False),
        ("NTP=yes", None),
        ("", None),
    ],
)
def test_clock(text, expected):
    assert parse_timedatectl(text) == expected


def test_words_of_docker():
    assert parse_docker_version("Docker version 28.2.2, build e6534b4") == "28.2.2"
    assert parse_docker_version("command not found") is None
    assert parse_docker_runtimes('{"runc":{"path":"runc"},"nvidia":{}}') == ("nvidia", "runc")
    assert parse_docker_runtimes("null\n") == ()
    assert parse_docker_runtimes("") == ()


def test_docker_is_absent_silent_or_complete(monkeypatch):
    answers = {}
    monkeypatch.setattr(module, "run_program", lambda words, seconds: answers.get(words[1], Answer()))
    assert docker_state() is None
    answers["--version"] = Answer(output="Docker version 28.2.2, build x")
    answers["info"] = Answer(complaint="Cannot connect to the Docker daemon")
    assert docker_state() == DockerFacts(version="28.2.2", daemon_answers=False)
    answers["info"] = Answer(output='{"runc":{}}')
    assert docker_state() == DockerFacts(version="28.2.2", daemon_answers=True, runtimes=("runc",))


def test_everything_about_this_machine(tmp_path):
    situation = gather(coco(), data=str(tmp_path / "coco"), run_dir=str(tmp_path / "runs"))
    assert situation.data.was_asked_for
    assert situation.data_storage.path == situation.run_storage.path == str(tmp_path)
    assert situation.run_folder_writable
    assert situation.disk_speed is None


def test_a_file_is_no_folder_for_runs(tmp_path):
    (tmp_path / "file").touch()
    assert is_writable_folder(tmp_path)
    assert not is_writable_folder(tmp_path / "file")
