from pathlib import Path

import pytest

from maskperf.machine.storage import describe_storage, existing_place, file_system_of, kind_of_disk, read_device

MOUNTS = r"""22 27 0:21 / /proc rw - proc proc rw
28 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw
40 28 259:5 / /data rw,relatime - xfs /dev/nvme1n1 rw
41 28 0:50 / /data/my\040nfs rw,relatime - nfs4 server:/export rw
42 28 0:51 / /data rw,relatime - tmpfs tmpfs rw
"""


def make_disk(folder, *, rotational=None, model=None, sectors=None):
    (folder / "queue").mkdir(parents=True)
    if rotational is not None:
        (folder / "queue" / "rotational").write_text(f"{rotational}\n")
    if model is not None:
        (folder / "device").mkdir()
        (folder / "device" / "model").write_text(f"{model}   \n")
    if sectors is not None:
        (folder / "size").write_text(f"{sectors}\n")
    return folder


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("/home/me", "ext4"),
        ("/data/coco", "tmpfs"),  # mounted over the xfs
        ("/data/my nfs/coco", "nfs4"),
        ("/database", "ext4"),  # not below /data
    ],
)
def test_the_longest_mount_point_and_the_last_of_equals_counts(place, expected):
    assert file_system_of(MOUNTS, Path(place)) == expected


def test_without_mounts_the_file_system_is_unknown():
    assert file_system_of("", Path("/")) is None


def test_a_partition_is_told_by_its_disk(tmp_path):
    disk = make_disk(tmp_path / "nvme0n1", rotational=0, model="Samsung SSD 990 PRO 2TB", sectors=4194304)
    (disk / "nvme0n1p2").mkdir()
    (disk / "nvme0n1p2" / "partition").write_text("2\n")
    (tmp_path / "259:2").symlink_to(disk / "nvme0n1p2")
    device = read_device(tmp_path / "259:2")
    assert (device.name, device.kind, device.model) == ("nvme0n1", "NVMe", "Samsung SSD 990 PRO 2TB")
    assert device.size_gib == 2.0


def test_a_volume_is_told_by_the_disks_below_it(tmp_path):
    disks = [
        make_disk(tmp_path / name, rotational=0, model="WD SN850", sectors=2**21) for name in ("nvme0n1", "nvme1n1")
    ]
    (disks[1] / "nvme1n1p1").mkdir()
    (disks[1] / "nvme1n1p1" / "partition").write_text("1\n")
    raid = make_disk(tmp_path / "md0", rotational=0, sectors=2**22)
    (raid / "slaves").mkdir()
    (raid / "slaves" / "nvme0n1").symlink_to(disks[0])
    (raid / "slaves" / "nvme1n1p1").symlink_to(disks[1] / "nvme1n1p1")
    device = read_device(raid)
    assert (device.name, device.kind, device.model, device.size_gib) == ("nvme0n1+nvme1n1", "NVMe", "WD SN850", 2.0)


def test_disks_of_two_kinds_have_none(tmp_path):
    raid = make_disk(tmp_path / "dm-0")
    (raid / "slaves").mkdir()
    (raid / "slaves" / "sda").symlink_to(make_disk(tmp_path / "sda", rotational=1))
    (raid / "slaves" / "sdb").symlink_to(make_disk(tmp_path / "sdb", rotational=0))
    assert read_device(raid).kind is None


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
    assert kind_of_disk(make_disk(tmp_path / name, rotational=rotational)) == expected


def test_no_device_is_no_device(tmp_path):
    assert read_device(tmp_path / "0:51") is None


def test_a_folder_that_is_not_there_yet_is_judged_by_the_one_above(tmp_path):
    assert existing_place(tmp_path / "a" / "b") == tmp_path
    facts = describe_storage(tmp_path / "a" / "b")
    assert facts.path == str(tmp_path)
    assert 0 < facts.free_gib <= facts.size_gib


def test_shared_memory_is_memory():
    if file_system_of(Path("/proc/self/mountinfo").read_text(), Path("/dev/shm")) != "tmpfs":
        pytest.skip("/dev/shm is no tmpfs here")
    assert describe_storage("/dev/shm").kind == "memory"
