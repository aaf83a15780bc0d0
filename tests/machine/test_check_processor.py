from dataclasses import replace

import pytest
from synthetic_machine import gpu_situation, plain_situation, with_cpu, with_machine

from maskperf.machine.check_processor import (
    check_clock,
    check_cores,
    check_cpu,
    check_cpu_limit,
    check_cpu_speed,
    check_governor,
    check_hyperthreads,
    check_load,
    check_numa,
    check_picture_speed,
    check_thread_variables,
)
from maskperf.machine.facts import CgroupFacts
from maskperf.machine.situation import PictureSpeed, TorchProbe


def test_a_processor_without_vector_instructions_is_noted():
    assert check_cpu(with_cpu()).level == "ok"
    assert check_cpu(with_cpu(instruction_sets=("avx",))).level == "note"
    assert "KVM" in check_cpu(with_cpu(hypervisor="KVM")).value


def test_cores_must_do_for_all_processes_and_their_loaders():
    assert check_cores(gpu_situation(8)).level == "ok"
    few = gpu_situation(8)
    few = with_machine(few, cpu=replace(few.machine.cpu, usable_physical_cores=8, usable_logical_cores=16))
    finding = check_cores(few)
    assert finding.level == "note"
    assert "want 24" in finding.meaning  # 8 processes, each with itself and two loader threads
    assert "of 192 logical cores" in finding.value
    assert check_cores(with_cpu(usable_physical_cores=2, usable_logical_cores=2)).level == "ok"


@pytest.mark.parametrize(("limit", "level"), [(4.0, "note"), (0.5, "note"), (32.0, "ok"), (64.0, "ok")])
def test_cpu_limit_of_a_container(limit, level):
    assert check_cpu_limit(with_machine(plain_situation(), limits=CgroupFacts(cpu_cores=limit))).level == level


@pytest.mark.parametrize(("limit", "threads"), [(0.5, 1), (1.0, 1), (3.9, 3), (8.0, 8), (20.0, 16)])
def test_a_cpu_limit_says_how_many_threads_a_run_takes(limit, threads):
    finding = check_cpu_limit(with_machine(plain_situation(), limits=CgroupFacts(cpu_cores=limit)))
    assert finding.meaning.endswith(f"system.threads=0 takes {threads}")
    assert check_cpu_limit(plain_situation()) is None


def test_hyperthreads_are_told():
    assert check_hyperthreads(with_cpu()).value == "2 thread(s) per core, 1 socket(s)"
    assert check_hyperthreads(with_cpu(logical_cores=16)).value.startswith("1 thread")
    assert check_hyperthreads(with_cpu(physical_cores=None)) is None


def test_several_memory_nodes_are_noted():
    assert check_numa(with_cpu()).level == "ok"
    assert "numactl" in check_numa(with_cpu(numa_nodes=2)).fix
    gpus = gpu_situation(2)
    assert "GPU" in check_numa(with_machine(gpus, cpu=replace(gpus.machine.cpu, numa_nodes=2))).fix
    assert check_numa(with_cpu(numa_nodes=None)) is None


@pytest.mark.parametrize(("governor", "level"), [("performance", "ok"), ("powersave", "note"), (None, "ok")])
def test_governor(governor, level):
    assert check_governor(with_cpu(governor=governor)).level == level


@pytest.mark.parametrize(("load", "level"), [(0.5, "ok"), (8.0, "ok"), (8.1, "note"), (64.0, "note")])
def test_more_than_a_quarter_of_busy_cores_is_noted(load, level):
    assert check_load(plain_situation(load_average=load)).level == level


def test_an_unknown_load_is_not_judged():
    assert check_load(plain_situation(load_average=None)) is None


def test_variables_that_bind_threads_are_noted():
    assert check_thread_variables(plain_situation()).level == "ok"
    assert check_thread_variables(plain_situation(environment={"OMP_NUM_THREADS": "1"})).level == "ok"
    finding = check_thread_variables(plain_situation(environment={"KMP_AFFINITY": "compact", "OMP_NUM_THREADS": "1"}))
    assert finding.level == "note"
    assert "Unset KMP_AFFINITY" in finding.fix


@pytest.mark.parametrize(("state", "level"), [(True, "ok"), (False, "note"), (None, "ok")])
def test_clock(state, level):
    assert check_clock(plain_situation(clock_synchronized=state)).level == level


def pictures(prepare_per_second):
    return PictureSpeed(decode_per_second=300.0, prepare_per_second=prepare_per_second, jpeg_kib=140.0)


def test_making_pictures_must_keep_up_with_the_gpus():
    assert check_picture_speed(plain_situation()) is None
    assert check_picture_speed(plain_situation(picture_speed=pictures(50.0))).level == "ok"
    assert (
        check_picture_speed(gpu_situation(8, picture_speed=pictures(100.0))).level == "ok"
    )  # two threads: 200 a second
    more = check_picture_speed(gpu_situation(8, picture_speed=pictures(50.0)))
    assert (more.level, "data.loader_threads=4" in more.fix) == ("note", True)
    assert "need 30 cores" in more.meaning  # 1480 / 50, rounded
    hopeless = check_picture_speed(gpu_situation(8, picture_speed=pictures(10.0)))
    assert "148 cores; there are 96" in hopeless.meaning
    assert "wait" in hopeless.fix


def test_slow_matrix_products_are_noted():
    assert check_cpu_speed(plain_situation(torch_probe=TorchProbe(cpu_gflops=1500.0, cpu_threads=16))).level == "ok"
    assert check_cpu_speed(plain_situation(torch_probe=TorchProbe(cpu_gflops=150.0, cpu_threads=16))).level == "note"
    assert check_cpu_speed(plain_situation(torch_probe=TorchProbe(failure="broken"))) is None
    assert check_cpu_speed(plain_situation()) is None
