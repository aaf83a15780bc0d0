"""maskperf in the benchmarks of the whole network: training steps, detections, and the recipe `demo`."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial, wraps

import torch
from torch import Tensor

from maskperf.bench.peers.torch_work import first_call, read_arrays, sharpen
from maskperf.config import ModelConfig, OptimizerConfig, SpeedConfig
from maskperf.data.coco.index import read_coco
from maskperf.data.coco.paths import locate
from maskperf.data.images.capacity import batch_capacity
from maskperf.engine.build import build_model, keep_memory, prepare_steps
from maskperf.engine.capacity import capacity_of
from maskperf.engine.distributed import Topology, init_topology
from maskperf.engine.graphs import capture_steps
from maskperf.engine.optimizer import build_optimizer
from maskperf.engine.precision import set_precision
from maskperf.engine.step import StepResult, train_step
from maskperf.evaluation.detect import detect
from maskperf.losses.box import sample_rois
from maskperf.model.heads import RoiHead
from maskperf.model.mask_rcnn import MaskRcnn, feature_anchors
from maskperf.model.proposals import append_truth, select_proposals
from maskperf.overrides import from_json_text
from maskperf.run.data import micro_batches
from maskperf.run.session import images_per_rank
from maskperf.structures import LOSS_NAMES, Batch, Images, Polygons, Proposals, Targets, to_device
from maskperf.techniques import chosen_techniques, using

SEED = 1
# After the one whose FLOP are counted: nothing is compiled or captured while PyTorch counts.
WARM_UP_CALLS = {"cpu": 1, "cuda": 5}
MakeWork = Callable[[dict], tuple[Callable[[], dict], dict]]


class Stepper:
    """A model with its optimizer and one batch; `step` is the training step of a run."""

    def __init__(
        self, model: ModelConfig, speed: SpeedConfig, optimizer: OptimizerConfig, batch: Batch, topology: Topology
    ):
        self.messages: list[str] = []
        self.speed = speed
        self.batch = to_device(batch, topology.device)
        self.model = build_model(model, SEED)[0].to(topology.device)
        techniques = chosen_techniques(speed)
        train_once = partial(train_step, self.model, build_optimizer(self.model, optimizer), [self.batch])
        with using(techniques):
            set_precision(self.model, speed.precision, topology.device, self.messages.append)
            capture = partial(capture_steps, self.model, topology=topology, say=self.messages.append)
            self._captured = capture([capacity_of(self.batch)]) if topology.device.type == "cuda" else None
        train_once = partial(train_once, config=optimizer, topology=topology, captured=self._captured, all_masks=False)
        self._train_once, self._update = using(techniques)(train_once), 0

    @property
    def is_captured(self) -> bool:
        return self._captured is not None and self._captured.replayed > 0

    def step(self) -> StepResult:
        self._update += 1
        return self._train_once(update=self._update)


def with_own_techniques(make_work: MakeWork) -> MakeWork:
    """Return the same benchmark, prepared and done with the techniques of its own configuration."""

    @wraps(make_work)
    def prepared(inputs: dict) -> tuple[Callable[[], dict], dict]:
        techniques = chosen_techniques(from_json_text(inputs["config"]).speed)
        with using(techniques):
            work, facts = make_work(inputs)
        return using(techniques)(work), facts

    return prepared


@with_own_techniques
def step(inputs: dict) -> tuple[Callable[[], dict], dict]:
    """Return one training step, and what it works on: RoIs, positive ones, FLOP as counted by PyTorch."""
    config, topology = from_json_text(inputs["config"]), start(inputs)
    # The weights hardly move, so that all repeats do the same work on the same proposals.
    optimizer = replace(config.optimizer, learning_rate=inputs["learning_rate"])
    stepper = Stepper(config.model, config.speed, optimizer, batch_of(read_arrays(inputs["batch"])), topology)

    def work() -> dict:
        return {"losses": dict(zip(LOSS_NAMES, stepper.step().losses.tolist(), strict=True))}

    rois = _count_rois(stepper.model, stepper.batch)
    first, facts = _first_call(work, inputs, len(stepper.batch.image_ids), topology)
    return work, {**rois, "first_losses": first["losses"], "messages": stepper.messages, **facts}


@with_own_techniques
def infer(inputs: dict) -> tuple[Callable[[], dict], dict]:
    """Return one batch of detections with their masks; the classifier is made as confident as a trained one."""
    config, topology = from_json_text(inputs["config"]), start(inputs)
    model = build_model(config.model, SEED)[0].to(topology.device).eval()
    messages: list[str] = []
    set_precision(model, config.speed.precision, topology.device, messages.append)
    images = to_device(batch_of(read_arrays(inputs["batch"])).images, topology.device)
    box_head = model.roi_heads["box"]
    assert isinstance(images, Images) and isinstance(box_head, RoiHead)
    proposals, features = _proposals(model, images, training=False)
    with torch.no_grad():
        logits, _ = model.box_outputs(features, proposals.boxes)
    sharpen(box_head.predictor.cls_score, logits.flatten(0, 1), len(images.pixels))

    def work() -> dict:
        return {"detections": detect(model, images).valid.sum(dim=1).tolist()}

    found, facts = _first_call(work, inputs, len(images.pixels), topology)
    return work, {**found, "messages": messages, **facts}


@with_own_techniques
def demo_chunk(inputs: dict) -> tuple[Callable[[], dict], dict]:
    """Return the next steps of a training that continues from call to call, with images read from their files.

    The threads that make batches start anew in each call: none of them works while the other side is measured.
    The very first loss is equal for all ways to compute it, up to rounding; later ones drift apart, since rounding
    decides which of two near boxes is kept, and training continues from there.
    """
    config, topology = from_json_text(inputs["config"]), init_topology(inputs["device"])
    paths = locate(config.data)
    train = read_coco(paths.train_json, paths.train_images, training=True)
    images = images_per_rank(config, topology)
    keep_memory(topology.device)
    model = build_model(config.model, config.seed)[0].to(topology.device)
    messages: list[str] = []
    set_precision(model, config.speed.precision, topology.device, messages.append)
    optimizer = build_optimizer(model, config.optimizer)
    captured = prepare_steps(model, config, images=images, topology=topology, say=messages.append)
    if captured is not None:
        captured.make_room(batch_capacity(train, images, config.data))
    train_once = partial(train_step, model, optimizer, config=config.optimizer, topology=topology, captured=captured)
    update = 0

    def work() -> dict:
        nonlocal update
        losses = []
        for batches in micro_batches(config, topology, train, update, inputs["steps"]):
            update += 1
            losses.append(train_once(batches, update=update).losses.sum())
        return {"first_loss": float(losses[0]), "last_loss": float(losses[-1])}

    return work, {"items": inputs["steps"] * config.optimizer.batch_size, "item": "images", "messages": messages}


def batch_of(arrays: dict[str, Tensor]) -> Batch:
    """Return the batch of `synthetic.batch_arrays`: images that fill their padded size, with one polygon an object."""
    pixels, labels, offsets = arrays["pixels"], arrays["labels"], arrays["point_offsets"]
    polygons = Polygons(
        points=arrays["points"],
        point_offsets=offsets,
        polygon_offsets=torch.arange(len(offsets)),
        max_points=int(offsets.diff().max()),
        max_polygons=1,
    )
    valid = torch.ones_like(labels, dtype=torch.bool)
    return Batch(
        images=Images(
            pixels=pixels.contiguous(memory_format=torch.channels_last),
            sizes_hw=torch.tensor([list(pixels.shape[2:])] * len(pixels)),
        ),
        targets=Targets(boxes=arrays["boxes"], labels=labels, valid=valid, polygons=polygons),
        image_ids=torch.arange(len(pixels)),
        sample_seeds=torch.arange(len(pixels)) + SEED,
    )


def start(inputs: dict) -> Topology:
    """Prepare this process for the device of the inputs."""
    topology = init_topology(inputs["device"])
    torch.backends.cudnn.benchmark = topology.device.type == "cuda"  # all repeats have the shapes of the first call
    keep_memory(topology.device)
    return topology


@torch.no_grad()
def _proposals(model: MaskRcnn, images: Images, *, training: bool) -> tuple[Proposals, list[Tensor]]:
    """Return proposals, and the features they were found in."""
    features = model.features(images.pixels)
    anchors, level_counts = feature_anchors(model, features)
    rpn = model.rpn_output(features)
    found = select_proposals(rpn, anchors, level_counts, images.sizes_hw, config=model.config, training=training)
    return found, features


@torch.no_grad()
def _count_rois(model: MaskRcnn, batch: Batch) -> dict:
    """Return how many RoIs the heads see in the first step, and how many of them are positive, by image."""
    assert isinstance(batch.images, Images)
    config, targets = model.config, batch.targets
    candidates = append_truth(_proposals(model, batch.images, training=True)[0], targets)
    quota: dict = {"num_samples": config.roi_samples_per_image, "positive_fraction": config.roi_positive_fraction}
    rois = sample_rois(candidates, targets, batch.sample_seeds, positive_iou=config.roi_positive_iou, **quota)
    return {"rois": rois.valid.sum(dim=1).tolist(), "positive_rois": (rois.labels > 0).sum(dim=1).tolist()}


def _first_call(work: Callable[[], dict], inputs: dict, images: int, topology: Topology) -> tuple[dict, dict]:
    """Return what the work found, and facts with its FLOP."""
    found, facts = first_call(work, images)
    facts["speed"] = asdict(from_json_text(inputs["config"]).speed)
    return found, facts | {"warm_up_calls": WARM_UP_CALLS[topology.device.type], "summary": inputs.get("summary", "")}
