import json
from dataclasses import replace

import pytest
from mlperf_logging.system_desc_checker.system_desc_checker import check_system_desc

from maskperf.errors import ConfigError, DataError
from maskperf.machine.facts import CpuFacts, DimmFacts, GpuFacts, GpuGroup, InfinibandFacts, MemoryFacts
from maskperf.machine.probe import describe_machine
from maskperf.mlperf import system_description as systems
from maskperf.mlperf.system_description import FIELDS, describe_system, read_description, read_fills, unknown_fields
from maskperf.schema import Environment, Gpu


@pytest.fixture(scope="module")
def here():
    return describe_machine()


@pytest.fixture
def eight_gpus(here):
    about = {"name": "NVIDIA H200", "memory_gib": 139.8, "maximum_sm_mhz": 1980.0}
    gpu = GpuFacts(index=0, **about, pcie_generation=5, pcie_lanes=16)
    links = tuple(tuple("X" if row == column else "NV18" for column in range(8)) for row in range(8))
    port = InfinibandFacts(name="mlx5_0 port 1", link_layer="InfiniBand", gigabits_per_second=400.0)
    cores = {"sockets": 2, "physical_cores": 112, "logical_cores": 224}
    return replace(
        here,
        cpu=CpuFacts(architecture="x86_64", model="Xeon 8480", base_mhz=2000.0, maximum_mhz=3800.0, **cores),
        memory=MemoryFacts(total_gib=2015.5, dimms=(DimmFacts(count=32, size_gib=64.0, kind="DDR5"),)),
        infiniband=(port,) * 8,
        gpu=GpuGroup(cards_on_bus=8, gpus=(gpu,) * 8, driver_version="580.1", links=links),
    )


def test_all_fields_of_the_official_checker_are_there(here, tmp_path):
    description = describe_system(here)
    assert tuple(description) == FIELDS and len(FIELDS) == 33
    path = tmp_path / "a.json"
    path.write_text(json.dumps(description))
    assert check_system_desc(str(path), "training", "3.1.0")[0]
    assert all(isinstance(value, str) for name, value in description.items() if name != "other_software_stack")


def test_a_machine_with_gpus(eight_gpus):
    description = describe_system(eight_gpus)
    expected = {
        "host_processors_per_node": "2",
        "host_processor_core_count": "56",
        "host_processor_vcpu_count": "224",
        "host_processor_frequency": "base 2000 MHz, maximum 3800 MHz",
        "host_memory_capacity": "2016 GiB",
        "host_memory_configuration": "32x 64 GiB DDR5",
        "accelerators_per_node": "8",
        "accelerator_model_name": "NVIDIA H200",
        "accelerator_memory_capacity": "140 GiB",
        "accelerator_host_interconnect": "PCIe Gen5 x16",
        "accelerator_interconnect": "NV18 (28 pairs)",
    }
    assert {name: description[name] for name in expected} == expected
    assert description["host_networking"].startswith("8x InfiniBand 400 Gb/s")
    assert description["other_software_stack"]["nvidia-driver"] == "580.1"
    assert "accelerator_on-chip_memories" in unknown_fields(description)


def test_without_gpus_their_fields_are_not_asked_for(here):
    without = describe_system(replace(here, gpu=GpuGroup()))
    assert without["accelerators_per_node"] == "0"
    assert not any(name.startswith("accelerator") for name in unknown_fields(without))
    hidden = describe_system(replace(here, gpu=GpuGroup(cards_on_bus=2)))  # cards, but nvidia-smi fails
    assert {"accelerators_per_node", "accelerator_model_name"} <= set(unknown_fields(hidden))


def test_a_run_on_another_machine_is_described_from_what_it_recorded(eight_gpus, here):
    software = {"packages": {"torch": "2.13.0", "numpy": None}, "python": "3.12.1"}
    gpus = (Gpu(name="L40S", memory_gib=44.5),) * 4
    recorded = Environment(cpu_model="EPYC", gpus=gpus, memory_gib=503.4, cpu_logical_cores=64, **software)
    assert not systems.is_machine_of(recorded, eight_gpus)
    same = Environment(cpu_model="Xeon 8480", gpus=(Gpu(name="NVIDIA H200"),) * 8)
    assert systems.is_machine_of(same, eight_gpus)
    description = systems.describe_recorded(recorded)
    assert description["accelerators_per_node"] == "4" and description["accelerator_model_name"] == "L40S"
    assert description["framework"] == "PyTorch 2.13.0, maskperf" and description["host_memory_capacity"] == "503 GiB"
    assert description["other_software_stack"] == {"python": "3.12.1"}
    assert "host_processors_per_node" in unknown_fields(description)


@pytest.mark.parametrize(
    ("fill", "match"),
    [("coolin=air", "did you mean cooling"), ("submitter=me", "--submitter"), ("cooling", "FIELD=VALUE")],
)
def test_mistakes_in_a_fill_are_named(fill, match):
    assert read_fills(["cooling=air", "hw_notes=a=b"]) == {"cooling": "air", "hw_notes": "a=b"}
    with pytest.raises(ConfigError, match=match):
        read_fills([fill])


def test_a_description_of_others_is_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"cooling": "liquid", "hw_notes": "", "other_software_stack": {"a": "1"}, "extra": 3}))
    assert read_description(path) == {"cooling": "liquid", "other_software_stack": {"a": "1"}}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "Fix: Give a system"),
        ("[]", "object"),
        ('{"cooling": 3, "hw_notes": null}', "2 problems"),
        (None, "no such file"),
    ],
)
def test_problems_of_a_description_are_named(tmp_path, text, match):
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=match):
        read_description(path)
