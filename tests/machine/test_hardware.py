from pathlib import Path

import pytest

from maskperf.machine import hardware
from maskperf.machine.facts import DimmFacts

# Written by hand in the form of `dmidecode --type memory`.
ARRAY = """# dmidecode 3.5
Handle 0x0011, DMI type 16, 23 bytes
Physical Memory Array
\tMaximum Capacity: 6 TB
"""
MODULE = """
Handle 0x0012, DMI type 17, 92 bytes
Memory Device
\tSize: 64 GB
\tType: DDR5
\tSpeed: 5600 MT/s
\tConfigured Memory Speed: 4800 MT/s
\tVolatile Size: 64 GB
"""
OTHERS = """
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
MOUNTS = r"""22 27 0:21 / /proc rw - proc proc rw
28 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw
40 28 259:5 / /data rw,relatime - xfs /dev/nvme1n1 rw
41 28 0:50 / /data/my\040nfs rw,relatime - nfs4 server:/export rw
42 28 0:51 / /data rw,relatime - tmpfs tmpfs rw
"""


def write(folder, **texts):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(f"{text}\n")
    return folder


def test_sizes_of_meminfo_are_gib():
    text = "MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\nHugePages_Total:       0\nSwapTotal: 0 kB\n"
    assert hardware.parse_meminfo(text) == {"MemTotal": 16.0, "MemAvailable": 8.0, "SwapTotal": 0.0}


def test_modules_of_dmidecode_are_grouped_by_kind_without_empty_slots():
    assert hardware.parse_dmidecode(ARRAY + 2 * MODULE + OTHERS) == (
        DimmFacts(count=2, size_gib=64.0, kind="DDR5", megatransfers_per_second=4800.0),
        DimmFacts(count=1, size_gib=16.0, kind=None, megatransfers_per_second=None),
    )
    assert hardware.parse_dmidecode("/dev/mem: Permission denied") == hardware.parse_dmidecode("") == ()


def test_modules_of_the_error_counters(tmp_path):
    for name in ("mc0/dimm0", "mc0/dimm3", "mc1/dimm0"):
        write(tmp_path / name, size=32768, dimm_mem_type="Registered-DDR4")
    write(tmp_path / "mc1" / "dimm1", size=0)
    assert hardware.read_modules(tmp_path) == (DimmFacts(count=3, size_gib=32.0, kind="DDR4"),)


def test_this_machine_has_memory():
    memory = hardware.describe_memory()
    assert 0 < memory.available_gib <= memory.total_gib
    assert abs(memory.total_gib - hardware.system_memory_gib()) < 0.01 * memory.total_gib


@pytest.mark.parametrize(("speed", "expected"), [(100000, 100.0), (-1, None), ("", None)])
def test_cards_have_speed_state_and_driver_and_virtual_ones_are_left_out(tmp_path, speed, expected):
    card = write(tmp_path / "eth0", operstate="down", speed=speed)
    driver = write(tmp_path / "drivers" / "mlx5_core")
    write(card / "device")
    (card / "device" / "driver").symlink_to(driver)
    write(tmp_path / "lo", speed=10000)
    (found,) = hardware.describe_network(tmp_path)
    assert (found.name, found.gigabits_per_second, found.state, found.driver) == ("eth0", expected, "down", "mlx5_core")


def test_ports_of_infiniband(tmp_path):
    assert hardware.describe_infiniband(tmp_path / "none") == ()
    port = tmp_path / "mlx5_0" / "ports" / "1"
    write(port, state="4: ACTIVE", rate="400 Gb/sec (4X NDR)", link_layer="InfiniBand")
    (found,) = hardware.describe_infiniband(tmp_path)
    assert (found.name, found.state, found.gigabits_per_second) == ("mlx5_0 port 1", "ACTIVE", 400.0)
    assert (found.rate, found.link_layer) == ("400 Gb/sec (4X NDR)", "InfiniBand")


@pytest.mark.parametrize(
    ("path", "expected"),  # the tmpfs is mounted over the xfs, and /database is not below /data
    [("/home/me", "ext4"), ("/data/coco", "tmpfs"), ("/data/my nfs/coco", "nfs4"), ("/database", "ext4")],
)
def test_the_longest_mount_point_and_the_last_of_equals_counts(path, expected):
    assert hardware.file_system_of(MOUNTS, Path(path)) == expected
    assert hardware.file_system_of("", Path(path)) is None


def make_disk(folder, rotational=None):
    write(folder / "queue", **({} if rotational is None else {"rotational": rotational}))
    return folder


def test_a_volume_is_described_by_the_disks_below_it(tmp_path, monkeypatch):
    disks = [make_disk(tmp_path / name, rotational=0) for name in ("nvme0n1", "nvme1n1")]
    for disk in disks:
        write(disk, size=2**21)
        write(disk / "device", model="WD SN850   ")
    raid = make_disk(tmp_path / "md0", rotational=0)
    write(raid / "slaves")
    (raid / "slaves" / "nvme0n1").symlink_to(disks[0])
    (raid / "slaves" / "nvme1n1p1").symlink_to(write(disks[1] / "nvme1n1p1", partition=1))
    found = hardware.disks_below(raid)
    monkeypatch.setattr(hardware, "disks_below", lambda link: found)
    monkeypatch.setattr(hardware, "file_system_of", lambda mounts, folder: "xfs")
    facts = hardware.describe_storage(tmp_path)
    assert (facts.device, facts.kind, facts.model) == ("nvme0n1+nvme1n1", "NVMe", "WD SN850")
    assert facts.device_gib == 2.0


def test_a_partition_is_its_disk_and_no_device_is_no_disk(tmp_path):
    disk = make_disk(tmp_path / "nvme0n1")
    (tmp_path / "259:2").symlink_to(write(disk / "nvme0n1p2", partition=1))
    assert hardware.disks_below(tmp_path / "259:2") == [disk]
    assert hardware.disks_below(tmp_path / "0:51") == []


def test_disks_of_two_kinds_have_none(tmp_path, monkeypatch):
    disks = [make_disk(tmp_path / name, rotational) for name, rotational in (("sda", 1), ("sdb", 0))]
    monkeypatch.setattr(hardware, "disks_below", lambda link: disks)
    monkeypatch.setattr(hardware, "file_system_of", lambda mounts, folder: "ext4")
    assert hardware.describe_storage(tmp_path).kind is None


@pytest.mark.parametrize(
    ("name", "rotational", "expected"),
    [
        ("sda", 1, "hard disk"),
        ("sda", 0, "SSD"),
        ("sda", None, None),
        ("vda", 1, "virtual disk"),
        ("nvme0n1", 0, "NVMe"),
    ],
)
def test_kinds_of_disk(tmp_path, name, rotational, expected):
    assert hardware.kind_of_disk(make_disk(tmp_path / name, rotational)) == expected


def test_a_folder_that_does_not_exist_yet_is_described_by_the_one_above(tmp_path):
    assert hardware.existing_folder(tmp_path / "a" / "b") == tmp_path
    facts = hardware.describe_storage(tmp_path / "a" / "b")
    assert facts.path == str(tmp_path)
    assert 0 < facts.free_gib <= facts.size_gib


def test_shared_memory_is_memory():
    if hardware.file_system_of(Path("/proc/self/mountinfo").read_text(), Path("/dev/shm")) != "tmpfs":
        pytest.skip("/dev/shm is no tmpfs here")
    assert hardware.describe_storage("/dev/shm").kind == "memory"
