import json
import os
from pathlib import Path

import pytest

from maskperf.machine.facts import CacheFacts
from maskperf.machine.processor import (
    caches_of_lscpu,
    combine_cpu,
    count_cores,
    count_nodes,
    describe_cpu,
    mhz_of_name,
    parse_cpuinfo,
    parse_lscpu,
    read_caches,
    usable_logical_cores,
    usable_physical_cores,
)

# Written by hand in the form of lscpu -J: util-linux 2.37 and older are flat, newer ones may nest.
TWO_SOCKET_AMD = {
    "Architecture:": "x86_64",
    "CPU(s):": "256",
    "Vendor ID:": "AuthenticAMD",
    "Model name:": "AMD EPYC 7763 64-Core Processor",
    "Thread(s) per core:": "2",
    "Core(s) per socket:": "64",
    "Socket(s):": "2",
    "CPU max MHz:": "3529.0520",
    "Flags:": "fpu avx avx2 fma f16c",
    "L1d cache:": "4 MiB (128 instances)",
    "L1i cache:": "4 MiB (128 instances)",
    "L2 cache:": "64 MiB (128 instances)",
    "L3 cache:": "512 MiB (16 instances)",
    "NUMA node(s):": "8",
}
INTEL_CPUINFO_CORE = """processor\t: {logical}
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz
cpu MHz\t\t: 2100.000
physical id\t: {socket}
siblings\t: 4
core id\t\t: {core}
cpu cores\t: 2
flags\t\t: fpu avx avx2 avx512f hypervisor
"""
ARM_CPUINFO = """processor\t: 0
BogoMIPS\t: 2000.00
Features\t: fp asimd asimddp sve sve2 bf16 i8mm
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd4f

processor\t: 1
BogoMIPS\t: 2000.00
Features\t: fp asimd asimddp sve sve2 bf16 i8mm
CPU implementer\t: 0x41
CPU part\t: 0xd4f
"""


def lscpu_text(fields):
    return json.dumps({"lscpu": [{"field": name, "data": value} for name, value in fields.items()]})


def two_socket_intel_cpuinfo():
    cores = [(socket, core) for _thread in range(2) for socket in range(2) for core in range(2)]
    texts = [INTEL_CPUINFO_CORE.format(logical=i, socket=socket, core=core) for i, (socket, core) in enumerate(cores)]
    return "\n".join(texts)


def combine(lscpu, cpuinfo, frequency=Path("/nonexistent"), architecture="x86_64", numa_nodes=None):
    fields = parse_lscpu(lscpu)
    return combine_cpu(
        fields,
        parse_cpuinfo(cpuinfo),
        architecture=architecture,
        usable=(2, 4),
        caches=caches_of_lscpu(fields),
        frequency=frequency,
        numa_nodes=numa_nodes,
    )


def test_two_sockets_of_amd():
    cpu = combine(lscpu_text(TWO_SOCKET_AMD), "")
    assert (cpu.sockets, cpu.physical_cores, cpu.logical_cores, cpu.numa_nodes) == (2, 128, 256, 8)
    assert cpu.model == "AMD EPYC 7763 64-Core Processor"
    assert cpu.maximum_mhz == 3529.052
    assert cpu.instruction_sets == ("avx", "avx2", "fma", "f16c")
    assert cpu.caches[3] == CacheFacts(name="L3", total_kib=512.0 * 1024, instances=16)
    assert (cpu.hypervisor, cpu.governor, cpu.base_mhz) == (None, None, None)


