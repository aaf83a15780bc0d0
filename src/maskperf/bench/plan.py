"""What is measured: the sizes, and the benchmarks with their cases, peers and inputs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskperf.bench.synthetic import write_batch, write_candidates, write_mask_rois, write_pyramid
from maskperf.bench.synthetic_coco import large_json, result_files, write_detections, write_images
from maskperf.config import NUM_TRAIN_FILES, ModelConfig, RunConfig
from maskperf.errors import ConfigError
from maskperf.machine.threads import threads_of_process
from maskperf.overrides import to_json_text

SEED = 0
LEARNING_RATE = 1e-6  # the same for both sides, and so small that all repeats work on the same proposals
BACKBONE_FIELDS = (
    *("stage_blocks", "stem_channels", "stage_channels", "batch_norm", "frozen_stages", "fpn_channels"),
    *("anchor_sizes", "anchor_ratios", "box_head_channels", "mask_head_channels", "mask_head_convs"),
)
IMAGES = {"loader": 16, "index": NUM_TRAIN_FILES, "scored": 5000, "detected": 200}  # where --images says nothing
IMAGES_OF_BATCH = 2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The options of the command."""

    size_hw: tuple[int, int] = (800, 1344)
    images: int = 0  # 0: each benchmark has its own number
    objects: int = 64  # of an image, each of them at least one positive RoI
    repeats: int = 5
    threads: int = 1
    clock: str = "wall"
    config: RunConfig
    peer_python: str = ""  # empty: nothing is compared
    cache: Path  # of large files, for later benchmarks
    device: str = "cpu"

    def images_of(self, task: str) -> int:
        return self.images or IMAGES.get(task, IMAGES_OF_BATCH)


@dataclass(frozen=True, kw_only=True)
class KernelSizes:
    """Sizes of the kernels' inputs; by default those of two images of the benchmark."""

    images: int = 2
    size_hw: tuple[int, int] = (800, 1344)
    channels: int = 256
    box_rois: int = 512  # of an image, pooled to 7 x 7
    mask_rois: int = 128  # of an image, pooled to 14 x 14
    candidates: int = 2000  # of a group, before NMS; five groups an image
    objects: int = 20  # of an image
    sampled_anchors: int = 256  # of an image


@dataclass(frozen=True, kw_only=True)
class GpuPlan:
    """Sizes and limits of `bench gpu` on one GPU. The defaults fit in 10 minutes."""

    device: str = "cuda"
    model: ModelConfig = field(default_factory=ModelConfig)  # random weights
    kernels: KernelSizes = field(default_factory=KernelSizes)
    canvases_hw: tuple[tuple[int, int], ...] = (  # padded sizes
        *((800, 1344), (800, 1216), (800, 1088)),
        *((1344, 800), (1216, 800), (1088, 800)),
    )
    batch_sizes: tuple[int, ...] = (2, 8, 16)  # measured at the first padded size
    usual_batch: int = 8  # for everything else
    objects: int = 45  # of an image, as crowded batches of COCO have
    repeats: int = 10
    steps_at_a_time: int = 3  # of one measurement, as a run does not wait for the device between them either
    warm_up_calls: int = 5  # captured steps are recorded after some plain ones
    threads: int = field(default_factory=lambda: threads_of_process(0).count)
    peer_python: str = ""  # a Python with torchvision; empty: nothing is compared
    seconds: float = 570.0  # for all sections together


@dataclass(frozen=True)
class Peer:
    """Another implementation, and the script of bench/peers that runs it."""

    name: str
    script: str
    is_optional: bool = False  # left out, with a message, where its Python lacks it


TORCHVISION = Peer("torchvision", "torchvision_peer.py")
TORCHVISION_DATA = Peer("torchvision", "torchvision_data_peer.py")
PYCOCOTOOLS = Peer("pycocotools", "coco_peer.py")
FASTER_COCO = Peer("faster-coco-eval", "coco_peer.py", is_optional=True)


@dataclass(frozen=True)
class Case:
    """One piece of work to measure: its task on both sides, and the function that makes its inputs."""

    benchmark: str
    name: str
    task: str
    make_inputs: Callable[[Plan, Path], dict]
    peers: tuple[Peer, ...] = ()


def inputs_of_case(plan: Plan, case: Case, config: RunConfig) -> dict:
    """Return the inputs that every case has, beside its own."""
    numbers = peer_numbers(config.model, plan.images_of(case.task)) if case.task in ("step", "infer") else {}
    sizes = {"size_hw": plan.size_hw, "learning_rate": LEARNING_RATE, "numbers": numbers}
    return inputs_of_side(plan, config) | sizes | {"case": case.name, "torch_device": plan.device}


def inputs_of_side(plan: Plan, config: RunConfig) -> dict:
    return {"threads": plan.threads, "device": plan.config.system.device, "config": to_json_text(config)}


