import dataclasses
import json
import platform
import resource
import subprocess
import sys

import pytest

from maskperf.machine import probe
from maskperf.machine.facts import DockerFacts
from maskperf.machine.sources import Answer, first_number, read_number, read_text, run_program, whole_number
from maskperf.recipes import coco


def test_the_whole_machine_is_json_and_does_not_name_the_host(tmp_path):
    env = probe.gather(coco(), data=str(tmp_path / "coco"), run_dir=str(tmp_path / "runs"))
    assert env.data.was_asked_for and env.run_folder_writable and env.run_storage.path == str(tmp_path)
    facts = json.loads(json.dumps(dataclasses.asdict(env.machine), allow_nan=False))
    assert facts["storage"]["path"] == str(tmp_path)
    assert facts["operating_system"] and facts["kernel"].startswith(platform.system())
    assert facts["memory"]["total_gib"] > 0.1
    assert not any("host" in name or "user" in name for name in facts)
    assert set(facts["software"]) == {"python", *probe.PACKAGES}
    assert facts["software"]["torch"] == probe.installed_version("torch") is not None


def test_no_module_of_machine_loads_torch():
    code = "import sys, maskperf.machine.checks, maskperf.machine.probe, maskperf.machine.speed; "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=300, check=False).returncode == 0


def test_name_of_a_system_without_a_distribution(monkeypatch):
    def refuse():
        raise OSError

    monkeypatch.setattr(platform, "freedesktop_os_release", refuse)
    assert probe.operating_system() == platform.platform()


@pytest.mark.parametrize(
    ("mark", "text", "expected"),
    [
        ("proc/1/cgroup", "0::/kubepods.slice/pod1", "kubernetes"),
        ("proc/1/cgroup", "4:memory:/docker/abc", "docker"),
        ("proc/1/cgroup", "1:name=systemd:/lxc/c1", "lxc"),
        ("proc/1/cgroup", "0::/init.scope", None),
        (".dockerenv", "", "docker"),
        ("run/.containerenv", "", "podman"),
        ("elsewhere", "", None),
    ],
)
def test_a_container_is_known_by_its_marks(tmp_path, monkeypatch, mark, text, expected):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    (tmp_path / mark).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / mark).write_text(text)
    assert probe.container(tmp_path) == expected
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert probe.container(tmp_path) == "kubernetes"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None", "13.0"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = None", "cpu"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4'", "rocm 6.4"),
        ("cuda = '12.8'", "12.8"),
        ("", None),
    ],
)
def test_the_build_of_torch_is_parsed(text, expected):
    assert probe.parse_torch_build(text) == expected


@pytest.mark.parametrize(("output", "expected"), [("yes\n", True), ("no\n", False), ("\n", None), (None, None)])
def test_the_clock_is_synchronized_or_not_or_unknown(monkeypatch, output, expected):
    monkeypatch.setattr(probe, "run_program", lambda arguments, seconds: Answer(output=output))
    assert probe.clock_synchronized() is expected


def test_build_of_the_installed_torch_is_that_of_torch():
    import torch

    assert probe.torch_build() == (torch.version.cuda or "cpu")
    assert probe.installed_version("maskperf-no-such-package") is None


def test_variables_that_no_check_looks_at_are_left_out():
    variables = {"HOME": "/root", "API_TOKEN": "secret", "NCCL_DEBUG": "INFO", "RANK": "0", "OMP_NUM_THREADS": "1"}
    assert probe.watched(variables) == {"NCCL_DEBUG": "INFO", "RANK": "0", "OMP_NUM_THREADS": "1"}


def test_data_and_weights_that_are_there(tmp_path):
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "instances_train2017.json").touch()
    (root / "val2017").mkdir()
    for name in ("1.jpg", "2.jpg", "readme.txt"):
        (root / "val2017" / name).touch()
    (tmp_path / "R-50.pkl").touch()
    data = probe.find_data(root, "data/R-50.pkl", was_asked_for=True)
    assert (data.train_json, data.val_json) == (True, False)
    assert (data.train_images, data.val_images) == (None, 2)
    assert data.weights == str(tmp_path / "R-50.pkl")
    nothing = probe.find_data(tmp_path / "none", "none.pkl", was_asked_for=False)
    assert (nothing.train_json, nothing.train_images, nothing.weights) == (False, None, None)


def test_pins_of_a_checkout(tmp_path):
    (tmp_path / "constraints.txt").write_text("# versions\ntorch==2.13.0\nmlperf-logging==4.1.68\n")
    assert probe.read_pins(tmp_path) == {"torch": "2.13.0", "mlperf-logging": "4.1.68"}
    assert probe.read_pins(None) == {}
    assert probe.checkout_folder() is None or "torch" in probe.read_pins(probe.checkout_folder())


def test_limits_of_this_process():
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert probe.process_limits().open_files == (None if soft == resource.RLIM_INFINITY else soft)


DOCKER = Answer(output="Docker version 28.2.2, build x")
BOTH_RUNTIMES = DockerFacts(version="28.2.2", runtimes=("nvidia", "runc"))


@pytest.mark.parametrize(
    ("version", "runtimes", "expected"),
    [
        (Answer(), Answer(), None),
        (Answer(output="command not found"), Answer(), None),
        (DOCKER, Answer(complaint="no daemon"), DockerFacts(version="28.2.2")),
        (DOCKER, Answer(output="\n"), DockerFacts(version="28.2.2")),
        (DOCKER, Answer(output="runc\nnvidia\n\n"), BOTH_RUNTIMES),
    ],
)
def test_docker_is_absent_silent_or_complete(monkeypatch, version, runtimes, expected):
    answers = {"--version": version, "info": runtimes}
    monkeypatch.setattr(probe, "run_program", lambda arguments, seconds: answers[arguments[1]])
    assert probe.docker_facts() == expected


def test_a_file_is_no_folder_for_runs(tmp_path):
    (tmp_path / "file").touch()
    assert probe.is_writable_folder(tmp_path)
    assert not probe.is_writable_folder(tmp_path / "file")


LAST_LINE = "import sys; print('first', file=sys.stderr); print('last line', file=sys.stderr); sys.exit(3)"


@pytest.mark.parametrize(
    ("code", "output", "complaint"),
    [
        ("print('yes')", "yes\n", None),
        (LAST_LINE, None, "last line"),
        ("raise SystemExit(3)", None, f"{sys.executable} ended with 3"),
    ],
)
def test_the_answer_of_a_program(code, output, complaint):
    assert run_program([sys.executable, "-c", code]) == Answer(output=output, complaint=complaint)


def test_programs_that_are_missing_or_hang():
    assert run_program(["maskperf-no-such-program"]) == Answer()
    assert "0.3 s" in run_program([sys.executable, "-c", "import time; time.sleep(60)"], 0.3).complaint


@pytest.mark.parametrize(
    ("text", "number", "whole"),
    [
        ("400 Gb/sec", 400.0, 400),
        ("3529.0520\n", 3529.052, None),
        ("-1\n", -1.0, -1),
        *((text, None, None) for text in ("Unknown", "max\n", "0x41", "", None)),
    ],
)
def test_numbers_of_texts_and_of_small_files(tmp_path, text, number, whole):
    assert (first_number(text), whole_number(text)) == (number, whole)
    if text is not None:
        (tmp_path / "file").write_text(text)
    assert read_number(tmp_path / "file") == whole
    assert read_text(tmp_path / "file") == (None if text is None else text.strip())