def test_nested_fields_of_a_newer_lscpu_on_grace():
    text = """{"lscpu": [
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
    cpu = combine(text, "", architecture="aarch64")
    assert (cpu.model, cpu.sockets, cpu.physical_cores, cpu.logical_cores) == ("Neoverse-V2", 2, 144, 144)
    assert cpu.instruction_sets == ("asimd", "sve", "sve2", "bf16")
    assert cpu.numa_nodes == 2
    assert cpu.caches == (CacheFacts(name="L1d", total_kib=9.0 * 1024, instances=144),)


def test_a_container_without_lscpu_reads_cpuinfo():
    cpu = combine("", two_socket_intel_cpuinfo())
    assert (cpu.sockets, cpu.physical_cores, cpu.logical_cores) == (2, 4, 8)
    assert cpu.base_mhz == 2100.0
    assert cpu.current_mhz == 2100.0
    assert cpu.hypervisor == "unnamed"
    assert cpu.instruction_sets == ("avx", "avx2", "avx512f")


def test_arm_without_lscpu_is_named_by_its_part_number():
    cpu = combine("", ARM_CPUINFO, architecture="aarch64", numa_nodes=1)
    assert (cpu.model, cpu.logical_cores, cpu.sockets, cpu.physical_cores) == ("Neoverse-V2", 2, None, None)
    assert "bf16" in cpu.instruction_sets
    assert cpu.numa_nodes == 1


def test_an_arm_part_that_is_not_known_has_no_name():
    assert combine("", ARM_CPUINFO.replace("0xd4f", "0xfff")).model is None


def test_nothing_at_all_is_unknown_and_no_error():
    cpu = combine("", "")
    assert (cpu.model, cpu.sockets, cpu.physical_cores, cpu.logical_cores, cpu.caches) == (None, None, None, None, ())


@pytest.mark.parametrize("text", ["", "lscpu: failed", "[]", "{}", "null"])
def test_text_that_is_no_answer_of_lscpu_has_no_fields(text):
    assert parse_lscpu(text) == {}


def test_a_dash_of_lscpu_is_unknown():
    assert parse_lscpu(lscpu_text({"Model name:": "-", "CPU(s):": "4"})) == {"CPU(s)": "4"}


def test_clusters_count_where_arm_has_no_sockets():
    assert count_cores({"Socket(s)": "-", "Core(s) per cluster": "4", "Cluster(s)": "2"}, []) == (None, 8)


def test_frequency_folder_of_sys_is_in_khz(tmp_path):
    for name, text in {
        "base_frequency": "2000000",
        "cpuinfo_max_freq": "3800000",
        "scaling_governor": "powersave",
    }.items():
        (tmp_path / name).write_text(text + "\n")
    cpu = combine("", "", frequency=tmp_path)
    assert (cpu.base_mhz, cpu.maximum_mhz, cpu.governor) == (2000.0, 3800.0, "powersave")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Intel(R) Xeon(R) CPU @ 2.70GHz", 2700.0), ("AMD EPYC 9654", None), (None, None), ("X @ fast GHz", None)],
)
def test_base_frequency_in_a_name(name, expected):
    assert mhz_of_name(name) == expected


@pytest.mark.parametrize(
    ("text", "kib", "instances"),
    [
        ("32K", 32.0, None),
        ("1.5 MiB (48 instances)", 1536.0, 48),
        ("32 MiB (1 instance)", 32768.0, 1),
        ("1 GiB", 2.0**20, None),
    ],
)
def test_sizes_of_caches_in_old_and_new_form(text, kib, instances):
    expected = CacheFacts(name="L2", total_kib=kib, instances=instances)
    assert caches_of_lscpu({"L2 cache": text}) == (expected,)


def test_caches_of_sys_that_cores_share_count_once(tmp_path):
    for core in range(4):
        for index, level, kind, size, shared in (
            (0, "1", "Data", "48K", str(core)),
            (1, "1", "Instruction", "32K", str(core)),
            (2, "3", "Unified", "36M", "0-3"),
        ):
            folder = tmp_path / f"cpu{core}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, text in (("level", level), ("type", kind), ("size", size), ("shared_cpu_list", shared)):
                (folder / name).write_text(text + "\n")
    assert read_caches(tmp_path) == (
        CacheFacts(name="L1d", total_kib=192.0, instances=4),
        CacheFacts(name="L1i", total_kib=128.0, instances=4),
        CacheFacts(name="L3", total_kib=36.0 * 1024, instances=1),
    )


def test_a_virtual_machine_without_caches_has_none(tmp_path):
    assert read_caches(tmp_path) == ()


def test_nodes_are_counted(tmp_path):
    assert count_nodes(tmp_path) is None
    for name in ("node0", "node1", "possible"):
        (tmp_path / name).mkdir()
    assert count_nodes(tmp_path) == 2


def test_usable_cores_are_at_least_one_and_at_most_those_of_the_machine():
    assert 1 <= usable_physical_cores() <= usable_logical_cores() <= os.cpu_count()


def test_two_threads_of_one_core_are_one_usable_core(monkeypatch):
    monkeypatch.setattr("maskperf.machine.processor.read_text", lambda path: "0-1")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    assert (usable_physical_cores(), usable_logical_cores()) == (1, 2)


def test_this_machine_can_be_described():
    cpu = describe_cpu()
    assert cpu.architecture == os.uname().machine
    assert cpu.usable_logical_cores <= (cpu.logical_cores or os.cpu_count())
