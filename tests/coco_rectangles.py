"""Rectangles in images, as COCO has them: ground truth and results of a model."""

from pycocotools import mask as coco_masks


def polygon(box_xywh):
    x, y, width, height = map(float, box_xywh)
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def mask_code(box_xywh, size_hw):
    """Return the mask of a rectangle as a compressed run-length code."""
    code = coco_masks.merge(coco_masks.frPyObjects([polygon(box_xywh)], *size_hw))
    return {"size": list(size_hw), "counts": code["counts"].decode()}


def annotation(identity, image_id, category_id, box_xywh, **changes):
    """Return an annotation; `changes` replace its fields, None leaves one out."""
    owner = {"id": identity, "image_id": image_id, "category_id": category_id, "bbox": list(box_xywh), "iscrowd": 0}
    found = {**owner, "area": box_xywh[2] * box_xywh[3], "segmentation": [polygon(box_xywh)], **changes}
    return {key: value for key, value in found.items() if value is not None}


def coco_document(annotations, names, size_hw, *, image_ids=None):
    """Return a data set; `names` are those of the categories by id, images without annotations need their ids."""
    height, width = size_hw
    image_ids = image_ids or dict.fromkeys(entry["image_id"] for entry in annotations)
    images = [{"id": n, "file_name": f"{n}.png", "height": height, "width": width} for n in image_ids]
    categories = [{"id": identity, "name": name} for identity, name in names.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def coco_results(detections, size_hw):
    """Return box and mask results of detections: (image id, category id, box, score)."""
    boxes, masks = [], []
    for image_id, category_id, box_xywh, score in detections:
        owner = {"image_id": image_id, "category_id": category_id, "score": score}
        boxes.append({**owner, "bbox": list(box_xywh)})
        masks.append({**owner, "segmentation": mask_code(box_xywh, size_hw)})
    return boxes, masks
