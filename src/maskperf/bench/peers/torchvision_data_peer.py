"""torchvision's way from files to batches, and from detections to COCO's scores, as its reference scripts go it.

Started with the Python of the peer; imports nothing of maskperf.
"""

import json
import os
import random
import time

import coco_peer
import numpy as np
import serve
import torch
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import functional

MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def loader(inputs):
    """Return one pass over all pictures: decode, polygons to masks, tensor, flip, then the transform of the model.

    The model's transform normalizes, resizes picture and masks, and pads to a batch.
    """
    torch.set_num_threads(1)
    random.seed(1)
    with open(inputs["pictures_json"], encoding="ascii") as file:
        document = json.load(file)
    folder = os.path.dirname(inputs["pictures_json"])
    owned = {picture["id"]: [] for picture in document["images"]}
    for annotation in document["annotations"]:
        owned[annotation["image_id"]].append(annotation)
    pictures = [(os.path.join(folder, entry["file_name"]), owned[entry["id"]]) for entry in document["images"]]
    transform = GeneralizedRCNNTransform(inputs["short_side"], inputs["long_side"], MEAN, DEVIATION).train()
    per_batch = inputs["images_per_batch"]
    # Like ours, batches hold pictures of one orientation: the synthetic ones take turns.
    pictures = pictures[0::2] + pictures[1::2]
    batches = [pictures[start : start + per_batch] for start in range(0, len(pictures), per_batch)]
    batches = [batch for batch in batches if len(batch) == per_batch]

    def work():
        for batch in batches:
            images, targets = zip(*(load(path, annotations) for path, annotations in batch), strict=True)
            transform(list(images), list(targets))

    return work, {"items": len(batches) * per_batch, "item": "images"}


def load(path, annotations):
    """Return one picture as a float tensor with its targets, perhaps mirrored."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    width, height = picture.size
    target = targets_of(annotations, height, width)
    image = functional.pil_to_tensor(picture)
    if random.random() < 0.5:
        image = functional.hflip(image)
        target["boxes"][:, [0, 2]] = width - target["boxes"][:, [2, 0]]
        target["masks"] = target["masks"].flip(-1)
    return functional.convert_image_dtype(image, torch.float), target


def targets_of(annotations, height, width):
    """Return boxes, labels and a full-size mask of every object that is not a crowd."""
    kept = [entry for entry in annotations if not entry["iscrowd"]]
    boxes = torch.as_tensor([entry["bbox"] for entry in kept], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes[:, 0::2].clamp_(min=0, max=width)
    boxes[:, 1::2].clamp_(min=0, max=height)
    masks = []
    for entry in kept:
        codes = coco_masks.frPyObjects(entry["segmentation"], height, width)
        parts = coco_masks.decode(codes)
        masks.append(torch.as_tensor(parts, dtype=torch.uint8).any(dim=2))
    masks = torch.stack(masks) if masks else torch.zeros((0, height, width), dtype=torch.uint8)
    labels = torch.tensor([entry["category_id"] for entry in kept], dtype=torch.int64)
    whole = (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])
    return {"boxes": boxes[whole], "labels": labels[whole], "masks": masks[whole]}


def detected(inputs):
    """Return one way of all detections, as the network leaves them, to the scores of boxes and masks.

    Masks are pasted at full size, made bits and coded one by one; pycocotools scores all images at once.
    """
    torch.set_num_threads(inputs["threads"])
    truth = COCO(inputs["large_json"])
    with np.load(inputs["detections"]) as arrays:
        image_ids, sizes_hw = arrays["image_ids"].tolist(), arrays["sizes_hw"].tolist()
        rows = [torch.from_numpy(arrays[name]) for name in ("boxes", "scores", "labels", "probabilities")]

    def work():
        start = time.perf_counter()
        boxes, masks = [], []
        for image_id, size_hw, *found in zip(image_ids, sizes_hw, *rows, strict=True):
            entries = entries_of_image(image_id, tuple(size_hw), *found)
            boxes += entries[0]
            masks += entries[1]
        coded_seconds = time.perf_counter() - start
        box_ap, mask_ap = coco_peer.score(truth, boxes, "bbox"), coco_peer.score(truth, masks, "segm")
        return {"box_ap": box_ap, "mask_ap": mask_ap, "coded_seconds": coded_seconds}

    return work, {"items": len(image_ids), "item": "images"}


def entries_of_image(image_id, size_hw, boxes, scores, labels, probabilities):
    """Return the box entries and the mask entries of COCO's result format."""
    masks = paste_masks_in_image(probabilities[:, None], boxes, size_hw) > 0.5
    codes = [coco_masks.encode(np.array(mask[0, :, :, np.newaxis], dtype=np.uint8, order="F"))[0] for mask in masks]
    for code in codes:
        code["counts"] = code["counts"].decode("utf-8")
    left, top, right, bottom = boxes.unbind(1)
    xywh = torch.stack([left, top, right - left, bottom - top], dim=1).tolist()
    owners = [
        {"image_id": image_id, "category_id": label, "score": score}
        for label, score in zip(labels.tolist(), scores.tolist(), strict=True)
    ]
    return (
        [{**owner, "bbox": bbox} for owner, bbox in zip(owners, xywh, strict=True)],
        [{**owner, "segmentation": code} for owner, code in zip(owners, codes, strict=True)],
    )


if __name__ == "__main__":
    serve.serve({"loader": loader, "detected": detected})
