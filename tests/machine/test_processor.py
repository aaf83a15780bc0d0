import json
import os
from pathlib import Path

import pytest

from maskperf.machine import processor
from maskperf.machine.facts import CacheFacts, CgroupFacts

# Written by hand in the form of lscpu -J: util-linux 2.37 and older are flat, newer ones may nest.
TWO_SOCKET_AMD = """
    Architecture: x86_64
    CPU(s): 256
    Model name: AMD EPYC 7763
    Core(s) per socket: 64
    Socket(s): 2
    CPU max MHz: 3529.0520
    Flags: fpu avx avx2 fma f16c
    L3 cache: 512 MiB (16 instances)
    NUMA node(s): 8
"""
CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz
cpu MHz\t\t: 2095.000
flags\t\t: fpu avx avx2 avx512f hypervisor

processor\t: 1
model name\t: Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz
"""
NESTED = """{"lscpu": [
      {"field": "Architecture:", "data": "aarch64", "children": [{"field": "Byte Order:", "data": "Little Endian"}]},
      {"field": "CPU(s):", "data": "144", "children": [{"field": "On-line CPU(s) list:", "data": "0-143"}]},
      {"field": "Vendor ID:", "data": "ARM", "children": [
        {"field": "Model name:", "data": "Neoverse-V2", "children": [
          {"field": "Thread(s) per core:", "data": "1"}, {"field": "Core(s) per socket:", "data": "72"},
          {"field": "Socket(s):", "data": "2"}, {"field": "CPU max MHz:", "data": "3402.0000"},
          {"field": "Flags:", "data": "fp asimd sve sve2 bf16"}]}]},
      {"field": "Caches (sum of all):", "data": null, "children": [
        {"field": "L1d:", "data": "9 MiB (144 instances)"}]},
      {"field": "NUMA:", "data": null, "children": [{"field": "NUMA node(s):", "data": "2"}]}]}"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def lscpu_text(fields):
    lines = [line.strip().split(": ") for line in fields.strip().splitlines()]
    return json.dumps({"lscpu": [{"field": f"{name}:", "data": value} for name, value in lines]})


def cpu_of(lscpu, cpuinfo="", frequency=Path("/nonexistent")):
    return processor.cpu_facts(processor.parse_lscpu(lscpu), cpuinfo, frequency)


@pytest.mark.parametrize(
    ("text", "model", "cores", "maximum_mhz", "instructions", "cache"),
    [
        (
            lscpu_text(TWO_SOCKET_AMD),
            "AMD EPYC 7763",
            (2, 128, 256, 8),
            3529.052,
            "avx avx2 fma f16c",
            ("L3", 2**19, 16),
        ),
        (NESTED, "Neoverse-V2", (2, 144, 144, 2), 3402.0, "asimd sve sve2 bf16", ("L1d", 9216, 144)),
    ],
)
def test_flat_and_nested_fields_of_lscpu(text, model, cores, maximum_mhz, instructions, cache):
    cpu = cpu_of(text)
    assert (cpu.sockets, cpu.physical_cores, cpu.logical_cores, cpu.numa_nodes) == cores
    assert (cpu.model, cpu.maximum_mhz, cpu.instruction_sets) == (model, maximum_mhz, tuple(instructions.split()))
    assert [(found.name, found.total_kib, found.instances) for found in cpu.caches] == [cache]
    assert (cpu.hypervisor, cpu.governor, cpu.base_mhz) == (None, None, None)


def test_without_lscpu_cpuinfo_is_read():
    cpu = cpu_of("", CPUINFO)
    assert (cpu.model, cpu.vendor) == ("Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz", "GenuineIntel")
    assert (cpu.base_mhz, cpu.current_mhz, cpu.logical_cores) == (2100.0, 2095.0, 2)
    assert (cpu.sockets, cpu.physical_cores, cpu.hypervisor) == (None, None, "unnamed")
    assert cpu.instruction_sets == ("avx", "avx2", "avx512f")


@pytest.mark.parametrize("text", ["", "lscpu: failed", "[]", "{}", "null"])
def test_without_an_answer_of_lscpu_everything_is_unknown_and_no_error(text):
    cpu = cpu_of(text)
    assert (cpu.model, cpu.sockets, cpu.physical_cores, cpu.logical_cores, cpu.caches) == (None, None, None, None, ())


