from dataclasses import replace

import pytest
from synthetic_machine import gpu_situation, plain_situation, with_machine

from maskperf.machine.check_software import (
    check_docker,
    check_driver,
    check_python,
    check_system,
    check_torch,
    check_torch_build,
    check_torch_sees_gpus,
    check_torch_works,
    check_versions,
    numbers_of,
)
from maskperf.machine.facts import GpuGroup
from maskperf.machine.situation import DockerFacts, TorchProbe


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.13.0+cpu", (2, 13, 0)), ("13.0", (13, 0)), ("cpu", ()), ("", ()), ("2.14.0a0", (2, 14, 0))],
)
def test_numbers_at_the_start_of_a_version(version, expected):
    assert numbers_of(version) == expected


@pytest.mark.parametrize(
    ("kernel", "container", "level", "word"),
    [
        ("Linux 6.12", None, "ok", "Linux"),
        ("Linux 6.12", "docker", "ok", "container (docker)"),
        ("Linux 5.15.167-microsoft-standard-WSL2", None, "note", "WSL"),
        ("Darwin 24", None, "note", "Darwin"),
    ],
)
def test_system(kernel, container, level, word):
    finding = check_system(with_machine(plain_situation(), kernel=kernel, container=container))
    assert finding.level == level
    assert word in finding.value


@pytest.mark.parametrize(("python", "level"), [((3, 10, 9), "problem"), ((3, 11, 0), "ok"), ((4, 0, 0), "ok")])
def test_python(python, level):
    assert check_python(plain_situation(python=python)).level == level


@pytest.mark.parametrize(
    ("version", "level"), [(None, "problem"), ("2.10.1", "problem"), ("2.11.0+cu130", "ok"), ("3.0.0", "ok")]
)
def test_torch(version, level):
    assert check_torch(with_machine(plain_situation(), software={"torch": version})).level == level


def test_a_torch_for_cpu_beside_a_gpu_is_a_problem():
    assert check_torch_build(gpu_situation(1)).level == "ok"
    finding = check_torch_build(replace(gpu_situation(1), torch_build="cpu"))
    assert finding.level == "problem"
    assert "CUDA" in finding.fix
    assert check_torch_build(replace(gpu_situation(1), torch_build="rocm 6.4")).level == "problem"


def test_a_torch_for_cpu_beside_a_gpu_without_driver_is_a_problem():
    situation = with_machine(plain_situation(), gpu=GpuGroup(cards_on_bus=2))
    assert check_torch_build(situation).level == "problem"


def test_without_a_gpu_either_build_will_do():
    assert check_torch_build(plain_situation()).level == "ok"
    assert check_torch_build(plain_situation(torch_build="13.0")).level == "note"
    assert check_torch_build(plain_situation(torch_build=None)) is None


@pytest.mark.parametrize(
    ("driver_cuda", "build", "level"),
    [
        ("13.0", "13.0", "ok"),
        ("13.1", "13.0", "ok"),
        ("12.8", "13.0", "problem"),
        ("12.2", "12.8", "note"),
        ("13.0", "12.8", "ok"),
        (None, "13.0", "note"),
        ("13.0", None, "note"),
        ("12.4", "cpu", "ok"),
    ],
)
def test_driver_against_the_cuda_of_torch(driver_cuda, build, level):
    situation = replace(gpu_situation(1, group={"driver_cuda": driver_cuda}), torch_build=build)
    assert check_driver(situation).level == level


def test_an_old_driver_is_told_which_one_it_takes():
    assert "580.65.06" in check_driver(gpu_situation(1, group={"driver_cuda": "12.4"})).fix


@pytest.mark.parametrize(
    ("group", "word"),
    [
        (GpuGroup(cards_on_bus=4), "4 NVIDIA card(s)"),
        (GpuGroup(complaint="NVIDIA-SMI has failed"), "NVIDIA card(s)"),
    ],
)
def test_cards_without_a_driver_are_a_problem(group, word):
    finding = check_driver(with_machine(plain_situation(), gpu=group))
    assert finding.level == "problem"
    assert word in finding.meaning


def test_a_machine_without_cards_needs_no_driver():
    assert check_driver(plain_situation()) is None


def test_torch_and_nvidia_smi_must_see_the_same_gpus():
    both = TorchProbe(gpu_names=("H100", "H100"))
    assert check_torch_sees_gpus(gpu_situation(2, torch_probe=both)).level == "ok"
    one = TorchProbe(gpu_names=("H100",))
    assert check_torch_sees_gpus(gpu_situation(2, torch_probe=one)).level == "problem"
    hidden = gpu_situation(2, torch_probe=one, environment={"CUDA_VISIBLE_DEVICES": "1"})
    assert check_torch_sees_gpus(hidden).level == "note"
    assert check_torch_sees_gpus(gpu_situation(2)) is None
    assert check_torch_sees_gpus(plain_situation(torch_probe=both)) is None


def test_a_torch_that_crashes_is_a_problem_with_or_without_gpus():
    broken = TorchProbe(failure="ImportError: libcudart.so.13")
    finding = check_torch_sees_gpus(gpu_situation(1, torch_probe=broken))
    assert finding.level == "problem"
    assert "libcudart" in finding.meaning
    assert check_torch_works(gpu_situation(1, torch_probe=broken)) is None  # said once
    assert check_torch_works(plain_situation(torch_probe=broken)).level == "problem"
    assert check_torch_works(plain_situation(torch_probe=TorchProbe())) is None


def test_versions_other_than_pinned_are_named_and_a_mark_of_the_build_is_no_difference():
    pinned = {"torch": "2.13.0", "numpy": "2.4.6", "pytest": "9.2.0"}
    same = {"torch": "2.13.0+cpu", "numpy": "2.4.6", "pytest": None}
    assert check_versions(plain_situation(pinned=pinned, pinned_installed=same)).level == "ok"
    finding = check_versions(plain_situation(pinned=pinned, pinned_installed={**same, "numpy": "2.5.0"}))
    assert (finding.level, finding.value) == ("note", "numpy 2.5.0 (pinned: 2.4.6)")
    assert check_versions(plain_situation()) is None


def test_many_other_versions_are_counted():
    pinned = {f"package{number}": "1" for number in range(9)}
    finding = check_versions(plain_situation(pinned=pinned, pinned_installed=dict.fromkeys(pinned, "2")))
    assert finding.value.endswith("and 3 more")


def test_docker_matters_where_there_are_gpus():
    without = DockerFacts(version="28.2.2", daemon_answers=True, runtimes=("runc",))
    assert check_docker(plain_situation()).value == "not found"
    assert check_docker(plain_situation(docker=without)).level == "ok"
    assert check_docker(gpu_situation(1, docker=without)).level == "note"
    assert check_docker(gpu_situation(1, docker=replace(without, runtimes=("nvidia", "runc")))).level == "ok"
    silent = DockerFacts(version="28.2.2", daemon_answers=False)
    assert "does not answer" in check_docker(gpu_situation(1, docker=silent)).value
