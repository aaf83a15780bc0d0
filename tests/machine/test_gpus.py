import pytest

from maskperf.machine import gpus
from maskperf.machine.facts import GpuFacts, GpuGroup, GpuProcess
from maskperf.machine.sources import Answer

# Written by hand in the form that nvidia-smi documents.
TWO_H100 = """0, NVIDIA H100 80GB HBM3, 81559, 4, 700.00, 1980, 2619, 5, 16, Disabled, 580.95.05
1, NVIDIA H100 80GB HBM3, 81559, 40000, 700.00, 1980, 2619, 5, 16, Enabled, 580.95.05
"""
LAPTOP = "0, NVIDIA GeForce MX150, 2048, 10, [N/A], 1733, 3004, 3, 4, [N/A], 550.54.14\n"
HEAD = """+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 580.95.05              Driver Version: 580.95.05      CUDA Version: 13.0     |
|-----------------------------------------+------------------------+----------------------+
"""
TOPOLOGY = (
    "\t\x1b[4mGPU0\tGPU1\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m\n"
    "GPU0\t X \tNV18\tPXB\t0-47\t0\t\tN/A\n"
    "GPU1\tNV18\t X \tSYS\t48-95\t1\t\tN/A\n"
    "NIC0\tPXB\tSYS\t X \t\t\t\t\n"
    "\nLegend:\n\n  X    = Self\n  NV#  = Connection traversing a bonded set of # NVLinks\n"
)


def answers(monkeypatch, outputs):
    """Let nvidia-smi give the first answer whose key is in its arguments."""

    def run(arguments, timeout_seconds):
        return next((answer for key, answer in outputs.items() if key in " ".join(arguments)), Answer())

    monkeypatch.setattr(gpus, "run_program", run)
    monkeypatch.setattr(gpus, "count_cards", lambda folder: 2)


def test_fields_of_a_gpu_and_those_that_it_does_not_have():
    first, second = map(gpus.gpu_of_row, gpus.query_rows(TWO_H100))
    sizes = {"memory_gib": 81559 / 1024, "memory_used_gib": 4 / 1024, "power_limit_watts": 700.0}
    clocks = {"maximum_sm_mhz": 1980.0, "maximum_memory_mhz": 2619.0}
    bus = {"pcie_generation": 5, "pcie_lanes": 16, "is_split": False}
    assert first == GpuFacts(index=0, name="NVIDIA H100 80GB HBM3", **sizes, **clocks, **bus)
    assert (second.index, second.is_split) == (1, True)
    (gpu,) = map(gpus.gpu_of_row, gpus.query_rows(LAPTOP))
    assert (gpu.power_limit_watts, gpu.is_split, gpu.memory_gib, gpu.pcie_lanes) == (None, None, 2.0, 4)


@pytest.mark.parametrize(
    "text", ["", "No devices were found", 'Field "mig.mode.current" is not a valid field to query.']
)
def test_other_text_is_no_gpu(text):
    assert gpus.query_rows(text) == []


@pytest.mark.parametrize(
    ("text", "count", "links", "summary"),
    [
        (TOPOLOGY, 2, (("X", "NV18"), ("NV18", "X")), "NV18 (1 pairs)"),  # without network cards
        (TOPOLOGY, 3, (), None),  # another number of GPUs
        ("", 2, (), None),
    ],
)
def test_links_among_gpus(text, count, links, summary):
    assert gpus.parse_links(text, count) == links and gpus.link_summary(links) == summary


def test_several_kinds_of_link_are_counted():
    links = (("X", "PIX", "SYS"), ("PIX", "X", "SYS"), ("SYS", "SYS", "X"))
    assert gpus.link_summary(links) == "SYS (2 pairs), PIX (1 pairs)"


def test_computing_programs():
    text = "4242, /usr/bin/python3, 39000\n4243, odd, name, [N/A]\nNo running processes found\n"
    assert gpus.parse_processes(text) == (
        GpuProcess(process_id=4242, name="/usr/bin/python3", memory_gib=39000 / 1024),
        GpuProcess(process_id=4243, name="odd, name", memory_gib=None),
    )


@pytest.mark.parametrize(
    ("head", "cuda"),
    [(HEAD, "13.0"), ("| KMD Version: 590.1   CUDA UMD Version: 13.1 |", "13.1"), ("CUDA Version: N/A", None)],
)
def test_a_whole_machine(monkeypatch, head, cuda):
    answers(
        monkeypatch,
        {
            "--query-gpu": Answer(output=TWO_H100),
            "--query-compute-apps": Answer(output="7, python, 100\n"),
            "topo -m": Answer(output=TOPOLOGY),
            "nvidia-smi": Answer(output=head),
        },
    )
    group = gpus.describe_gpus()
    assert (len(group.gpus), group.driver_version, group.driver_cuda) == (2, "580.95.05", cuda)
    assert group.links[0] == ("X", "NV18")
    assert group.processes[0].process_id == 7
    assert group.cards_on_bus == 2


def test_a_driver_that_does_not_answer_leaves_its_message(monkeypatch):
    message = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    answers(monkeypatch, {"nvidia-smi": Answer(complaint=message)})
    assert gpus.describe_gpus() == GpuGroup(cards_on_bus=2, complaint=message)


def test_cards_on_the_bus_are_counted_by_maker_and_class(tmp_path):
    for name, vendor, kind in (
        ("0000:01:00.0", "0x10de", "0x030200"),  # NVIDIA, 3D controller
        ("0000:02:00.0", "0x10de", "0x040300"),  # NVIDIA, its sound device
        ("0000:03:00.0", "0x1a03", "0x030000"),  # the display of the management board
        ("0000:04:00.0", "0x10de", "0x030000"),  # NVIDIA, display
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(vendor + "\n")
        (tmp_path / name / "class").write_text(kind + "\n")
    assert gpus.count_cards(tmp_path) == 2
    assert gpus.count_cards(tmp_path / "none") == 0
