import pytest

from maskperf.machine.facts import CgroupFacts
from maskperf.machine.limits import describe_limits, parse_bytes, parse_cpu_max, read_limits


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("150000 100000", 1.5), ("max 100000", None), ("-1 100000", None), (None, None), ("None None", None), ("", None)],
)
def test_cores_of_a_quota(text, expected):
    assert parse_cpu_max(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("max", None), ("1073741824", 2**30), ("9223372036854771712", None), (None, None)]
)
def test_bytes_of_a_limit(text, expected):
    assert parse_bytes(text) == expected


def test_version_2_takes_the_smallest_limit_of_all_groups_above(tmp_path):
    write(tmp_path / "job" / "cpu.max", "800000 100000")
    write(tmp_path / "job" / "memory.max", "max")
    write(tmp_path / "job" / "step" / "cpu.max", "max 100000")
    write(tmp_path / "job" / "step" / "memory.max", str(64 * 2**30))
    assert read_limits(tmp_path, "0::/job/step") == CgroupFacts(cpu_cores=8.0, memory_gib=64.0)


def test_in_a_container_the_root_itself_holds_the_limit(tmp_path):
    write(tmp_path / "cpu.max", "200000 100000")
    write(tmp_path / "memory.max", str(4 * 2**30))
    assert read_limits(tmp_path, "0::/") == CgroupFacts(cpu_cores=2.0, memory_gib=4.0)


def test_version_1_has_a_folder_per_controller(tmp_path):
    write(tmp_path / "cpu,cpuacct" / "docker" / "cpu.cfs_quota_us", "50000")
    write(tmp_path / "cpu,cpuacct" / "docker" / "cpu.cfs_period_us", "100000")
    write(tmp_path / "cpu,cpuacct" / "cpu.cfs_quota_us", "-1")
    write(tmp_path / "memory" / "docker" / "memory.limit_in_bytes", str(2**31))
    write(tmp_path / "memory" / "memory.limit_in_bytes", "9223372036854771712")
    membership = "9:name=systemd:/\n4:memory:/docker\n2:cpu,cpuacct:/docker\n0::/"
    assert read_limits(tmp_path, membership) == CgroupFacts(cpu_cores=0.5, memory_gib=2.0)


def test_no_limits_are_none(tmp_path):
    assert read_limits(tmp_path, "0::/gone") == CgroupFacts()
    assert read_limits(tmp_path, "") == CgroupFacts()


def test_this_process_can_be_asked():
    limits = describe_limits()
    assert limits.cpu_cores is None or limits.cpu_cores > 0
