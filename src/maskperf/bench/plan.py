"""What is to be measured: the benchmarks, their cases, their peers and their inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from maskperf.bench.synthetic import CHANNELS, write_batch, write_candidates, write_mask_rois, write_pyramid
from maskperf.bench.synthetic_coco import TRAIN_IMAGES, large_json, write_pictures
from maskperf.bench.synthetic_results import result_files, write_detections
from maskperf.config import ModelConfig, RunConfig
from maskperf.errors import ConfigError
from maskperf.overrides import to_json_text

SEED = 0
LEARNING_RATE = 1e-6  # the same for both sides, and so small that all repeats work on the same proposals
BACKBONE_FIELDS = (
    *("stage_blocks", "stem_channels", "stage_channels", "batch_norm", "frozen_stages", "fpn_channels"),
    *("anchor_sizes", "anchor_ratios", "box_head_channels", "mask_head_channels", "mask_head_convs"),
)
IMAGES = {"loader": 16, "index": TRAIN_IMAGES, "scored": 5000, "detected": 200}  # where --images says nothing
IMAGES_OF_BATCH = 2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the words of the command say."""

    size_hw: tuple[int, int] = (800, 1344)
    images: int = 0  # 0: each benchmark has a number of its own
    objects: int = 64  # of an image, each of them at least one positive RoI
    repeats: int = 5
    threads: int = 1
    clock: str = "wall"
    config: RunConfig
    peer_python: str = ""  # empty: nothing is compared
    cache: Path  # where large files stay for the next time
    device: str = "cpu"

    def images_of(self, task: str) -> int:
        return self.images or IMAGES.get(task, IMAGES_OF_BATCH)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Another implementation, and the script of bench/peers that runs it."""

    name: str
    script: str
    is_optional: bool = False  # left out, with a notice, where its Python lacks it


TORCHVISION = Peer(name="torchvision", script="torchvision_peer.py")
TORCHVISION_DATA = Peer(name="torchvision", script="torchvision_data_peer.py")
PYCOCOTOOLS = Peer(name="pycocotools", script="coco_peer.py")
FASTER_COCO = Peer(name="faster-coco-eval", script="faster_coco_peer.py", is_optional=True)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing that is measured: the task's name on both sides, and the function that makes its inputs."""

    benchmark: str
    name: str
    task: str
    make_inputs: Callable[[Plan, Path], dict]
    peers: tuple[Peer, ...]


def inputs_of_case(plan: Plan, case: Case, config: RunConfig) -> dict:
    """Return what every side of a case is told, beside the inputs of that case alone."""
    return {
        **inputs_of_side(plan, config),
        "case": case.name,
        "torch_device": plan.device,
        "size_hw": plan.size_hw,
        "learning_rate": LEARNING_RATE,
        "numbers": peer_numbers(config.model, plan.images_of(case.task)) if case.task in ("step", "infer") else {},
    }


def inputs_of_side(plan: Plan, config: RunConfig) -> dict:
    """Return what every side of ours is told."""
    return {"threads": plan.threads, "device": plan.config.system.device, "config": to_json_text(config)}


