import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from maskperf.config import EvaluationConfig
from maskperf.engine.build import build_model
from maskperf.engine.distributed import Topology
from maskperf.evaluation.detect import detect
from maskperf.evaluation.predict import CODING_THREADS, batch_size_for, collected, detect_all, gathered, predict
from maskperf.evaluation.results import box_and_mask_results, result_table
from maskperf.recipes import demo
from maskperf.structures import EvaluationBatch, Images

SMALL = replace(
    demo().model, num_classes=4, batch_norm="frozen", frozen_stages=2, proposals_test=20, detections_per_image=6
)
CATEGORY_IDS = np.array([3, 7, 90])
ALONE = Topology()


def batch_of(image_ids):
    """Return one image for each id, always the same for the same id."""
    pixels = [torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(one)) * 50 for one in image_ids]
    count = len(image_ids)
    return EvaluationBatch(
        images=Images(pixels=torch.stack(pixels), sizes_hw=torch.tensor([[60, 64]] * count)),
        image_ids=torch.tensor(image_ids),
        original_sizes_hw=torch.tensor([[30, 32]] * count),
    )


@pytest.fixture(scope="module")
def model():
    return build_model(SMALL, seed=0)[0]


def broken_batches():
    yield batch_of([5])
    raise OSError("the disk is gone")


def test_results_of_all_batches_come_by_image_id(model):
    batches = [batch_of([30, 4]), batch_of([17]), batch_of([1, 99])]
    found = predict(model, iter(batches), CATEGORY_IDS, ALONE)
    tables = [result_table(detect(model, batch.images), batch, CATEGORY_IDS) for batch in batches]
    for results, expected in zip(found, zip(*map(box_and_mask_results, tables), strict=True), strict=True):
        entries = [entry for of_batch in expected for entry in of_batch]
        assert list(results) == sorted(entries, key=lambda entry: entry["image_id"])
        assert {entry["image_id"] for entry in results} == {1, 4, 17, 30, 99}
        assert {entry["category_id"] for entry in results} <= {3, 7, 90}


def test_batches_are_large_on_a_gpu_alone_unless_asked_for():
    sizes = [batch_size_for(EvaluationConfig(), torch.device(kind)) for kind in ("cpu", "cuda")]
    assert sizes == [1, 16]
    assert batch_size_for(EvaluationConfig(batch_size=4), torch.device("cuda")) == 4


def test_results_of_an_image_keep_their_falling_scores_and_an_image_seen_twice_counts_once(model):
    once = [list(kind) for kind in predict(model, [batch_of([8, 2])], CATEGORY_IDS, ALONE)]
    for kind in once:
        for image_id in (2, 8):
            scores = [entry["score"] for entry in kind if entry["image_id"] == image_id]
            assert len(scores) >= 6 and scores == sorted(scores, reverse=True)
    assert [list(kind) for kind in predict(model, [batch_of([8, 2])] * 2, CATEGORY_IDS, ALONE)] == once
    assert [list(kind) for kind in predict(model, [], CATEGORY_IDS, ALONE)] == [[], []]


def test_the_model_does_not_wait_for_coders_but_who_gathers_does(model, monkeypatch):
    waiting, coded = threading.Event(), []

    def code(detections, batch, *rest):
        assert waiting.wait(300)
        coded.append(batch.image_ids.tolist())
        return result_table(detections, batch, *rest)

    monkeypatch.setattr("maskperf.evaluation.predict.result_table", code)
    batches = [batch_of([3]), batch_of([1, 2]), *(batch_of([image_id]) for image_id in range(4, 8))]
    tables = detect_all(model, batches, CATEGORY_IDS, ALONE.device)
    assert coded == [] and not any(table.done() for table in tables)
    waiting.set()
    boxes, _ = collected(gathered(tables, ALONE))
    assert sorted(coded) == [[1, 2], [3], [4], [5], [6], [7]]
    assert {entry["image_id"] for entry in boxes} == set(range(1, 8))


def test_a_slow_coder_holds_the_model_up(model, monkeypatch):
    coded, most = [], 0

    def code(detections, batch, *rest):
        time.sleep(0.02 if len(coded) % 2 else 0.0)
        coded.append(batch.image_ids.tolist())
        return result_table(detections, batch, *rest)

    def batches():
        nonlocal most
        for image_id in range(12):
            most = max(most, image_id - len(coded))
            yield batch_of([image_id])

    monkeypatch.setattr("maskperf.evaluation.predict.result_table", code)
    monkeypatch.setattr("maskperf.evaluation.predict.MAX_WAITING", 2)
    boxes, _ = predict(model, batches(), CATEGORY_IDS, ALONE)
    assert most <= 2 + CODING_THREADS
    assert {entry["image_id"] for entry in boxes} == set(range(12))


def test_an_error_of_a_coder_ends_the_prediction(model, monkeypatch):
    def broken(detections, batch, *rest):
        raise ArithmeticError(f"image {batch.image_ids.tolist()}")

    monkeypatch.setattr("maskperf.evaluation.predict.result_table", broken)
    model.train(True)
    with pytest.raises(ArithmeticError, match="image \\[3\\]"):
        predict(model, [batch_of([3])], CATEGORY_IDS, ALONE)
    assert model.training
    for thread in threading.enumerate():
        if thread.name.startswith("maskperf-coder"):
            thread.join(300)
            assert not thread.is_alive()


@pytest.mark.parametrize("was_training", [True, False])
def test_model_is_switched_to_evaluation_and_back_after_an_error_too(model, was_training, monkeypatch):
    modes = []

    def watched_detect(model, images):
        modes.append(model.training)
        return detect(model, images)

    monkeypatch.setattr("maskperf.evaluation.predict.detect", watched_detect)
    model.train(was_training)
    predict(model, [batch_of([1])], CATEGORY_IDS, ALONE)
    assert all(part.training is was_training for part in model.modules())
    with pytest.raises(OSError, match="the disk is gone"):
        predict(model, broken_batches(), CATEGORY_IDS, ALONE)
    assert all(part.training is was_training for part in model.modules())
    assert modes == [False, False]


@pytest.mark.parametrize("batch_norm", ["frozen", "trainable"])
def test_prediction_changes_no_weight_and_no_buffer_and_leaves_no_gradient(batch_norm):
    model = build_model(replace(SMALL, batch_norm=batch_norm), seed=0)[0].train()

    def content():
        named = (*model.named_parameters(), *model.named_buffers())
        return {name: value.detach().numpy().tobytes() for name, value in named}

    before = content()
    assert sum("running_var" in name for name in before) > 10
    predict(model, [batch_of([1, 2]), batch_of([3])], CATEGORY_IDS, ALONE)
    assert content() == before
    assert all(parameter.grad is None for parameter in model.parameters())
