from maskperf.machine.facts import DimmFacts
from maskperf.machine.memory import (
    describe_memory,
    parse_dmidecode,
    parse_meminfo,
    read_modules,
    system_memory_gib,
)

# Written by hand in the form of `dmidecode --type memory`.
DMIDECODE = """# dmidecode 3.5
Handle 0x0011, DMI type 16, 23 bytes
Physical Memory Array
\tLocation: System Board Or Motherboard
\tMaximum Capacity: 6 TB

Handle 0x0012, DMI type 17, 92 bytes
Memory Device
\tSize: 64 GB
\tForm Factor: DIMM
\tType: DDR5
\tSpeed: 5600 MT/s
\tConfigured Memory Speed: 4800 MT/s
\tVolatile Size: 64 GB

Handle 0x0013, DMI type 17, 92 bytes
Memory Device
\tSize: 64 GB
\tType: DDR5
\tSpeed: 5600 MT/s
\tConfigured Memory Speed: 4800 MT/s

Handle 0x0014, DMI type 17, 92 bytes
Memory Device
\tSize: No Module Installed
\tType: Unknown
\tSpeed: Unknown

Handle 0x0015, DMI type 17, 40 bytes
Memory Device
\tSize: 16384 MB
\tType: RAM
\tSpeed: Unknown
"""


def test_sizes_of_meminfo_are_gib():
    text = "MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\nHugePages_Total:       0\nSwapTotal: 0 kB\n"
    assert parse_meminfo(text) == {"MemTotal": 16.0, "MemAvailable": 8.0, "SwapTotal": 0.0}


def test_modules_of_one_kind_stand_together_and_empty_slots_do_not_count():
    assert parse_dmidecode(DMIDECODE) == (
        DimmFacts(count=2, size_gib=64.0, kind="DDR5", megatransfers_per_second=4800.0),
        DimmFacts(count=1, size_gib=16.0, kind=None, megatransfers_per_second=None),
    )


def test_without_dmidecode_there_are_no_modules():
    assert parse_dmidecode("") == ()
    assert parse_dmidecode("/dev/mem: Permission denied") == ()


def test_modules_of_the_error_counters(tmp_path):
    for place in ("mc0/dimm0", "mc0/dimm3", "mc1/dimm0"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        (folder / "size").write_text("32768\n")
        (folder / "dimm_mem_type").write_text("Registered-DDR4\n")
    empty = tmp_path / "mc1" / "dimm1"
    empty.mkdir()
    (empty / "size").write_text("0\n")
    assert read_modules(tmp_path) == (DimmFacts(count=3, size_gib=32.0, kind="DDR4"),)


def test_this_machine_has_memory():
    memory = describe_memory()
    assert 0 < memory.available_gib <= memory.total_gib
    assert abs(memory.total_gib - system_memory_gib()) < 0.01 * memory.total_gib
