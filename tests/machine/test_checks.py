import inspect

from synthetic_machine import gpu_situation, plain_situation

from maskperf.machine import (
    check_gpus,
    check_memory,
    check_processor,
    check_software,
    check_storage,
    check_surroundings,
)
from maskperf.machine.checks import CHECKS, examine


def test_every_check_that_is_written_is_used_once():
    modules = (check_gpus, check_memory, check_processor, check_software, check_storage, check_surroundings)
    written = [
        function
        for module in modules
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if name.startswith("check_")
    ]
    assert sorted(check.__name__ for check in CHECKS) == sorted(function.__name__ for function in written)


def test_a_good_machine_has_nothing_to_fix():
    for situation in (plain_situation(), gpu_situation(8)):
        findings = examine(situation)
        assert [finding for finding in findings if finding.level != "ok" or finding.fix] == []
        assert len(findings) > 20


def test_every_name_stands_once():
    names = [finding.name for finding in examine(gpu_situation(8))]
    assert len(names) == len(set(names))