def test_a_dash_of_lscpu_is_unknown_and_clusters_count_where_arm_has_no_sockets():
    assert processor.parse_lscpu(lscpu_text("Model name: -\nCPU(s): 4")) == {"CPU(s)": "4"}
    assert processor.count_cores({"Socket(s)": "-", "Core(s) per cluster": "4", "Cluster(s)": "2"}) == (None, 8)


def test_frequency_folder_of_sys_is_in_khz(tmp_path):
    values = {"base_frequency": 2000000, "cpuinfo_max_freq": 3800000, "scaling_governor": "powersave"}
    for name, text in values.items():
        write(tmp_path / name, text)
    cpu = cpu_of("", frequency=tmp_path)
    assert (cpu.base_mhz, cpu.maximum_mhz, cpu.governor) == (2000.0, 3800.0, "powersave")


@pytest.mark.parametrize(
    ("text", "kib", "instances"),
    [
        ("32K", 32.0, None),
        ("1.5 MiB (48 instances)", 1536.0, 48),
        ("32 MiB (1 instance)", 2.0**15, 1),
        ("1 GiB", 2.0**20, None),
    ],
)
def test_sizes_of_caches_in_old_and_new_form(text, kib, instances):
    expected = CacheFacts(name="L2", total_kib=kib, instances=instances)
    assert processor.caches_of_lscpu({"L2 cache": text}) == (expected,)


def test_two_threads_of_one_core_are_one_usable_core(monkeypatch):
    monkeypatch.setattr("maskperf.machine.processor.read_text", lambda path: "0-1")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    assert processor.usable_physical_cores() == 1


def test_this_machine_can_be_described():
    cpu = processor.describe_cpu()
    assert cpu.architecture == os.uname().machine
    assert 1 <= cpu.usable_physical_cores <= cpu.usable_logical_cores <= (cpu.logical_cores or os.cpu_count())
    limits = processor.describe_limits()
    assert limits.cpu_cores is None or limits.cpu_cores > 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("150000 100000", 1.5), ("max 100000", None), ("-1 100000", None), (None, None), ("None None", None), ("", None)],
)
def test_cores_of_a_quota(text, expected):
    assert processor.parse_cpu_max(text) == expected


def test_version_2_takes_the_smallest_limit_of_all_groups_above(tmp_path):
    write(tmp_path / "job" / "cpu.max", "800000 100000")
    write(tmp_path / "job" / "memory.max", "max")
    write(tmp_path / "job" / "step" / "cpu.max", "max 100000")
    write(tmp_path / "job" / "step" / "memory.max", 64 * 2**30)
    assert processor.read_limits(tmp_path, "0::/job/step") == CgroupFacts(cpu_cores=8.0, memory_gib=64.0)


def test_in_a_container_the_root_itself_holds_the_limit(tmp_path):
    assert processor.read_limits(tmp_path, "0::/") == processor.read_limits(tmp_path, "") == CgroupFacts()
    write(tmp_path / "cpu.max", "200000 100000")
    write(tmp_path / "memory.max", 4 * 2**30)
    assert processor.read_limits(tmp_path, "0::/") == CgroupFacts(cpu_cores=2.0, memory_gib=4.0)


def test_version_1_has_a_folder_per_controller(tmp_path):
    write(tmp_path / "cpu,cpuacct" / "docker" / "cpu.cfs_quota_us", 50000)
    write(tmp_path / "cpu,cpuacct" / "docker" / "cpu.cfs_period_us", 100000)
    write(tmp_path / "cpu,cpuacct" / "cpu.cfs_quota_us", -1)
    write(tmp_path / "memory" / "docker" / "memory.limit_in_bytes", 2**31)
    write(tmp_path / "memory" / "memory.limit_in_bytes", 9223372036854771712)
    membership = "9:name=systemd:/\n4:memory:/docker\n2:cpu,cpuacct:/docker\n0::/"
    assert processor.read_limits(tmp_path, membership) == CgroupFacts(cpu_cores=0.5, memory_gib=2.0)
