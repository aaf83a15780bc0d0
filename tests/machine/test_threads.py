from pathlib import Path

import pytest

from maskperf.machine import processor, threads
from maskperf.machine.threads import choose_threads, threads_of_process

VERSION_1 = {"cpu/job/cpu.cfs_quota_us": "{quota}", "cpu/job/cpu.cfs_period_us": "100000"}
VERSION_2 = {"job/cpu.max": "{quota} 100000"}


@pytest.mark.parametrize(
    ("wanted", "cores", "cpu_limit", "processes", "line"),
    [
        (0, 2, None, 1, "2 threads: 2 physical cores"),
        (0, 1, None, 1, "1 thread: 1 physical core"),
        (0, 2, 0.5, 1, "1 thread: CPU quota of 0.5 cores"),
        (0, 16, 1.5, 1, "1 thread: CPU quota of 1.5 cores"),
        (0, 16, 4.0, 1, "4 threads: CPU quota of 4 cores"),
        (0, 16, 15.99, 1, "15 threads: CPU quota of 15.99 cores"),
        (0, 16, 16.0, 1, "16 threads: 16 physical cores"),
        (0, 16, 24.0, 1, "16 threads: 16 physical cores"),
        (0, 16, None, 4, "4 threads: 16 physical cores for 4 processes"),
        (0, 16, 6.0, 4, "1 thread: CPU quota of 6 cores for 4 processes"),
        (0, 16, 2.0, 4, "1 thread: CPU quota of 2 cores for 4 processes"),
        (0, 2, None, 8, "1 thread: 2 physical cores for 8 processes"),
        (3, 16, 0.5, 4, "3 threads: system.threads=3"),
        (1, 16, None, 1, "1 thread: system.threads=1"),
    ],
)
def test_threads_are_cores_within_the_quota_shared_by_the_processes(wanted, cores, cpu_limit, processes, line):
    assert choose_threads(wanted, cores=cores, cpu_limit=cpu_limit, processes=processes).line() == line


@pytest.mark.parametrize(
    ("files", "membership"), [(VERSION_1, "3:memory:/\n4:cpu:/job"), (VERSION_2, "0::/job")], ids=["1", "2"]
)
@pytest.mark.parametrize(
    ("quota", "processes", "expected"),
    [
        ("50000", "1", 1),
        ("400000", "1", 4),
        ("400000", "2", 2),
        ("-1", "1", 16),
        ("max", "1", 16),
        ("99999999", "1", 16),
    ],
)
def test_a_process_follows_the_quota_of_its_control_group(
    files, membership, quota, processes, expected, tmp_path, monkeypatch
):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text.format(quota=quota) + "\n")
    (tmp_path / "membership").write_text(membership)
    monkeypatch.setattr(processor, "CGROUP_FOLDER", tmp_path)
    read = processor.read_text
    own = Path("/proc/self/cgroup")
    monkeypatch.setattr(processor, "read_text", lambda path: read(tmp_path / "membership" if path == own else path))
    monkeypatch.setattr(threads, "usable_physical_cores", lambda: 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert threads_of_process(0).count == expected
    assert threads_of_process(5).count == 5
