import time

import pytest
from coco_folder import good_document, write_images, write_json

from maskperf.config import DataConfig
from maskperf.data import loader as loader_module
from maskperf.data.coco import read_coco
from maskperf.data.feeding_rate import FeedingRate, measure_feeding
from maskperf.data.loader import Feeding, TrainingLoader

DATA = DataConfig(short_side=24, long_side=40, size_divisor=8, loader_threads=1, prefetch_batches=1)


@pytest.fixture
def index(tmp_path):
    document = good_document()
    write_images(tmp_path, document)
    return read_coco(write_json(tmp_path, document), tmp_path, training=True)


def test_cores_follow_from_the_rate():
    rate = FeedingRate(images=60, core_seconds=0.5)
    assert rate.images_per_core_second == 120
    assert rate.cores_for(400.0) == pytest.approx(400 / 120)


@pytest.mark.parametrize("raw_pictures", [False, True])
def test_the_time_of_the_loaders_threads_is_counted(index, monkeypatch, raw_pictures):
    decode = loader_module.decode_image

    def slow_decode(*arguments, **options):
        end = time.thread_time() + 0.01
        while time.thread_time() < end:
            pass
        return decode(*arguments, **options)

    monkeypatch.setattr(loader_module, "decode_image", slow_decode)
    feeding = Feeding(raw_pictures=raw_pictures)
    loader = TrainingLoader(index, DATA, seed=1, rank=0, world=1, images_per_rank=2, feeding=feeding)
    rate = measure_feeding(loader, 5, warm_up_steps=1)
    assert rate.images == 10
    assert rate.core_seconds >= 0.1
