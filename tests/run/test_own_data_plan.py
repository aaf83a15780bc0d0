"""What is chosen for a training on own data, and which image is held out."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from own_data import write_own_data

from maskperf.config import DataConfig
from maskperf.data.coco.index import read_coco
from maskperf.data.coco.layout import find_layout
from maskperf.errors import DataError
from maskperf.overrides import validate
from maskperf.recipes import coco
from maskperf.run.own_data import Start, plan_training


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_own_data(tmp_path_factory.mktemp("own"), images=40, seed=3)


def plan_of(folder, start=None, *pairs, device="cpu"):
    return plan_training(find_layout(folder), start or Start(), list(pairs), device)


def parts(folder, holdout):
    data = DataConfig(holdout=holdout)
    read = [read_coco(folder / "annotations.json", folder / "images", training=one, data=data) for one in (True, False)]
    return [set(index.image_ids.tolist()) for index in read]


def test_the_parts_are_disjoint_and_follow_fraction_and_seed(folder):
    train, val = parts(folder, (0.2, 0))
    whole, _ = parts(folder, (0.0, 0))
    assert len(val) == 8 and train & val == set() and train == whole - val
    assert parts(folder, (0.2, 0)) == [train, val]
    assert parts(folder, (0.2, 1))[1] != val
    assert parts(folder, (0.3, 0))[1] > val
    assert len(parts(folder, (0.001, 0))[1]) == 1


def test_an_image_that_is_added_or_moved_in_the_file_changes_few_others(folder, tmp_path):
    document = json.loads((folder / "annotations.json").read_text())
    _, val = parts(folder, (0.2, 0))
    document["images"] = document["images"][::-1]
    (tmp_path / "images").symlink_to(folder / "images")
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    assert parts(tmp_path, (0.2, 0))[1] == val


def test_all_that_is_wrong_with_both_parts_comes_in_one_error(folder, tmp_path):
    for name in ("train.json", "val.json"):
        document = json.loads((folder / "annotations.json").read_text())
        document["annotations"][0]["bbox"][2] = -3
        (tmp_path / name).write_text(json.dumps(document))
    (tmp_path / "images").symlink_to(folder / "images")
    with pytest.raises(DataError) as caught:
        plan_of(tmp_path)
    assert {problem.file for problem in caught.value.problems} == {
        str(tmp_path / name) for name in ("train.json", "val.json")
    }


def test_one_image_cannot_be_split(tmp_path):
    with pytest.raises(DataError, match="no image with objects is left to train on"):
        parts(write_own_data(tmp_path, images=1, seed=3), (0.2, 0))


def test_a_small_model_takes_sizes_from_images_and_objects(folder):
    config = plan_of(folder).config
    validate(config)
    assert (config.data.short_side, config.data.holdout) == (128, (0.2, 0))
    index = read_coco(folder / "annotations.json", folder / "images", training=True)
    sides = np.sqrt((index.boxes[:, 2:] - index.boxes[:, :2] + 1).prod(axis=1))
    assert 8 <= config.model.anchor_sizes[0] <= sides.max()
    assert config.model.anchor_sizes == tuple(sorted(config.model.anchor_sizes))
    assert (config.evaluation.box_target, config.evaluation.mask_target) == (0, 0)
    assert config.optimizer.clip_norm > 0


def test_the_length_follows_the_data_and_what_the_user_says(folder):
    images = len(plan_of(folder).train.image_ids)
    config = plan_of(folder).config
    per_epoch = images // config.optimizer.batch_size + 1
    assert config.optimizer.max_steps == config.optimizer.max_epochs * per_epoch
    few = plan_of(folder, None, "optimizer.max_epochs=3").config
    assert (few.optimizer.max_steps, few.evaluation.every_epochs) == (3 * per_epoch, 1)
    assert plan_of(folder, None, "optimizer.max_steps=7").config.optimizer.max_steps == 7
    steps = plan_of(folder, None, "optimizer.schedule=steps", "optimizer.max_epochs=30").config.optimizer
    assert len(steps.decay_steps) == 2 and steps.decay_steps[1] < steps.max_steps


def test_the_rate_follows_the_batch_and_a_given_rate_stays(folder):
    rates = [plan_of(folder, None, f"optimizer.batch_size={size}").config.optimizer.learning_rate for size in (4, 8)]
    assert rates[1] == pytest.approx(2 * rates[0])
    assert plan_of(folder, None, "optimizer.learning_rate=0.5").config.optimizer.learning_rate == 0.5
    assert plan_of(folder, None, "optimizer.method=adamw").config.optimizer.learning_rate < rates[1] / 5


def test_a_backbone_is_frozen_as_usual_and_random_weights_are_not(folder):
    trained = plan_of(folder, Start(backbone="R-50.pkl", model="r50")).config
    random = plan_of(folder, Start(model="r50")).config
    assert (trained.model.batch_norm, trained.model.frozen_stages, trained.data.short_side) == ("frozen", 2, 800)
    assert (random.model.batch_norm, random.model.frozen_stages) == ("trainable", 0)
    assert trained.model.num_classes == 0


@pytest.mark.parametrize(
    ("names", "reset"),
    [(("crate", "star", "leaf"), False), (("star", "crate", "leaf"), True), (("crate",), True), ((), True)],
)
def test_predictors_begin_anew_where_the_classes_are_others(folder, names, reset):
    base = coco()
    weights = replace(base, model=replace(base.model, initial_weights="w.safetensors", backbone_weights=""))
    plan = plan_of(folder, Start(weights=weights, category_names=names))
    assert plan.config.model.reset_predictors is reset
    assert any("begin anew" in line for line in plan.lines) is reset
    assert plan.config.model.initial_weights == "w.safetensors"


def test_a_peak_of_memory_before_the_measurement_does_not_count():
    code = """if True:
    import sys
    import numpy as np
    from maskperf.machine.sources import peak_memory_bytes
    from maskperf.run.measure import forget_peak
    before = np.ones(50_000_000)
    del before
    high = peak_memory_bytes()
    forget_peak()
    sys.exit(high - peak_memory_bytes() < 300_000_000)
    """
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
