"""Detections of torchvision's own Mask R-CNN, v1 and v2, from the same random weights (tests/golden_torchvision.py)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from family_weights import family_weight, synthetic_image
from golden_reference import GOLDEN_FOLDER
from PIL import Image
from pycocotools import mask as coco_masks

from maskperf.data.coco.index import read_coco
from maskperf.data.images.loader import evaluation_batches
from maskperf.engine.distributed import Topology
from maskperf.evaluation.predict import predict
from maskperf.files import pretty_json
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.weights.categories import coco_categories
from maskperf.weights.open import open_weights

SIZES_HW = ((150, 200), (420, 300), (160, 640))


def images_of(folder: Path):
    """Write the images and their annotations, and return their index."""
    entries = []
    for number, (height, width) in enumerate(SIZES_HW):
        Image.fromarray(synthetic_image(number, height, width)).save(folder / f"{number}.png")
        entries.append({"id": number + 1, "file_name": f"{number}.png", "height": height, "width": width})
    categories = [{"id": identity, "name": name} for identity, name in coco_categories(91).items()]
    (folder / "images.json").write_text(pretty_json({"images": entries, "annotations": [], "categories": categories}))
    return read_coco(folder / "images.json", folder, training=False)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return images_of(tmp_path_factory.mktemp("images"))


def weights_of(golden):
    """Return the state dict of torchvision's model, whose names and shapes are in the golden file."""
    sizes = [tuple(map(int, text.split())) for text in golden["shapes"]]
    named = zip(golden["names"].tolist(), sizes, strict=True)
    return {name: torch.from_numpy(family_weight(name, size)) for name, size in named}


def pixels_of(result, size_hw):
    return coco_masks.decode({"size": list(size_hw), "counts": result["segmentation"]["counts"]}).astype(bool)


@pytest.mark.parametrize("version", ["v1", pytest.param("v2", marks=pytest.mark.slow)])
def test_detections_are_those_of_torchvision(version, index, tmp_path):
    golden = np.load(GOLDEN_FOLDER / f"torchvision_{version}.npz")
    path = tmp_path / "model.pth"
    torch.save(weights_of(golden), path)
    opened = open_weights(path)
    model = MaskRcnn(opened.config.model)
    model.load_state_dict(opened.state)
    data = replace(opened.config.data, short_side=256, long_side=400)
    batches = evaluation_batches(index, data, batch_size=1, rank=0, world=1)
    ids = np.array(list(opened.categories))
    boxes, masks = (list(found) for found in predict(model.eval(), batches, ids, Topology()))
    for number, size_hw in enumerate(SIZES_HW):
        own = [place for place, box in enumerate(boxes) if box["image_id"] == number + 1]
        assert len(own) == len(golden[f"scores{number}"])
        corners = np.array([boxes[place]["bbox"] for place in own])
        corners[:, 2:] += corners[:, :2]
        pasted = np.array([pixels_of(masks[place], size_hw) for place in own])
        wanted = np.unpackbits(golden[f"masks{number}"], axis=-1, count=size_hw[1]).astype(bool)
        np.testing.assert_array_equal([boxes[place]["category_id"] for place in own], golden[f"labels{number}"])
        np.testing.assert_allclose([boxes[place]["score"] for place in own], golden[f"scores{number}"], atol=1e-4)
        np.testing.assert_allclose(corners, golden[f"boxes{number}"], atol=1e-2)
        assert (pasted != wanted).sum() <= 0.001 * wanted.sum()  # of the masks' own pixels, not of the image's
