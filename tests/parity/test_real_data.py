"""Real photographs and their ground truth: files, mask targets and scores against Pillow and pycocotools."""

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_masks
from random_polygons import coco_target
from real_data import COCO_VAL, NUCLEI_VAL, SPLITS, needs_real_data

from maskperf.config import DataConfig
from maskperf.data.coco.index import read_coco
from maskperf.data.images.collate import make_batch
from maskperf.data.images.decode import decode_image
from maskperf.data.images.loader import load_sample
from maskperf.evaluation.scores import GroundTruth, agree, score
from maskperf.losses.mask import mask_targets
from maskperf.model.heads import MASK_SIZE
from maskperf.structures import SampledRois

pytestmark = needs_real_data
every_split = pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
SEED = 20170901


@every_split
def test_every_image_decodes_as_pillow_decodes_it(split):
    for image in split.document["images"]:
        path = split.image_folder / image["file_name"]
        size_hw = (image["height"], image["width"])
        limit = DataConfig().max_image_pixels
        found = decode_image(path, image_id=image["id"], expected_size_hw=size_hw, max_pixels=limit)
        np.testing.assert_array_equal(found, np.array(Image.open(path).convert("RGB")), err_msg=str(path))


def moved(boxes: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return boxes whose corners are off by about a twentieth of their sides, as RoIs are."""
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    return (boxes + generator.normal(0, 0.05, boxes.shape) * np.tile(sides, 2)).astype(np.float32)


@every_split
@pytest.mark.parametrize("flip_probability", [0.0, 1.0], ids=["as it is", "mirrored"])
def test_mask_targets_of_every_object_equal_pycocotools(split, flip_probability):
    index = read_coco(split.json_path, split.image_folder, training=True)
    data = DataConfig(short_side=256, long_side=416, flip_probability=flip_probability)
    generator = np.random.default_rng(SEED)
    num_objects = 0
    for position in range(len(index.image_ids)):
        sample = load_sample(index, position, data=data, seed=SEED, epoch=0, training=True)
        count = len(sample.labels)
        boxes = np.concatenate([sample.boxes, moved(sample.boxes, generator)])
        slots = torch.arange(count).repeat(2)[None]
        rois = SampledRois(
            boxes=torch.from_numpy(boxes)[None],
            labels=torch.from_numpy(sample.labels).repeat(2)[None],
            matched_slots=slots,
            valid=torch.ones_like(slots, dtype=torch.bool),
        )
        found = mask_targets(rois, make_batch([sample], 32).targets, MASK_SIZE)[0].numpy()
        polygons = np.split(sample.points, sample.point_offsets[1:-1])
        for roi, box in enumerate(boxes):
            own = slice(*sample.polygon_offsets[roi % count : roi % count + 2])
            wanted = coco_target(polygons[own], box, MASK_SIZE)
            np.testing.assert_array_equal(found[roi], wanted, err_msg=f"image {sample.image_id}, RoI {roi}, {box}")
        num_objects += count
    assert num_objects == sum(not entry["iscrowd"] for entry in split.document["annotations"])


def perturbed_truth(document: dict, category_ids: list[int]) -> tuple[list[dict], list[dict]]:
    """Return detections made of the ground truth: moved, some of a wrong class, some missing, with equal scores."""
    generator = np.random.default_rng(SEED)
    sizes_hw = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    boxes, masks = [], []
    for entry in document["annotations"] * 2:
        if entry["iscrowd"] or generator.random() < 0.1:
            continue
        height, width = sizes_hw[entry["image_id"]]
        category_id = entry["category_id"] if generator.random() < 0.9 else int(generator.choice(category_ids))
        shared = {"image_id": entry["image_id"], "category_id": category_id, "score": round(generator.random(), 2)}
        shift = generator.normal(0, 0.06, 2) * entry["bbox"][2:]
        x, y, box_width, box_height = entry["bbox"]
        boxes.append({**shared, "bbox": [x + shift[0], y + shift[1], box_width, box_height]})
        polygons = [(np.reshape(polygon, (-1, 2)) + shift).ravel().tolist() for polygon in entry["segmentation"]]
        code = coco_masks.merge(coco_masks.frPyObjects(polygons, height, width))
        segmentation = {"size": [height, width], "counts": code["counts"].decode()}
        masks.append({**shared, "segmentation": segmentation})
    return boxes, masks


@pytest.mark.parametrize("split", [COCO_VAL, NUCLEI_VAL], ids=["COCO val", "nuclei val"])
def test_both_engines_give_the_same_numbers_on_real_ground_truth(split):
    document = split.document
    results = perturbed_truth(document, [category["id"] for category in document["categories"]])
    truth = GroundTruth(split.json_path)
    fast, official = (score(truth, *results, engine=engine) for engine in ("fast", "official"))
    assert agree(fast, official) == []
    assert fast.box_ap_per_category == official.box_ap_per_category
    assert fast.mask_ap_per_category == official.mask_ap_per_category
    assert 0.1 < official.box_ap < 0.9 and 0.1 < official.mask_ap < 0.9
