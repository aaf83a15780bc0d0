"""From the detections of one batch to entries of COCO's result format."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco_masks
from torch import Tensor

from maskperf.ops.paste import paste_masks
from maskperf.structures import Detections, EvaluationBatch


def to_coco_results(
    detections: Detections, batch: EvaluationBatch, category_ids: Int[np.ndarray, " categories"]
) -> tuple[list[dict], list[dict]]:
    """Returns the box results and the mask results of a batch, in the same order, ready for `json.dump`.

    Image and category ids are the data set's own: label k stands for `category_ids[k - 1]`.
    Coordinates are those of the original image. Boxes are x, y, width, height with the "+1" of the pixel convention;
    masks are compressed run-length codes of the whole image.
    Source: the reference's COCO evaluation, `prepare_for_coco_detection` and `prepare_for_coco_segmentation`.
    Cost: waits for the device; one bool per pixel and detection of one image at a time.
    """
    assert detections.mask_probs is not None, "the mask head has not run on these detections"
    box_results, mask_results = [], []
    valid, labels = detections.valid.cpu(), detections.labels.cpu()
    boxes, scores = detections.boxes.cpu().float(), detections.scores.cpu().float()
    mask_probs = detections.mask_probs.cpu().float()
    sizes_hw, original_sizes_hw = batch.images.sizes_hw.tolist(), batch.original_sizes_hw.tolist()
    for index, image_id in enumerate(batch.image_ids.tolist()):
        kept = valid[index]
        image_boxes = rescale_boxes(boxes[index][kept], tuple(sizes_hw[index]), tuple(original_sizes_hw[index]))
        codes = encode_masks(paste_masks(mask_probs[index][kept], image_boxes, tuple(original_sizes_hw[index])))
        categories = category_ids[labels[index][kept].numpy() - 1].tolist()
        rows = zip(categories, boxes_to_xywh(image_boxes).tolist(), codes, scores[index][kept].tolist(), strict=True)
        for category_id, bbox, code, score in rows:
            owner = {"image_id": image_id, "category_id": category_id}
            box_results.append({**owner, "bbox": bbox, "score": score})
            mask_results.append({**owner, "segmentation": code, "score": score})
    return box_results, mask_results


def rescale_boxes(
    boxes: Float[Tensor, "detections 4"], from_hw: tuple[int, int], to_hw: tuple[int, int]
) -> Float[Tensor, "detections 4"]:
    """Returns corner boxes moved from an image of size `from_hw` to one of size `to_hw`, each side by its own ratio."""
    ratio_x, ratio_y = to_hw[1] / from_hw[1], to_hw[0] / from_hw[0]
    return boxes * boxes.new_tensor([ratio_x, ratio_y, ratio_x, ratio_y])


def boxes_to_xywh(boxes: Float[Tensor, "detections 4"]) -> Float[Tensor, "detections 4"]:
    """Returns x, y, width, height of corner boxes, corners inclusive: width = x2 - x1 + 1."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2] + 1], dim=1)


def encode_masks(masks: Bool[Tensor, "detections height width"]) -> list[dict]:
    """Returns each mask as COCO's compressed run-length code, its counts as text."""
    stacked = np.asfortranarray(masks.permute(1, 2, 0).numpy().view(np.uint8))  # height width detections
    codes = coco_masks.encode(stacked)
    return [{"size": list(code["size"]), "counts": code["counts"].decode("ascii")} for code in codes]


def drop_duplicates(results: list[dict]) -> list[dict]:
    """Returns the entries in their order, without those exactly equal to an earlier one.

    Source: the benchmark's evaluation drops them since 2021, because padded samplers can see an image twice.
    """
    kept = []
    similar: dict[tuple, list[dict]] = {}  # few entries share all three keys, so full comparisons are rare
    for entry in results:
        earlier = similar.setdefault((entry["image_id"], entry["category_id"], entry["score"]), [])
        if entry not in earlier:
            earlier.append(entry)
            kept.append(entry)
    return kept
