import pytest

from maskperf.machine import threads
from maskperf.machine.facts import CgroupFacts
from maskperf.machine.processor import busy_cores
from maskperf.machine.threads import choose_threads, threads_of_process


@pytest.mark.parametrize(
    ("wanted", "cores", "cpu_limit", "processes", "busy", "line"),
    [
        (0, 2, None, 1, 0.4, "2 threads: 2 physical cores"),
        (0, 1, None, 1, 0.0, "1 thread: 1 physical core"),
        (0, 16, 1.5, 1, 0.0, "1 thread: CPU quota of 1.5 cores"),
        (0, 16, 15.99, 1, 0.0, "15 threads: CPU quota of 15.99 cores"),
        (0, 16, 16.0, 1, 0.0, "16 threads: 16 physical cores"),
        (0, 16, None, 4, 0.0, "4 threads: 16 physical cores for 4 processes"),
        (0, 16, 2.0, 4, 0.0, "1 thread: CPU quota of 2 cores for 4 processes"),
        (0, 2, None, 8, 0.0, "1 thread: 2 physical cores for 8 processes"),
        (0, 2, None, 1, 0.6, "1 thread: 2 physical cores, 0.6 of them busy with other programs"),
        (0, 16, None, 1, 16.0, "1 thread: 16 physical cores, 16.0 of them busy with other programs"),
        (0, 16, None, 4, 4.0, "3 threads: 16 physical cores, 4.0 of them busy with other programs for 4 processes"),
        (3, 16, 0.5, 4, 16.0, "3 threads: system.threads=3"),
    ],
)
def test_threads_are_free_cores_within_the_quota_shared_by_the_processes(
    wanted, cores, cpu_limit, processes, busy, line
):
    assert choose_threads(wanted, cores=cores, cpu_limit=cpu_limit, processes=processes, busy=busy).line() == line


@pytest.mark.parametrize(("quota", "processes", "expected"), [(0.5, 1, 1), (4.0, 1, 4), (4.0, 2, 2), (None, 1, 16)])
def test_a_process_follows_the_quota_of_its_control_group(quota, processes, expected, monkeypatch):
    monkeypatch.setattr(threads, "describe_limits", lambda: CgroupFacts(cpu_cores=quota))
    monkeypatch.setattr(threads, "usable_physical_cores", lambda: 16)
    monkeypatch.setattr(threads, "busy_cores", lambda before, after: 0.0)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert threads_of_process(0).count == expected
    assert threads_of_process(5).count == 5


def test_other_programs_are_watched_by_a_single_process_that_may_choose(monkeypatch):
    looks = iter(["cpu0 0 0 0 0 0 0 0 0", "cpu0 25 0 0 0 0 0 0 0"] * 2)
    monkeypatch.setattr(threads, "read_text", lambda path: next(looks))
    monkeypatch.setattr(threads, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(threads, "describe_limits", lambda: CgroupFacts(cpu_cores=None))
    monkeypatch.setattr(threads, "usable_physical_cores", lambda: 2)
    monkeypatch.setattr("maskperf.machine.processor._usable_cpus", lambda: [0])
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert threads_of_process(0).count == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert "busy" not in threads_of_process(0).reason and threads_of_process(2).count == 2
    assert len(list(looks)) == 2  # neither of these has looked


def test_busy_cores_are_those_of_this_process_without_idle_time_and_waits_for_disks(monkeypatch):
    monkeypatch.setattr("maskperf.machine.processor._usable_cpus", lambda: [0, 2, 7])
    before = "cpu  1 2 3\ncpu0 100 0 0 100 0 0 0 0 5 5\ncpu1 0 0 0 0 0 0 0 0 0 0\ncpu2 0 0 0 0 0 0 0 0 0 0\nintr 1"
    after = "cpu  1 2 3\ncpu0 110 5 5 120 10 0 0 0 9 9\ncpu1 50 0 0 0 0 0 0 0 0 0\ncpu2 40 0 5 0 0 3 0 2 0 0\nintr 2"
    assert busy_cores(before, after) == pytest.approx(20 / 50 + 1.0)
    assert busy_cores("", after) == busy_cores(before, before) == 0.0
