"""torchvision from files to batches, and from detections to COCO's scores, as in its reference scripts.

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
import torch_work
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import functional

MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def loader(inputs):
    """Return one pass over all images: decode, polygons to masks, tensor, flip, then the model's transform.

    That transform normalizes, resizes image and masks, and pads to a batch.
    """
    torch.set_num_threads(1)
    random.seed(1)
    with open(inputs["pictures_json"], encoding="ascii") as file:
        document = json.load(file)
    folder = os.path.dirname(inputs["pictures_json"])
    owned: dict[int, list] = {image["id"]: [] for image in document["images"]}
    for annotation in document["annotations"]:
        owned[annotation["image_id"]].append(annotation)
    samples = [(os.path.join(folder, entry["file_name"]), owned[entry["id"]]) for entry in document["images"]]
    transform = GeneralizedRCNNTransform(inputs["short_side"], inputs["long_side"], MEAN, DEVIATION).train()
    per_batch = inputs["images_per_batch"]
    # Batches hold images of one orientation, as maskperf's do: the synthetic ones alternate.
    samples = samples[0::2] + samples[1::2]
    batches = [samples[start : start + per_batch] for start in range(0, len(samples), per_batch)]
    batches = [batch for batch in batches if len(batch) == per_batch]

    def work():
        for batch in batches:
            images, targets = zip(*(load(path, annotations) for path, annotations in batch), strict=True)
            transform(list(images), list(targets))

    return work, {"items": len(batches) * per_batch, "item": "images"}


def load(path, annotations):
    """Return one image as a float tensor with its targets, flipped at random."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    width, height = image.size
    target = targets_of(annotations, height, width)
    image = functional.pil_to_tensor(image)
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
    masks = torch.zeros((len(kept), height, width), dtype=torch.uint8)
    for mask, entry in zip(masks, kept, strict=True):
        codes = coco_masks.frPyObjects(entry["segmentation"], height, width)
        mask.copy_(torch.as_tensor(coco_masks.decode(codes), dtype=torch.uint8).any(dim=2))
    labels = torch.tensor([entry["category_id"] for entry in kept], dtype=torch.int64)
    whole = (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])
    return {"boxes": boxes[whole], "labels": labels[whole], "masks": masks[whole]}


def detected(inputs):
    """Return one pass over all detections, from the network's output to the scores of boxes and masks.

    Masks are pasted at full size, made bits and encoded one by one; pycocotools scores all images at once.
    """
    truth = COCO(inputs["large_json"])
    arrays = torch_work.read_arrays(inputs["detections"])
    image_ids, sizes_hw = arrays["image_ids"].tolist(), arrays["sizes_hw"].tolist()
    rows = [arrays[name] for name in ("boxes", "scores", "labels", "probabilities")]

    def work():
        start = time.perf_counter()
        boxes, masks = [], []
        for image_id, size_hw, *found in zip(image_ids, sizes_hw, *rows, strict=True):
            box_entries, mask_entries = entries_of_image(image_id, tuple(size_hw), *found)
            boxes += box_entries
            masks += mask_entries
        coded_seconds = time.perf_counter() - start
        box_ap = coco_peer.ap_of(truth, boxes, "bbox", COCOeval)
        mask_ap = coco_peer.ap_of(truth, masks, "segm", COCOeval)
        return {"box_ap": box_ap, "mask_ap": mask_ap, "coded_seconds": coded_seconds}

    return work, {"items": len(image_ids), "item": "images"}


def entries_of_image(image_id, size_hw, boxes, scores, labels, probabilities):
    """Return the box entries and the mask entries of COCO's result format."""
    masks = paste_masks_in_image(probabilities[:, None], boxes, size_hw) > 0.5
    left, top, right, bottom = boxes.unbind(1)
    xywh = torch.stack([left, top, right - left, bottom - top], dim=1).tolist()
    box_entries, mask_entries = [], []
    for label, score, bbox, mask in zip(labels.tolist(), scores.tolist(), xywh, masks, strict=True):
        owner = {"image_id": image_id, "category_id": label, "score": score}
        code = coco_masks.encode(np.array(mask[0, :, :, np.newaxis], dtype=np.uint8, order="F"))[0]
        code["counts"] = code["counts"].decode("utf-8")
        box_entries.append({**owner, "bbox": bbox})
        mask_entries.append({**owner, "segmentation": code})
    return box_entries, mask_entries


if __name__ == "__main__":
    serve.serve({"loader": loader, "detected": torch_work.with_threads(detected)})
