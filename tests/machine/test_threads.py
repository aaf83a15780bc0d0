import pytest

from maskperf.machine import threads
from maskperf.machine.facts import CgroupFacts
from maskperf.machine.threads import choose_threads, threads_of_process


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


@pytest.mark.parametrize(("quota", "processes", "expected"), [(0.5, 1, 1), (4.0, 1, 4), (4.0, 2, 2), (None, 1, 16)])
def test_a_process_follows_the_quota_of_its_control_group(quota, processes, expected, monkeypatch):
    monkeypatch.setattr(threads, "describe_limits", lambda: CgroupFacts(cpu_cores=quota))
    monkeypatch.setattr(threads, "usable_physical_cores", lambda: 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert threads_of_process(0).count == expected
    assert threads_of_process(5).count == 5
