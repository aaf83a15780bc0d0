from dataclasses import replace

import pytest
from synthetic_machine import STORAGE, gpu_situation, plain_situation

from maskperf.machine.check_storage import (
    check_data,
    check_data_space,
    check_disk_speed,
    check_run_space,
    check_storage_kind,
    check_weights,
)
from maskperf.machine.situation import DataPlace, DiskSpeed


def with_data(**changes):
    return plain_situation(data=replace(plain_situation().data, **changes))


def test_complete_data_is_ok():
    assert check_data(plain_situation()).level == "ok"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"train_json": False}, "annotations/instances_train2017.json"),
        ({"val_images": None}, "val2017/"),
        ({"train_images": 100}, "100 pictures instead of 118,287"),
    ],
)
def test_what_is_missing_is_named(changes, word):
    finding = check_data(with_data(**changes))
    assert finding.level == "note"
    assert word in finding.value


def test_missing_data_is_a_problem_where_the_folder_was_named():
    nothing = DataPlace(root="/x", was_asked_for=True)
    assert check_data(plain_situation(data=nothing)).level == "problem"
    finding = check_data(plain_situation(data=replace(nothing, was_asked_for=False)))
    assert (finding.level, finding.value) == ("note", "/x: not found")


def test_a_named_folder_of_another_data_set_is_no_problem():
    finding = check_data(with_data(was_asked_for=True, train_images=100, val_images=0))
    assert finding.level == "note"
    assert "100 and 0 JPEG files" in finding.value
    assert "another data set: COCO 2017 has 118,287 and 5,000" in finding.meaning


def test_weights():
    assert check_weights(plain_situation()).level == "ok"
    finding = check_weights(with_data(weights=None))
    assert (finding.level, finding.value) == ("note", "data/R-50.pkl: not found")


def test_space_for_data_matters_until_it_is_there():
    full = replace(STORAGE, free_gib=10.0)
    assert check_data_space(plain_situation(data_storage=full)).level == "ok"
    assert check_data_space(replace(with_data(train_images=None), data_storage=full)).level == "note"
    assert check_data_space(replace(with_data(train_images=8), data_storage=full)).level == "note"
    assert check_data_space(with_data(train_images=None)).level == "ok"


@pytest.mark.parametrize(
    ("free_gib", "writable", "level"),
    [(100.0, True, "ok"), (3.0, True, "note"), (0.2, True, "problem"), (100.0, False, "problem"), (None, True, "note")],
)
def test_space_for_runs(free_gib, writable, level):
    situation = plain_situation(run_storage=replace(STORAGE, free_gib=free_gib), run_folder_writable=writable)
    assert check_run_space(situation).level == level


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        ("NVMe", "ok"),
        ("SSD", "ok"),
        ("virtual disk", "ok"),
        ("memory", "ok"),
        (None, "ok"),
        ("hard disk", "note"),
        ("network", "note"),
    ],
)
def test_kinds_of_storage(kind, level):
    assert check_storage_kind(plain_situation(data_storage=replace(STORAGE, kind=kind))).level == level


def test_disk_speed_is_compared_with_what_gpus_read():
    speed = DiskSpeed(
        place="/data", write_mib_per_second=500.0, read_mib_per_second=900.0, pictures_per_second=1000.0, threads=2
    )
    assert check_disk_speed(plain_situation(disk_speed=speed)).level == "ok"
    assert check_disk_speed(gpu_situation(5, disk_speed=speed)).level == "ok"  # 925 pictures a second
    finding = check_disk_speed(gpu_situation(8, disk_speed=speed))
    assert finding.level == "note"
    assert "1,480" in finding.meaning


def test_a_disk_that_was_not_measured_says_why():
    assert check_disk_speed(plain_situation(disk_speed_missing="may not write")).meaning == "may not write"
