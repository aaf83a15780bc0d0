from dataclasses import replace

from synthetic_machine import gpu, gpu_situation, plain_situation

from maskperf.config import OptimizerConfig
from maskperf.machine.check_gpus import (
    check_gpu_bus,
    check_gpu_links,
    check_gpu_list,
    check_gpu_memory,
    check_gpu_speed,
    check_gpu_split,
    check_gpu_use,
    needed_gib,
)
from maskperf.machine.facts import GpuProcess
from maskperf.machine.situation import TorchProbe

CHECKS_OF_GPUS = (check_gpu_list, check_gpu_memory, check_gpu_use, check_gpu_split, check_gpu_links, check_gpu_bus)


def test_a_machine_without_gpus_has_nothing_to_tell():
    assert [check(plain_situation()) for check in CHECKS_OF_GPUS] == [None] * len(CHECKS_OF_GPUS)


def test_gpus_of_several_kinds_are_noted():
    assert check_gpu_list(gpu_situation(2)).value == "2 x NVIDIA H100 80GB HBM3"
    mixed = gpu_situation(2, gpus=(gpu(0), gpu(1, name="NVIDIA L40S")))
    assert check_gpu_list(mixed).level == "note"


def test_memory_is_compared_with_the_batch_of_the_recipe():
    assert check_gpu_memory(gpu_situation(1)).level == "ok"
    assert check_gpu_memory(gpu_situation(2, gpus=(gpu(0), gpu(1, memory_gib=2.0)))).level == "note"
    assert check_gpu_memory(gpu_situation(1, gpus=(gpu(0, memory_gib=None),))) is None


def test_the_number_of_images_said_to_fit_does_fit():
    for memory_gib in (4.0, 8.0, 11.0, 79.6):
        situation = gpu_situation(1, gpus=(gpu(0, memory_gib=memory_gib),))
        one = replace(situation, config=replace(situation.config, optimizer=OptimizerConfig(batch_size=1)))
        fitting = int(check_gpu_memory(one).meaning.split()[1])
        assert needed_gib(fitting) <= memory_gib < needed_gib(fitting + 1)


def test_other_users_of_a_gpu_are_named():
    assert check_gpu_use(gpu_situation(1)).level == "ok"
    named = gpu_situation(1, group={"processes": (GpuProcess(process_id=7, name="python"),)})
    assert (check_gpu_use(named).level, check_gpu_use(named).value) == ("note", "python (process 7)")
    unseen = gpu_situation(1, gpus=(gpu(0, memory_used_gib=30.0),))
    assert check_gpu_use(unseen).level == "note"
    assert "30.0 GiB" in check_gpu_use(unseen).value


def test_a_split_gpu_is_noted():
    assert check_gpu_split(gpu_situation(2)) is None
    finding = check_gpu_split(gpu_situation(2, gpus=(gpu(0, is_split=False), gpu(1, is_split=True))))
    assert (finding.level, finding.value) == ("note", "GPU 1")


def test_links_over_the_processor_are_noted():
    assert check_gpu_links(gpu_situation(8)).value == "NV18 (28 pairs)"
    slow = gpu_situation(2, group={"links": (("X", "SYS"), ("SYS", "X"))})
    assert check_gpu_links(slow).level == "note"
    assert check_gpu_links(gpu_situation(2, group={"links": (("X", "PIX"), ("PIX", "X"))})).level == "ok"


def test_few_lanes_are_noted():
    assert check_gpu_bus(gpu_situation(1)) is None
    finding = check_gpu_bus(gpu_situation(2, gpus=(gpu(0), gpu(1, pcie_lanes=1, pcie_generation=3))))
    assert finding.value == "GPU 1: 1 lane(s) of generation 3"


def test_a_gpu_slower_than_the_others_is_noted():
    even = gpu_situation(2, torch_probe=TorchProbe(gpu_names=("a", "b"), gpu_gflops=(50000.0, 48000.0)))
    assert check_gpu_speed(even).level == "ok"
    odd = gpu_situation(2, torch_probe=TorchProbe(gpu_names=("a", "b"), gpu_gflops=(50000.0, 20000.0)))
    assert check_gpu_speed(odd).level == "note"
    assert "GPU 1" in check_gpu_speed(odd).meaning
    assert check_gpu_speed(gpu_situation(2)) is None
