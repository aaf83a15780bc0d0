"""Our side of the benchmarks of the whole network: one training step, and one batch of detections."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import wraps

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from maskperf.bench.peers.sharpen import sharpen
from maskperf.config import RunConfig
from maskperf.engine.build import build_model, keep_memory
from maskperf.engine.distributed import Topology, init_topology
from maskperf.engine.graphs import capture_batch
from maskperf.engine.optimizer import build_optimizer
from maskperf.engine.precision import set_precision
from maskperf.engine.step import train_step
from maskperf.evaluation.detect import detect
from maskperf.losses.box import sample_rois
from maskperf.model.mask_rcnn import MaskRcnn, feature_anchors
from maskperf.model.proposals import append_truth, select_proposals
from maskperf.overrides import from_json_text
from maskperf.structures import LOSS_NAMES, Batch, Images, Polygons, Proposals, Targets, to_device
from maskperf.techniques import chosen_techniques, using

SEED = 1
# After the one whose FLOP are counted: nothing is compiled or captured while PyTorch counts.
WARM_UP_CALLS = {"cpu": 1, "cuda": 5}
MakeWork = Callable[[dict], tuple[Callable[[], dict], dict]]


def with_own_techniques(make_work: MakeWork) -> MakeWork:
    """Return the same benchmark, made and done with the techniques of its own configuration."""

    @wraps(make_work)
    def made(inputs: dict) -> tuple[Callable[[], dict], dict]:
        techniques = chosen_techniques(from_json_text(inputs["config"]).speed)
        with using(techniques):
            work, facts = make_work(inputs)
        return using(techniques)(work), facts

    return made


@with_own_techniques
def step(inputs: dict) -> tuple[Callable[[], dict], dict]:
    """Return one training step, and what it works on: RoIs, positive ones, FLOP as counted by PyTorch."""
    model, config, topology = _open(inputs)
    batch = to_device(read_batch(inputs["batch"]), topology.device)
    messages: list[str] = []
    set_precision(model, config.speed.precision, topology.device, messages.append)
    optimizer = build_optimizer(model, config.optimizer)
    captured = capture_batch(model, batch, topology=topology, say=messages.append)
    update = 0

    def work() -> dict:
        nonlocal update
        update += 1
        result = train_step(
            model,
            optimizer,
            [batch],
            update=update,
            config=config.optimizer,
            topology=topology,
            captured=captured,
            all_masks=False,
        )
        return {"losses": dict(zip(LOSS_NAMES, result.losses.tolist(), strict=True))}

    rois = _count_rois(model, batch)
    with FlopCounterMode(display=False) as counter:
        first = work()
    return work, {
        **rois,
        "first_losses": first["losses"],
        "messages": messages,
        "warm_up_calls": WARM_UP_CALLS[topology.device.type],
        **_facts(inputs, config, batch.images, counter),
    }


@with_own_techniques
def infer(inputs: dict) -> tuple[Callable[[], dict], dict]:
    """Return one batch of detections with their masks; the classifier is made as sure as a trained one."""
    model, config, topology = _open(inputs)
    model.eval()
    messages: list[str] = []
    set_precision(model, config.speed.precision, topology.device, messages.append)
    images = to_device(read_batch(inputs["batch"]).images, topology.device)
    proposals, features = _test_proposals(model, images)
    with torch.no_grad():
        logits, _ = model.box_outputs(features, proposals.boxes)
    sharpen(model.roi_heads["box"].predictor.cls_score, logits.flatten(0, 1), len(images.pixels))

    def work() -> dict:
        return {"detections": detect(model, images).valid.sum(dim=1).tolist()}

    with FlopCounterMode(display=False) as counter:
        found = work()
    facts = {**found, "messages": messages, "warm_up_calls": WARM_UP_CALLS[topology.device.type]}
    return work, facts | _facts(inputs, config, images, counter)


def read_batch(path: str) -> Batch:
    """Return the batch that `synthetic.write_batch` wrote."""
    with np.load(path) as arrays:
        boxes = torch.from_numpy(arrays["boxes"])
        offsets = torch.from_numpy(arrays["point_offsets"]).to(torch.int64)
        count, objects = boxes.shape[:2]
        pixels = torch.from_numpy(arrays["pixels"])
        polygons = Polygons(
            points=torch.from_numpy(arrays["points"]),
            point_offsets=offsets,
            ring_offsets=torch.arange(count * objects + 1),
            max_points=int(offsets.diff().max()),
            max_rings=1,
        )
        targets = Targets(
            boxes=boxes,
            labels=torch.from_numpy(arrays["labels"]).to(torch.int64),
            valid=torch.ones(count, objects, dtype=torch.bool),
            polygons=polygons,
        )
    return Batch(
        images=Images(pixels=pixels, sizes_hw=torch.tensor([list(pixels.shape[2:])] * count)),
        targets=targets,
        image_ids=torch.arange(count),
        sample_seeds=torch.arange(count) + SEED,
    )


def _open(inputs: dict) -> tuple[MaskRcnn, RunConfig, Topology]:
    config = from_json_text(inputs["config"])
    torch.set_num_threads(inputs["threads"])
    topology = init_topology(config.system.device)
    torch.backends.cudnn.benchmark = topology.device.type == "cuda"  # all repeats have the shapes of the first call
    # The weights hardly move, so that all repeats do the same work on the same proposals.
    config = replace(config, optimizer=replace(config.optimizer, learning_rate=inputs["learning_rate"]))
    keep_memory(topology.device)
    model, _ = build_model(config.model, SEED)
    return model.to(topology.device), config, topology


@torch.no_grad()
def _count_rois(model: MaskRcnn, batch: Batch) -> dict:
    """Return how many RoIs the heads see in the first step, and how many of them are positive, by image."""
    features = model.features(batch.images.pixels)
    anchors, level_counts = feature_anchors(model, features)
    rpn = model.rpn_output(features)
    sizes_hw = batch.images.sizes_hw
    proposals = select_proposals(rpn, anchors, level_counts, sizes_hw, config=model.config, training=True)
    candidates = append_truth(proposals, batch.targets)
    rois = sample_rois(
        candidates,
        batch.targets,
        batch.sample_seeds,
        positive_iou=model.config.roi_positive_iou,
        num_samples=model.config.roi_samples_per_image,
        positive_fraction=model.config.roi_positive_fraction,
    )
    return {"rois": rois.valid.sum(dim=1).tolist(), "positive_rois": (rois.labels > 0).sum(dim=1).tolist()}


@torch.no_grad()
def _test_proposals(model: MaskRcnn, images: Images) -> tuple[Proposals, list]:
    features = model.features(images.pixels)
    anchors, level_counts = feature_anchors(model, features)
    rpn = model.rpn_output(features)
    found = select_proposals(rpn, anchors, level_counts, images.sizes_hw, config=model.config, training=False)
    return found, features


def _facts(inputs: dict, config: RunConfig, images: Images, counter: FlopCounterMode) -> dict:
    return {
        "items": len(images.pixels),
        "item": "images",
        "flop": counter.get_total_flops(),
        "speed": asdict(config.speed),
        "summary": inputs.get("summary", ""),
    }