def peer_numbers(model: ModelConfig, images: int) -> dict:
    """Return the arguments of torchvision's MaskRCNN that correspond to the configuration."""
    pooled = images if model.proposal_quota == "pooled" else 1  # torchvision's quota is that of one image
    return {
        "num_classes": model.num_classes,
        "rpn_pre_nms_top_n_train": model.candidates_per_level[0],
        "rpn_pre_nms_top_n_test": model.candidates_per_level[1],
        "rpn_post_nms_top_n_train": model.proposals_train // pooled,
        "rpn_post_nms_top_n_test": model.proposals_test,
        "rpn_nms_thresh": model.rpn_nms_iou,
        "rpn_fg_iou_thresh": model.rpn_iou_thresholds[1],
        "rpn_bg_iou_thresh": model.rpn_iou_thresholds[0],
        "rpn_batch_size_per_image": model.rpn_samples_per_image,
        "rpn_positive_fraction": model.rpn_positive_fraction,
        "box_score_thresh": model.score_threshold,
        "box_nms_thresh": model.detection_nms_iou,
        "box_detections_per_img": model.detections_per_image,
        "box_fg_iou_thresh": model.roi_positive_iou,
        "box_bg_iou_thresh": model.roi_positive_iou,
        "box_batch_size_per_image": model.roi_samples_per_image,
        "box_positive_fraction": model.roi_positive_fraction,
    }


def refuse_other_network(model: ModelConfig) -> None:
    """Raise ConfigError where the network is not the ResNet-50 that torchvision builds."""
    default = ModelConfig()
    changed = [f"model.{name}" for name in BACKBONE_FIELDS if getattr(model, name) != getattr(default, name)]
    if changed:
        text = f"{', '.join(changed)}: changed, but the peer's network is Mask R-CNN with ResNet-50 and FPN."
        raise ConfigError(f"{text} Fix: leave out --peer, or these values.")


def _written(folder: Path, name: str, write: Callable[..., None], **options: Any) -> dict:
    """Return the name and path of the file that `write` makes; cases share it."""
    path = folder / f"{name}.npz"
    if not path.exists():
        write(path, seed=SEED, **options)
    return {name: str(path)}


def _batch(plan: Plan, folder: Path) -> dict:
    options = {"images": plan.images_of("step"), "objects": plan.objects, "classes": plan.config.model.num_classes}
    return _written(folder, "batch", write_batch, size_hw=plan.size_hw, **options)


def _pyramid(plan: Plan, folder: Path) -> dict:
    return _written(folder, "pyramid", write_pyramid, size_hw=plan.size_hw, images=plan.images_of("roi_align"))


def _candidates(plan: Plan, folder: Path) -> dict:
    return _written(folder, "candidates", write_candidates, size_hw=plan.size_hw, images=plan.images_of("nms"))


def _mask_rois(plan: Plan, folder: Path) -> dict:
    inputs = _batch(plan, folder)
    return inputs | _written(folder, "mask_rois", write_mask_rois, batch=Path(inputs["batch"]), size_hw=plan.size_hw)


def _images(plan: Plan, folder: Path) -> dict:
    whole = 2 * IMAGES_OF_BATCH  # both orientations fill their batches, so that no side leaves an image out
    path = write_images(folder, images=-(-plan.images_of("loader") // whole) * whole, seed=SEED)
    data = plan.config.data
    sides = {"short_side": data.short_side, "long_side": data.long_side}
    return {"pictures_json": str(path), "images_per_batch": IMAGES_OF_BATCH, **sides}


def _large_json(plan: Plan, task: str, seed: int) -> Path:
    return large_json(plan.cache, images=plan.images_of(task), seed=seed)


def _train_json(plan: Plan, folder: Path) -> dict:
    return {"large_json": str(_large_json(plan, "index", SEED))}


def _results(plan: Plan, folder: Path) -> dict:
    truth = _large_json(plan, "scored", SEED + 1)
    return {"large_json": str(truth), **result_files(plan.cache, truth, seed=SEED)}


def _detections(plan: Plan, folder: Path) -> dict:
    truth = _large_json(plan, "detected", SEED + 2)
    return {"large_json": str(truth), **_written(folder, "detections", write_detections, truth_json=truth)}


CASES = (
    Case("step", "training step", "step", _batch, (TORCHVISION,)),
    Case("infer", "detections", "infer", _batch, (TORCHVISION,)),
    *(
        Case("roi_align", f"{pool} {passes}", "roi_align", _pyramid, (TORCHVISION,))
        for pool in ("7x7", "14x14")
        for passes in ("forward", "forward+backward")
    ),
    Case("nms", "levels", "nms", _candidates, (TORCHVISION,)),
    Case("nms", "classes", "nms", _candidates, (TORCHVISION,)),
    Case("mask_targets", "28x28", "mask_targets", _mask_rois, (TORCHVISION,)),
    Case("mask_targets", "28x28 of run lengths", "mask_targets", _mask_rois),
    Case("loader", "one thread", "loader", _images, (TORCHVISION_DATA,)),
    Case("loader", "decoded alone", "loader", _images),
    Case("index", "first read", "index", _train_json, (PYCOCOTOOLS,)),
    Case("index", "later read", "index", _train_json, (PYCOCOTOOLS,)),
    Case("evaluation", "boxes and masks scored", "scored", _results, (PYCOCOTOOLS, FASTER_COCO)),
    Case("evaluation", "from detections to scores", "detected", _detections, (TORCHVISION_DATA,)),
)
