"""Augmented samples as a run gets them: pixels and targets move together, and draws are those of their keys."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from image_folder import assert_equal, training_loader
from PIL import Image, ImageDraw, ImageFilter
from pycocotools import mask as coco_masks

from maskperf.config import DataConfig
from maskperf.data.coco.index import read_coco
from maskperf.data.images import loader
from maskperf.data.images.augmentation import augmented, recoloured
from maskperf.data.images.buckets import bucket_sizes
from maskperf.data.images.capacity import batch_capacity
from maskperf.data.images.collate import Packing, make_batch
from maskperf.data.images.loader import Feeding, evaluation_batches, load_sample
from maskperf.data.images.raw_images import UploadBuffers, prepare_images
from maskperf.engine.capacity import capacity_of, fits
from maskperf.losses.mask import mask_targets
from maskperf.structures import SampledRois

IMAGES, OBJECTS = 8, 4
OFF = DataConfig(short_side=96, long_side=180, loader_threads=2, pixel_means_bgr=(0.0, 0.0, 0.0))
WAYS = {
    "multi-scale": {"short_sides": (64, 96, 128)},
    "jitter": {"scale_jitter": (0.4, 2.0)},
    "copy-paste": {"copy_paste": 1.0},
    "all": {"short_sides": (96, 128), "scale_jitter": (0.5, 1.8), "copy_paste": 0.7},
}
ALL = replace(OFF, **WAYS["all"], color=0.4)
# 32 colours far apart: of 4 x 4 x 2 levels; the background is none of them.
PALETTE = [(red, green, blue) for red in (60, 125, 190, 255) for green in (0, 85, 170, 255) for blue in (0, 255)]
BACKGROUND = (0, 0, 128)


@pytest.fixture(scope="module", params=["polygons", "run lengths", "both"])
def index(request, tmp_path_factory):
    """Eight images of four ellipses each, every one of another category and painted in that category's colour."""
    folder, random = tmp_path_factory.mktemp("painted"), np.random.default_rng(3)
    images, annotations = [], []
    for number in range(IMAGES):
        height, width = ((90, 120), (110, 80))[number % 2]
        picture = Image.new("RGB", (width, height), BACKGROUND)
        for place in range(OBJECTS):
            label = number * OBJECTS + place + 1
            center = ((place % 2 + 0.5) * width / 2, (place // 2 + 0.5) * height / 2)
            radii = random.uniform(8, 17, 2)
            angles = np.arange(40) * np.pi / 20
            polygon = center + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            flat = polygon.ravel().round(2).tolist()
            code = coco_masks.merge(coco_masks.frPyObjects([flat], height, width))
            mask = coco_masks.decode(code)
            ImageDraw.Draw(picture).bitmap((0, 0), Image.fromarray(mask * 255), fill=PALETTE[label - 1])
            has_runs = request.param == "run lengths" or (request.param == "both" and place % 2)
            row = {"id": label, "image_id": number + 1, "category_id": label, "iscrowd": 0}
            row |= {"bbox": coco_masks.toBbox(code).tolist(), "area": int(mask.sum()), "segmentation": [flat]}
            if has_runs:
                row["segmentation"] = {"size": [height, width], "counts": code["counts"].decode()}
            annotations.append(row)
        picture.save(folder / f"{number}.png")
        images.append({"id": number + 1, "file_name": f"{number}.png", "height": height, "width": width})
    categories = [{"id": label, "name": f"thing {label}"} for label in range(1, len(PALETTE) + 1)]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return read_coco(path, folder, training=True)


def sample_of(index, position, data, *, seed=7, epoch=1):
    return load_sample(index, position, data=data, seed=seed, epoch=epoch, training=True)


def shows(pixels: np.ndarray, label: int) -> np.ndarray:
    """Return where the colour of the label is, pure: not the mixed colours at edges."""
    return (abs(pixels - np.array(PALETTE[label - 1][::-1], np.float32)) <= 3).all(axis=2)


def grown(mask: np.ndarray, margin: int) -> np.ndarray:
    """Return the mask and all that is so near to it."""
    image = Image.fromarray(mask.astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.MaxFilter(2 * margin + 1))).astype(bool)


def masks_of(sample) -> list[np.ndarray]:
    """Return every object's mask on the image that is trained on, by pycocotools and Pillow."""
    found = []
    for number in range(len(sample.labels)):
        first, last = sample.polygon_offsets[number : number + 2]
        spans = zip(sample.point_offsets[first:last], sample.point_offsets[first + 1 : last + 1], strict=True)
        polygons = [sample.points[start:stop].ravel().tolist() for start, stop in spans]
        if polygons:
            codes = coco_masks.frPyObjects(polygons, *sample.size_hw)
            found.append(coco_masks.decode(coco_masks.merge(codes)).astype(bool))
            continue
        size_hw = sample.original_size_hw
        ends = sample.run_ends[slice(*sample.run_offsets[number : number + 2])].tolist()
        counts = np.diff([0, *ends, size_hw[0] * size_hw[1]]).tolist()
        mask = coco_masks.decode(coco_masks.frPyObjects({"size": list(size_hw), "counts": counts}, *size_hw))
        mask = np.asarray(Image.fromarray(mask).resize(sample.size_hw[::-1], Image.Resampling.NEAREST)).astype(bool)
        found.append(mask[:, ::-1] if sample.is_mirrored else mask)
    return found


@pytest.mark.parametrize("way", WAYS)
def test_masks_and_boxes_lie_where_their_colours_are(index, way):
    data, num_checked, num_images = replace(OFF, **WAYS[way]), 0, set()
    for seed, position in np.ndindex(2, IMAGES):
        sample = sample_of(index, position, data, seed=seed)
        pixels = make_batch([sample], 32).images.pixels[0].permute(1, 2, 0).numpy()
        pixels = pixels[: sample.size_hw[0], : sample.size_hw[1]]
        num_images.add(len({(label - 1) // OBJECTS for label in sample.labels}))
        for label in set(index.labels[index.object_offsets[position] :][:OBJECTS]) - set(sample.labels):
            assert shows(pixels, label).sum() < 30  # rests without a box
        # Edges of two resizes and of COCO's rasteriser; a mirrored polygon lies one pixel further left than its pixels.
        margin = int(np.ceil(3 * max(1, sample.size_hw[0] / sample.original_size_hw[0])))
        for label, box, mask in zip(sample.labels, sample.boxes, masks_of(sample), strict=True):
            assert box[0] < box[2] and box[1] < box[3] and (box >= 0).all()
            assert box[2] <= sample.size_hw[1] - 1 and box[3] <= sample.size_hw[0] - 1
            core = ~grown(np.pad(~mask, 1, constant_values=True), margin)[1:-1, 1:-1]
            if core.any() and (sample.labels == label).sum() == 1:
                shown = shows(pixels, label)
                assert (shown & ~grown(mask, margin)).sum() <= 2 and shown[core].mean() > 0.99
                ys, xs = np.nonzero(mask)
                np.testing.assert_allclose(box, [xs.min(), ys.min(), xs.max(), ys.max()], atol=margin)
                num_checked += 1
    assert num_checked > 30
    assert (max(num_images) == 2) == bool(data.copy_paste)


@pytest.mark.parametrize("way", WAYS)
def test_mask_targets_are_those_of_the_masks(index, way):
    """The targets of a step, read from polygons and run lengths, against the masks cut out and resized by Pillow."""
    data, agreements = replace(OFF, **WAYS[way]), []
    for position in range(IMAGES):
        sample = sample_of(index, position, data)
        if not len(sample.labels):
            continue
        targets = make_batch([sample], 32).targets
        slots = torch.arange(len(sample.labels))[None]
        rois = SampledRois(boxes=targets.boxes, labels=targets.labels, matched_slots=slots, valid=targets.valid)
        for box, mask, found in zip(sample.boxes, masks_of(sample), mask_targets(rois, targets, 28)[0], strict=True):
            if mask.sum() >= 150:
                crop = Image.fromarray(mask).resize((28, 28), Image.Resampling.NEAREST, box=tuple(map(float, box)))
                agreements.append((np.asarray(crop) == found.numpy()).mean())
    assert len(agreements) > 10 and min(agreements) > 0.85 and np.mean(agreements) > 0.93


def same(first, other) -> bool:
    return all(np.array_equal(getattr(first, name), getattr(other, name)) for name in vars(first))


def test_one_short_side_is_the_path_without_augmentation_bit_for_bit(index):
    for position in range(IMAGES):
        off = sample_of(index, position, OFF)
        assert same(sample_of(index, position, replace(OFF, short_sides=(96,), short_side=50)), off)
        assert off.run_ends is None or index.run_ends is not None
        evaluated = [
            load_sample(index, position, data=data, seed=7, epoch=1, training=False) for data in (OFF, replace(ALL))
        ]
        assert same(*evaluated)
    assert_equal(
        evaluation_batches(index, ALL, batch_size=2, rank=0, world=1),
        evaluation_batches(index, OFF, batch_size=2, rank=0, world=1),
    )


def test_draws_depend_on_seed_epoch_and_image_alone(index):
    first = [sample_of(index, position, ALL) for position in range(IMAGES)]
    assert all(same(sample, sample_of(index, position, ALL)) for position, sample in enumerate(first))
    for change in ({"seed": 8}, {"epoch": 2}):
        others = [sample_of(index, position, ALL, **change) for position in range(IMAGES)]
        assert not any(np.array_equal(sample.bgr, other.bgr) for sample, other in zip(first, others, strict=True))
    for change in ({"color": 0.0}, {"copy_paste": 0.0}, {"short_sides": ()}, {"scale_jitter": (1.0, 1.0)}):
        others = [sample_of(index, position, replace(ALL, **change)) for position in range(IMAGES)]
        assert [other.is_mirrored for other in others] == [sample.is_mirrored for sample in first]
        assert not all(map(same, first, others))


def test_every_draw_has_a_purpose_of_its_own(index):
    asked = []

    def draw(*key):
        asked.append(key)
        return 0.4

    data = replace(ALL, scale_jitter=(1.5, 2.0), copy_paste=1.0)
    augmented(partial(loader._read, index, data=data), 0, num_images=IMAGES, data=data, draw=draw)
    shared = {"short side", "scale", "top", "left", "brightness", "contrast", "saturation"}
    expected = shared | {f"pasted {purpose}" for purpose in shared} | {"paste", "only pasted object"}
    expected |= {f"pasted {purpose}" for purpose in ("image", "object", "flip", "y", "x")}
    assert len(set(asked)) == len(asked)
    assert expected - {"only pasted object"} <= {purpose for purpose, *_ in asked} <= expected


@pytest.mark.parametrize("static_sizes", [False, True])
def test_batches_are_the_same_from_any_step_on_and_fit_their_room(index, static_sizes):
    feeding = Feeding(aspect_buckets=static_sizes, static_sizes=static_sizes)
    whole = list(training_loader(index, ALL, feeding=feeding).batches(0, 12))
    assert_equal(training_loader(index, replace(ALL, loader_threads=1), feeding=feeding).batches(5, 7), whole[5:])
    room = batch_capacity(index, 2, ALL)
    assert all(fits(capacity_of(batch), room) for batch in whole)
    assert not all(fits(capacity_of(batch), batch_capacity(index, 2, OFF)) for batch in whole)
    sizes = {tuple(batch.images.pixels.shape[2:]) for batch in whole}
    if static_sizes:
        assert sizes <= set(bucket_sizes(ALL))
    else:
        assert len(sizes) > 2


def test_both_ways_of_preparing_images_have_the_same_pixels(index):
    for position in range(IMAGES):
        sample = sample_of(index, position, ALL)
        raw = Packing(buffers=UploadBuffers(max_waiting=1, pin_memory=False))
        prepared = prepare_images(make_batch([sample], 32, raw), torch.device("cpu"))
        assert_equal([prepared], [make_batch([sample], 32)])


def test_every_size_and_scale_is_drawn(index):
    sides = {min(sample_of(index, 0, replace(OFF, **WAYS["multi-scale"]), epoch=e).size_hw) for e in range(20)}
    assert sides == {64, 96, 128}
    jittered = [sample_of(index, 0, replace(OFF, scale_jitter=(0.5, 2.0)), epoch=e) for e in range(60)]
    shrunk = [sample.size_hw[0] / 96 for sample in jittered if sample.original_size_hw == (90, 120)]
    grown = [90 / sample.original_size_hw[0] for sample in jittered if sample.original_size_hw != (90, 120)]
    assert 0.5 <= min(shrunk) < 0.6 and max(shrunk) <= 1 and min(grown) > 1 and 1.8 < max(grown) <= 2.05
    assert 8 <= len(shrunk) <= 32  # 20 expected of 60, standard deviation 3.7
    assert {sample.size_hw for sample in jittered if sample.original_size_hw != (90, 120)} == {(96, 128)}


def test_a_data_set_of_one_image_pastes_its_own_objects(index):
    alone = index.without(range(1, IMAGES))
    sample = sample_of(alone, 0, replace(OFF, copy_paste=1.0))
    assert len(sample.labels) > 0 and set(sample.labels) <= set(alone.labels)


@pytest.mark.parametrize("factors", [(0.6, 1.0, 1.0), (1.0, 1.5, 1.0), (1.0, 1.0, 0.4), (1.3, 0.7, 1.6)])
def test_colours_follow_the_formulas(factors):
    bgr = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    brightness, contrast, saturation = factors
    weights = np.array([0.114, 0.587, 0.299])
    expected = np.clip(bgr * brightness, 0, 255)
    expected = np.clip((gray := (expected @ weights).mean()) + (expected - gray) * contrast, 0, 255)
    gray = (expected @ weights)[:, :, None]
    expected = np.clip(gray + (expected - gray) * saturation, 0, 255)
    found = recoloured(bgr, brightness=brightness, contrast=contrast, saturation=saturation)
    assert abs(found - expected).max() <= 4  # three steps cut to whole numbers, each stretched by the next
    assert np.array_equal(recoloured(bgr, brightness=1.0, contrast=1.0, saturation=1.0), bgr)
