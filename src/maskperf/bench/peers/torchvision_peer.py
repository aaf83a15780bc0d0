"""torchvision in the benchmarks of the network and of single operators.

Started with the Python of the peer; imports nothing of maskperf.
"""

import time

import numpy as np
import serve
import torch
import torch_work
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign, batched_nms

SEED = 1
LEVELS = 4
MASK_SIDE = 28


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
    torch_work.sharpen(predictor.cls_score, seen["logits"], len(images))

    def work():
        with torch.no_grad():
            return {"detections": [len(found["labels"]) for found in model(images)]}

    found, facts = first_call(work, images)
    return work, found | facts


def first_call(work, images):
    """Return what the work found, and facts with its FLOP and its seconds: it is not warmed up once more."""
    start = time.perf_counter()
    found, facts = torch_work.first_call(work, len(images))
    return found, facts | {"first_seconds": time.perf_counter() - start}


def make_model(inputs):
    """Return Mask R-CNN of random weights with frozen batch norms, two frozen stages and the numbers of the recipe.

    The backbone is initialized as maskperf's so that proposals and RoIs are alike: torchvision's own initialization
    lets the features grow by a factor of thousands where no batch norm tames them.
    """
    torch.manual_seed(SEED)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    for layer in backbone.body.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_uniform_(layer.weight, a=1)
    sizes = {"min_size": min(inputs["size_hw"]), "max_size": max(inputs["size_hw"])}
    model = MaskRCNN(backbone, image_mean=[0.0] * 3, image_std=[1.0] * 3, **sizes, **inputs["numbers"])
    model.transform.resize = lambda image, target: (image, target)  # images come in their final size
    return model.to(inputs["torch_device"])


def read_batch(path, device):
    """Return images and targets in torchvision's form, masks as bytes at full size."""
    images, targets = [], []
    with np.load(path) as arrays:
        width = arrays["pixels"].shape[3]
        batch = [arrays[name] for name in ("pixels", "boxes", "labels", "masks")]
    for pixels, boxes, labels, masks in zip(*batch, strict=True):
        images.append(torch.from_numpy(pixels).to(device))
        target = {"boxes": boxes, "labels": labels, "masks": np.unpackbits(masks, axis=2, count=width)}
        targets.append({name: torch.from_numpy(value).to(device) for name, value in target.items()})
    return images, targets


def roi_align(inputs):
    """Return one pooling by MultiScaleRoIAlign, which calls roi_align once for each level."""
    pool, direction = inputs["case"].split()
    arrays = torch_work.read_arrays(inputs["pyramid"], inputs["torch_device"])
    features = {str(number): arrays[f"level_{number}"] for number in range(LEVELS)}
    boxes = list(arrays[f"boxes_{pool}"])
    sizes_hw = [tuple(inputs["size_hw"])] * len(boxes)
    operator = MultiScaleRoIAlign(list(features), output_size=torch_work.POOLED_SIZES[pool], sampling_ratio=2)

    def forward():
        with torch.no_grad():
            operator(features, boxes, sizes_hw)

    def forward_and_backward():
        pooled = operator(features, boxes, sizes_hw)
        torch.autograd.grad(pooled, list(features.values()), torch.ones_like(pooled))

    for feature in features.values():
        feature.requires_grad_(direction != "forward")
    facts = {"items": sum(map(len, boxes)), "item": "boxes"}
    return forward if direction == "forward" else forward_and_backward, facts


def nms(inputs):
    """Return one suppression for each image, its levels or classes kept apart by batched_nms."""
    groups = inputs["case"]
    arrays = torch_work.read_arrays(inputs["candidates"], inputs["torch_device"])
    boxes, valid, scores = (arrays[f"{groups}_{name}"] for name in ("boxes", "valid", "scores"))
    per_image = len(valid) // int(arrays["images"])
    group = (torch.arange(len(valid), device=valid.device)[:, None] % per_image).expand(valid.shape)
    images = [slice(start, start + per_image) for start in range(0, len(valid), per_image)]
    parts = [[values[rows][valid[rows]] for values in (boxes, scores, group)] for rows in images]

    def work():
        return sum(len(batched_nms(*part, torch_work.IOU_OF_GROUPS[groups])) for part in parts)

    return work, {"items": int(valid.sum()), "item": "boxes", "kept": work()}


def mask_targets(inputs):
    """Return one projection of the objects' bitmaps, which are at full size already, on all RoIs."""
    _, targets = read_batch(inputs["batch"], inputs["torch_device"])
    arrays = torch_work.read_arrays(inputs["mask_rois"], inputs["torch_device"])
    rois, slots = arrays["rois"], arrays["slots"]

    def work():
        with torch.no_grad():
            return [
                project_masks_on_boxes(target["masks"], boxes, matched, MASK_SIDE)
                for target, boxes, matched in zip(targets, rois, slots, strict=True)
            ]

    share = float(torch.cat(work()).mean())
    return work, {"items": slots.numel(), "item": "RoIs", "filled_share": share}


if __name__ == "__main__":
    makers = (step, infer, roi_align, nms, mask_targets)
    benchmarks = {make_work.__name__: torch_work.with_threads(make_work) for make_work in makers}
    serve.serve(benchmarks, torch.cuda if torch.cuda.is_available() else None)
