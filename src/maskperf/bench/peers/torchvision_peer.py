"""torchvision in the benchmarks of the network and of single operators.

Started with the Python of the peer; imports nothing of maskperf.
"""

import time

import numpy as np
import serve
import sharpen
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign, batched_nms

SEED = 1
LEVELS = 4
POOLED_SIZES = {"7x7": 7, "14x14": 14}
MASK_SIDE = 28
IOU_OF_GROUPS = {"levels": 0.7, "classes": 0.5}


def step(inputs):
    """Return one training step with momentum, and what it works on."""
    model = make_model(inputs).train()
    images, targets = read_batch(inputs["batch"], inputs["torch_device"])
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=inputs["learning_rate"], momentum=0.9, weight_decay=1e-4)
    counts = {}
    choose = model.roi_heads.select_training_samples

    def choose_and_count(proposals, truth):
        chosen = choose(proposals, truth)
        labels = chosen[2]
        counts["rois"] = [len(entry) for entry in labels]
        counts["positive_rois"] = [int((entry > 0).sum()) for entry in labels]
        return chosen

    def work():
        optimizer.zero_grad(set_to_none=True)
        losses = model(images, targets)
        sum(losses.values()).backward()
        optimizer.step()
        return {"losses": {name: float(value) for name, value in losses.items()}}

    model.roi_heads.select_training_samples = choose_and_count
    first, facts = first_call(work, images)
    model.roi_heads.select_training_samples = choose
    return work, {**counts, "first_losses": first["losses"], **facts}


def infer(inputs):
    """Return one batch of detections with their mask probabilities; masks are not pasted here."""
    model = make_model(inputs).eval()
    images, _ = read_batch(inputs["batch"], inputs["torch_device"])
    model.transform.postprocess = lambda result, sizes, original_sizes: result
    predictor = model.roi_heads.box_predictor
    seen = {}

    def save_logits(module, arguments, outputs):
        seen["logits"] = outputs[0]

    hook = predictor.register_forward_hook(save_logits)
    with torch.no_grad():
        model(images)
    hook.remove()
    sharpen.sharpen(predictor.cls_score, seen["logits"], len(images))

    def work():
        with torch.no_grad():
            return {"detections": [len(found["labels"]) for found in model(images)]}

    found, facts = first_call(work, images)
    return work, found | facts


def first_call(work, images):
    """Return what the work found, and its seconds and FLOP."""
    start = time.perf_counter()
    with FlopCounterMode(display=False) as counter:
        found = work()
    seconds = time.perf_counter() - start
    return found, {"first_seconds": seconds, "items": len(images), "item": "images", "flop": counter.get_total_flops()}


def make_model(inputs):
    """Return Mask R-CNN of random weights with frozen batch norms, two frozen stages and the numbers of the recipe.

    The backbone is initialized as maskperf's so that proposals and RoIs are alike: torchvision's own initialization
    lets the features grow by a factor of thousands where no batch norm tames them.
    """
    torch.set_num_threads(inputs["threads"])
    torch.manual_seed(SEED)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    for layer in backbone.body.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_uniform_(layer.weight, a=1)
    size_hw = inputs["size_hw"]
    model = MaskRCNN(
        backbone,
        min_size=min(size_hw),
        max_size=max(size_hw),
        image_mean=[0.0, 0.0, 0.0],
        image_std=[1.0, 1.0, 1.0],
        **inputs["numbers"],
    )
    model.transform.resize = lambda image, target: (image, target)  # images come in their final size
    return model.to(inputs["torch_device"])


def read_batch(path, device):
    """Return images and targets in torchvision's form, masks as bytes at full size."""
    images, targets = [], []
    with np.load(path) as arrays:
        width = arrays["pixels"].shape[3]
        for pixels, boxes, labels, masks in zip(
            arrays["pixels"], arrays["boxes"], arrays["labels"], arrays["masks"], strict=True
        ):
            images.append(torch.from_numpy(pixels).to(device))
            bits = np.unpackbits(masks, axis=2, count=width)
            target = {"boxes": boxes, "labels": labels.astype(np.int64), "masks": bits}
            targets.append({name: torch.from_numpy(value).to(device) for name, value in target.items()})
    return images, targets


def roi_align(inputs):
    """Return one pooling by MultiScaleRoIAlign, which calls roi_align once for each level."""
    torch.set_num_threads(inputs["threads"])
    device = inputs["torch_device"]
    pool, direction = inputs["case"].split()
    with np.load(inputs["pyramid"]) as arrays:
        features = {
            str(number): torch.from_numpy(arrays[f"level_{number}"]).to(device).contiguous() for number in range(LEVELS)
        }
        boxes = [torch.from_numpy(part).to(device) for part in arrays[f"boxes_{pool}"]]
        sizes_hw = [tuple(arrays["size_hw"].tolist())] * len(boxes)
    operator = MultiScaleRoIAlign(list(features), output_size=POOLED_SIZES[pool], sampling_ratio=2)
    facts = {"items": sum(map(len, boxes)), "item": "boxes"}

    def forward():
        with torch.no_grad():
            operator(features, boxes, sizes_hw)

    def forward_and_backward():
        pooled = operator(features, boxes, sizes_hw)
        torch.autograd.grad(pooled, list(features.values()), torch.ones_like(pooled))

    if direction == "forward":
        return forward, facts
    for feature in features.values():
        feature.requires_grad_()
    return forward_and_backward, facts


def nms(inputs):
    """Return one suppression for each image, its levels or classes kept apart by batched_nms."""
    torch.set_num_threads(inputs["threads"])
    device = inputs["torch_device"]
    groups = inputs["case"]
    parts = []
    with np.load(inputs["candidates"]) as arrays:
        images = int(arrays["images"])
        boxes, valid, scores = (arrays[f"{groups}_{name}"] for name in ("boxes", "valid", "scores"))
        per_image = len(valid) // images
        group = np.broadcast_to(np.arange(len(valid))[:, None] % per_image, valid.shape)
        for start in range(0, len(valid), per_image):
            rows = slice(start, start + per_image)
            chosen = valid[rows]
            part = (boxes[rows][chosen], scores[rows][chosen], group[rows][chosen])
            parts.append([torch.from_numpy(value).to(device) for value in part])
    iou = IOU_OF_GROUPS[groups]
    kept = sum(len(batched_nms(*part, iou)) for part in parts)

    def work():
        for part in parts:
            batched_nms(*part, iou)

    return work, {"items": int(valid.sum()), "item": "boxes", "kept": kept}


def mask_targets(inputs):
    """Return one projection of the objects' bitmaps, which are at full size already, on all RoIs."""
    torch.set_num_threads(inputs["threads"])
    device = inputs["torch_device"]
    _, targets = read_batch(inputs["batch"], device)
    with np.load(inputs["mask_rois"]) as arrays:
        rois = [torch.from_numpy(part).to(device) for part in arrays["rois"]]
        slots = [torch.from_numpy(part.astype(np.int64)).to(device) for part in arrays["slots"]]

    def work():
        with torch.no_grad():
            return [
                project_masks_on_boxes(target["masks"], boxes, matched, MASK_SIDE)
                for target, boxes, matched in zip(targets, rois, slots, strict=True)
            ]

    share = float(torch.cat(work()).mean())
    return lambda: work() and None, {"items": sum(map(len, rois)), "item": "RoIs", "filled_share": share}


if __name__ == "__main__":
    benchmarks = {"step": step, "infer": infer, "roi_align": roi_align, "nms": nms, "mask_targets": mask_targets}
    serve.serve(benchmarks, torch.cuda if torch.cuda.is_available() else None)
