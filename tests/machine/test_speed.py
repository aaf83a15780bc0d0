import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
import simplejpeg

from maskperf.machine import speed
from maskperf.machine.speed import make_jpeg, measure_disk, measure_rate


def test_the_disk_is_measured_and_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "FILE_MIB", 8)
    found = measure_disk(tmp_path, 2)
    assert found.place == str(tmp_path)
    assert min(found.write_mib_per_second, found.read_mib_per_second, found.pictures_per_second) > 0
    assert list(tmp_path.iterdir()) == []


def test_a_slow_disk_is_not_filled_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "FILE_MIB", 64)
    monkeypatch.setattr(speed, "WRITE_SECONDS", 0.2)
    written = []
    real = os.write

    def slow(descriptor, data):
        time.sleep(0.05)
        written.append(len(data))
        return real(descriptor, data)

    monkeypatch.setattr(speed.os, "write", slow)
    measure_disk(tmp_path, 1)
    assert sum(written) < 16 * 2**20


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "ROOM_FACTOR", 2**30)
    with pytest.raises(OSError, match="free"):
        measure_disk(tmp_path, 1)


def test_a_rate_is_work_per_second_in_the_best_part(monkeypatch):
    now, durations = [0.0], iter([0.5, *[0.25] * 4, *[0.125] * 8, *[0.5] * 2])  # a trial, then three parts

    def work():
        now[0] += next(durations)

    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert measure_rate(work, 3.0) == 8.0
    assert list(durations) == []


def test_the_synthetic_image_is_like_one_of_coco():
    jpeg = make_jpeg(np.random.default_rng(0), (480, 640))
    assert simplejpeg.decode_jpeg(jpeg).shape == (480, 640, 3)
    assert 100_000 < len(jpeg) < 200_000