def peer_numbers(model: ModelConfig, images: int) -> dict:
    """Return the arguments that give torchvision's MaskRCNN the numbers of our configuration."""
    pooled = images if model.proposal_quota == "pooled" else 1  # torchvision's quota is that of one image
    return {
        "num_classes": model.num_classes,
        "rpn_pre_nms_top_n_train": model.candidates_per_level_train,
        "rpn_pre_nms_top_n_test": model.candidates_per_level_test,
        "rpn_post_nms_top_n_train": model.proposals_train // pooled,
        "rpn_post_nms_top_n_test": model.proposals_test,
        "rpn_nms_thresh": model.rpn_nms_iou,
        "rpn_fg_iou_thresh": model.rpn_positive_iou,
        "rpn_bg_iou_thresh": model.rpn_negative_iou,
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
    """Return nothing.

    Errors: ConfigError where the network is not the ResNet-50 that torchvision builds.
    """
    default = ModelConfig()
    changed = [f"model.{name}" for name in BACKBONE_FIELDS if getattr(model, name) != getattr(default, name)]
    if changed:
        text = f"{', '.join(changed)}: changed, but the peer's network is Mask R-CNN with ResNet-50 and FPN."
        raise ConfigError(f"{text} Fix: leave out --peer, or these values.")


def _batch(plan: Plan, folder: Path) -> dict:
    path = folder / "batch.npz"
    if not path.exists():
        write_batch(
            path,
            size_hw=plan.size_hw,
            images=plan.images_of("step"),
            objects=plan.objects,
            classes=plan.config.model.num_classes,
            seed=SEED,
        )
    return {"batch": str(path)}


def _pyramid(plan: Plan, folder: Path) -> dict:
    path = folder / "pyramid.npz"
    if not path.exists():
        write_pyramid(path, size_hw=plan.size_hw, images=plan.images_of("roi_align"), channels=CHANNELS, seed=SEED)
    return {"pyramid": str(path)}


def _candidates(plan: Plan, folder: Path) -> dict:
    path = folder / "candidates.npz"
    if not path.exists():
        write_candidates(path, size_hw=plan.size_hw, images=plan.images_of("nms"), seed=SEED)
    return {"candidates": str(path)}


def _mask_rois(plan: Plan, folder: Path) -> dict:
    batch = _batch(plan, folder)
    path = folder / "mask_rois.npz"
    if not path.exists():
        write_mask_rois(path, Path(batch["batch"]), size_hw=plan.size_hw, seed=SEED)
    return {**batch, "mask_rois": str(path)}


def _pictures(plan: Plan, folder: Path) -> dict:
    whole = 2 * IMAGES_OF_BATCH  # both orientations fill their batches, so that no side leaves a picture out
    images = -(-plan.images_of("loader") // whole) * whole
    path = write_pictures(folder, images=images, seed=SEED)
    data = plan.config.data
    sides = {"short_side": data.short_side, "long_side": data.long_side}
    return {"pictures_json": str(path), "images_per_batch": IMAGES_OF_BATCH, **sides}


def _train_json(plan: Plan, folder: Path) -> dict:
    return {"large_json": str(large_json(plan.cache, images=plan.images_of("index"), seed=SEED))}


def _results(plan: Plan, folder: Path) -> dict:
    path = large_json(plan.cache, images=plan.images_of("scored"), seed=SEED + 1)
    return {"large_json": str(path), **result_files(plan.cache, path, seed=SEED)}


def _detections(plan: Plan, folder: Path) -> dict:
    truth = large_json(plan.cache, images=plan.images_of("detected"), seed=SEED + 2)
    path = folder / "detections.npz"
    write_detections(path, truth, seed=SEED)
    return {"large_json": str(truth), "detections": str(path)}


def _case(benchmark: str, name: str, make_inputs: Callable, *peers: Peer, task: str = "") -> Case:
    return Case(benchmark=benchmark, name=name, task=task or benchmark, make_inputs=make_inputs, peers=peers)


CASES = (
    _case("step", "training step", _batch, TORCHVISION),
    _case("infer", "detections", _batch, TORCHVISION),
    _case("roi_align", "7x7 forward", _pyramid, TORCHVISION),
    _case("roi_align", "7x7 forward+backward", _pyramid, TORCHVISION),
    _case("roi_align", "14x14 forward", _pyramid, TORCHVISION),
    _case("roi_align", "14x14 forward+backward", _pyramid, TORCHVISION),
    _case("nms", "levels", _candidates, TORCHVISION),
    _case("nms", "classes", _candidates, TORCHVISION),
    _case("mask_targets", "28x28", _mask_rois, TORCHVISION),
    _case("mask_targets", "28x28 of run lengths", _mask_rois),
    _case("loader", "one thread", _pictures, TORCHVISION_DATA),
    _case("loader", "decoded alone", _pictures),
    _case("index", "first read", _train_json, PYCOCOTOOLS),
    _case("index", "later read", _train_json, PYCOCOTOOLS),
    _case("evaluation", "boxes and masks scored", _results, PYCOCOTOOLS, FASTER_COCO, task="scored"),
    _case("evaluation", "from detections to scores", _detections, TORCHVISION_DATA, task="detected"),
)
