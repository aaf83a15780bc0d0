import pytest
from synthetic_machine import plain_situation, with_machine

from maskperf.machine.check_surroundings import (
    check_interfaces,
    check_network,
    check_rank_variables,
    check_slow_variables,
)
from maskperf.machine.facts import InfinibandFacts


@pytest.mark.parametrize(
    ("environment", "level"),
    [
        ({}, "ok"),
        ({"NCCL_P2P_DISABLE": "0", "TORCH_DISTRIBUTED_DEBUG": "OFF"}, "ok"),
        ({"NCCL_P2P_DISABLE": "1"}, "note"),
        ({"CUDA_LAUNCH_BLOCKING": "1"}, "note"),
        ({"TORCH_DISTRIBUTED_DEBUG": "detail"}, "note"),
    ],
)
def test_variables_that_slow_a_run(environment, level):
    finding = check_slow_variables(plain_situation(environment=environment))
    assert finding.level == level
    assert level == "ok" or next(iter(environment)) in finding.fix


WHOLE = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "level"),
    [
        ({}, "ok"),
        ({"WORLD_SIZE": "1", "RANK": "0"}, "ok"),
        (WHOLE, "note"),
        ({"WORLD_SIZE": "2"}, "problem"),
        ({**WHOLE, "RANK": "first"}, "problem"),
        ({"RANK": ""}, "problem"),
    ],
)
def test_variables_of_torchrun_that_were_left_behind(environment, level):
    assert check_rank_variables(plain_situation(environment=environment)).level == level


@pytest.mark.parametrize(
    ("named", "is_problem"),
    [
        ("eth0", False),
        ("eth", False),
        ("ib0,eth", False),
        ("lo", False),
        ("^docker0", False),
        ("=eth0", False),
        ("", False),
    ]
    + [("ib0", True), ("eth1", True), ("bond0,ib", True)],
)
def test_a_network_card_that_is_named_must_exist(named, is_problem):
    finding = check_interfaces(plain_situation(environment={"NCCL_SOCKET_IFNAME": named}))
    assert (finding is not None and finding.level == "problem") == is_problem


def test_no_named_card_is_no_finding():
    assert check_interfaces(plain_situation()) is None


def test_infiniband_that_is_not_active_is_noted():
    assert "eth0: 10 Gbit/s" in check_network(plain_situation()).value
    port = InfinibandFacts(name="mlx5_0 port 1", state="DOWN", rate="10 Gb/sec (4X SDR)")
    assert check_network(with_machine(plain_situation(), infiniband=(port,))).level == "note"
    active = InfinibandFacts(name="mlx5_0 port 1", state="ACTIVE", rate="400 Gb/sec (4X NDR)")
    assert "400 Gb/sec" in check_network(with_machine(plain_situation(), infiniband=(active,))).value
