"""`maskperf.load` and `predict`, against the detections of an evaluation."""

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_masks
from small_weights import NAMES, SIZES, write_small_weights

import maskperf
from maskperf.errors import ConfigError, DataError
from maskperf.predict.model import SURE_SCORE
from maskperf.predict.stored import resolve_for_weights
from maskperf.predict.validation import open_evaluation, predict_split

LOW = 0.05  # random weights are sure of nothing


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    write_small_weights(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return maskperf.load(folder / "model.safetensors", device="cpu")


@pytest.fixture(scope="module")
def files(folder):
    return sorted((folder / "demo" / "val2017").iterdir())


def entries(result):
    return result.to_coco(1)


def test_the_results_are_those_of_an_evaluation(folder, model, files):
    path = folder / "model.safetensors"
    config, metadata, _ = resolve_for_weights(path, pairs=["system.threads=1", "evaluation.batch_size=1"])
    boxes, masks = predict_split(open_evaluation(path, config, metadata))
    document = json.loads((folder / "demo" / "annotations" / "instances_val2017.json").read_text())
    ids = {entry["file_name"]: entry["id"] for entry in document["images"]}
    found = [entry for file in files for entry in model.predict(file, threshold=LOW).to_coco(ids[file.name])]
    assert len(found) == len(boxes) > 20
    order = sorted(range(len(found)), key=lambda index: found[index]["image_id"])
    for entry, box, mask in zip((found[index] for index in order), boxes, masks, strict=True):
        assert [entry[key] for key in ("image_id", "category_id", "score")] == [
            box[key] for key in ("image_id", "category_id", "score")
        ]
        assert entry["segmentation"] == mask["segmentation"]
        assert entry["bbox"] == pytest.approx(box["bbox"], abs=1e-4)


def test_every_kind_of_image_gives_the_same(model, files):
    pillow = Image.open(files[0])
    rgb = np.asarray(pillow)
    bgr = np.ascontiguousarray(rgb[:, :, ::-1])
    tensor = torch.from_numpy(rgb.copy()).permute(2, 0, 1)
    expected = entries(model.predict(files[0], threshold=LOW))
    assert expected
    for image, channels in ((str(files[0]), None), (pillow, None), (rgb, "RGB"), (bgr, "BGR"), (tensor, "RGB")):
        assert entries(model.predict(image, channels=channels, threshold=LOW)) == expected
    assert entries(model.predict(rgb, channels="BGR", threshold=LOW)) != expected


def test_a_list_gives_a_list_and_the_parts_belong_together(model, files):
    results = model.predict(files[:3], threshold=LOW)
    assert isinstance(results, list) and len(results) == 3
    result = results[0]
    with Image.open(files[0]) as image:
        assert result.size_hw == (image.height, image.width)
    assert len(result) == len(result.names) == len(result.masks) == len(result.boxes)
    assert result.names == [NAMES[label] for label in result.labels.tolist()]
    assert result.masks.dtype == bool and result.masks.shape[1:] == result.size_hw
    assert result.masks.sum(axis=(1, 2)).tolist() == result.mask_areas.tolist()
    for mask, code in zip(result.masks, result.run_lengths, strict=True):
        assert (mask == coco_masks.decode(code)).all()
    assert (np.diff(result.scores) <= 0).all()
    half = float(np.median(result.scores))
    assert 0 < len(result.above(half)) < len(result) and result.above(half).scores.min() >= half
    assert len(model.predict(files[0])) == len(result.above(SURE_SCORE))
    assert len(result.above(1.1)) == 0 and result.above(1.1).masks.shape == (0, *result.size_hw)
    assert result.above(1.1).to_coco() == []


def test_a_result_shows_how_many_objects_there_are_and_the_surest(model, files):
    result = model.predict(files[0], threshold=LOW)
    height, width = result.size_hw
    surest = f"{result.names[0]} {result.scores[0]:.2f}, "
    assert repr(result).startswith(f"Prediction({len(result)} objects in {height} x {width}: {surest}")
    assert len(result) > 5 and repr(result).endswith(", ...)") and "0 objects" in repr(result.above(1.0))


def test_the_exif_orientation_is_ignored_as_in_training(model, files, tmp_path):
    with Image.open(files[0]) as image:
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(tmp_path / "turned.png", exif=exif)
        image.save(tmp_path / "plain.png")
    turned, plain = (model.predict(tmp_path / f"{name}.png", threshold=LOW) for name in ("turned", "plain"))
    assert turned.size_hw == plain.size_hw and entries(turned) == entries(plain)


@pytest.mark.parametrize(
    ("image", "channels", "text"),
    [
        (np.zeros((4, 4, 3), np.uint8), None, 'channels="RGB"'),
        (np.zeros((4, 4, 3), np.uint8), "rgb", "is not an order"),
        (np.zeros((3, 4, 4), np.uint8), "RGB", "height x width x 3"),
        (np.zeros((4, 4, 3), np.float32), "RGB", "float32"),
        (np.zeros((0, 4, 3), np.uint8), "RGB", "no pixel"),
        (torch.zeros(3, 4, 4), "RGB", "torch.uint8"),
        (Image.new("I;16", (4, 4)), None, "8 bits"),
        ("https://example.org/cat.jpg", None, "nothing is downloaded"),
        (7, None, "int is not an image"),
    ],
)
def test_what_is_no_image_is_refused_with_the_way_out(model, image, channels, text):
    with pytest.raises(ConfigError, match=re.escape(text)):
        model.predict(image, channels=channels)


def test_a_broken_file_is_named(model, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image at all")
    with pytest.raises(DataError, match="broken.jpg: whole file.*leave it out"):
        model.predict(tmp_path / "broken.jpg")


@pytest.mark.parametrize("threshold", [-1, 0.01, 1.5, float("nan")])
def test_a_threshold_that_cannot_be_is_refused(model, files, threshold):
    with pytest.raises(ConfigError, match="drops detections below 0.05"):
        model.predict(files[0], threshold=threshold)


def test_settings_and_unnamed_weights(folder, files, tmp_path):
    low = maskperf.load(folder / "model.safetensors", device="cpu", settings=["model.score_threshold=0.01"])
    assert low.predict(files[0], threshold=0.01) is not None
    state = maskperf.load(folder / "model.safetensors", device="cpu").network.state_dict()
    torch.save(state, tmp_path / "bare.pth")
    settings = [*SIZES, "model.batch_norm=trainable"]
    bare = maskperf.load(tmp_path / "bare.pth", device="cpu", recipe="demo", settings=settings)
    assert bare.categories == {number: f"class {number}" for number in range(1, 9)}
    assert any("does not name its classes" in notice for notice in bare.notices)


def test_threads_may_share_a_model(model, files):
    expected = [entries(model.predict(file, threshold=LOW)) for file in files]
    with ThreadPoolExecutor(len(files)) as threads:
        assert list(threads.map(lambda file: entries(model.predict(file, threshold=LOW)), files)) == expected


def test_drawn_images_have_the_scale_that_is_asked_for(model, files):
    result = model.predict(files[0], threshold=LOW)
    height, width = result.size_hw
    assert result.draw(scale=1).size == (width, height)
    drawn = result.draw()
    scale = drawn.width // width
    assert drawn.size == (width * scale, height * scale) and max(drawn.size) >= 640 or scale == 4


def test_supervision_gets_the_same_numbers(model, files):
    pytest.importorskip("supervision")
    result = model.predict(files[0], threshold=LOW)
    found = result.to_supervision()
    assert len(found) == len(result) and found.data["class_name"].tolist() == result.names
    assert np.allclose(found.xyxy, result.boxes) and (found.mask == result.masks).all()


def test_without_supervision_the_error_says_what_to_install(model, files, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ConfigError, match="pip install supervision"):
        model.predict(files[0], threshold=LOW).to_supervision()


def test_evaluate_finds_what_the_command_shows(folder, tmp_path, monkeypatch):
    from maskperf.cli.main import main

    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "--weights", str(folder / "model.safetensors"), "system.threads=1"]) == 0
    written = json.loads((tmp_path / "evaluation.json").read_text())
    found = maskperf.evaluate(folder / "model.safetensors", settings=["system.threads=1"])
    assert (found.box_ap, found.mask_ap, found.images) == (written["box_ap"], written["mask_ap"], written["images"])
    with pytest.raises(ConfigError, match="together"):
        maskperf.evaluate(folder / "model.safetensors", val_json="x.json")
