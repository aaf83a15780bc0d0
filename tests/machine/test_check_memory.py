from dataclasses import replace

import pytest
from synthetic_machine import gpu_situation, plain_situation, with_machine

from maskperf.machine.check_memory import (
    check_core_files,
    check_locked_memory,
    check_memory,
    check_open_files,
    check_shared_memory,
)
from maskperf.machine.facts import CgroupFacts, InfinibandFacts, MemoryFacts
from maskperf.machine.situation import ProcessLimits


def with_memory(situation, **changes):
    return with_machine(situation, memory=replace(situation.machine.memory, **changes))


@pytest.mark.parametrize(
    ("available_gib", "level", "word"),
    [
        (0.5, "problem", "demo"),
        (3.0, "note", "COCO wants"),
        (16.0, "ok", "reads the disk"),
        (100.0, "ok", "stay in it"),
        (None, "note", "per process"),
    ],
)
def test_memory_against_the_needs_of_a_run(available_gib, level, word):
    finding = check_memory(with_memory(plain_situation(), available_gib=available_gib))
    assert finding.level == level
    assert word in finding.meaning


def test_the_limit_of_a_container_counts_and_not_the_memory_of_its_host():
    finding = check_memory(with_machine(plain_situation(), limits=CgroupFacts(memory_gib=0.5)))
    assert finding.level == "problem"
    assert "limited to 0.5 GiB" in finding.value


def test_eight_processes_need_eight_times_the_memory():
    assert check_memory(with_memory(gpu_situation(8), available_gib=20.0)).level == "note"
    assert check_memory(with_memory(gpu_situation(1), available_gib=20.0)).level == "ok"


def test_a_small_shared_memory_is_a_problem_for_several_gpus_only():
    small = {"shared_memory_gib": 0.0625}  # the default of docker run
    assert check_shared_memory(with_memory(gpu_situation(2), **small)).level == "problem"
    assert check_shared_memory(with_memory(gpu_situation(1), **small)).level == "ok"
    assert check_shared_memory(with_memory(gpu_situation(2), shared_memory_gib=8.0)).level == "ok"
    assert check_shared_memory(with_machine(plain_situation(), memory=MemoryFacts())) is None


@pytest.mark.parametrize(
    ("limit", "gpus", "level"),
    [(64, 0, "problem"), (1024, 0, "ok"), (1024, 8, "note"), (4096, 8, "ok"), (None, 8, "ok")],
)
def test_open_files(limit, gpus, level):
    situation = gpu_situation(gpus) if gpus else plain_situation()
    assert check_open_files(replace(situation, process_limits=ProcessLimits(open_files=limit))).level == level


def test_locked_memory_matters_for_infiniband_only():
    low = ProcessLimits(locked_memory_gib=2**-14)
    assert check_locked_memory(plain_situation(process_limits=low)) is None
    adapter = (InfinibandFacts(name="mlx5_0 port 1", state="ACTIVE"),)
    assert check_locked_memory(with_machine(plain_situation(process_limits=low), infiniband=adapter)).level == "problem"
    assert check_locked_memory(with_machine(plain_situation(), infiniband=adapter)).level == "ok"


@pytest.mark.parametrize(("limit", "level"), [(0.0, "ok"), (1.0, "note"), (None, "note")])
def test_core_files(limit, level):
    assert check_core_files(plain_situation(process_limits=ProcessLimits(core_file_gib=limit))).level == level
