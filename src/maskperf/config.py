"""Everything a run may choose: frozen dataclasses whose fields hold type, limits, default and help of one key each."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta

FilePath = Annotated[str, Meta(title="path")]  # `~` at its start is a home folder
Count = Annotated[int, Meta(ge=1)]
CountOrZero = Annotated[int, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
NonNegative = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
PositiveFraction = Annotated[float, Meta(gt=0, le=1)]
Color = Annotated[float, Meta(ge=0, le=255)]
Seed = Annotated[int, Meta(ge=-1, le=2**62)]  # as maskperf.seeds.entropy_seed
TechniqueName = Literal[  # the fields of maskperf.techniques.Techniques
    "fast_convolutions",
    "folded_batch_norm",
    "grouped_roi_align",
    "sparse_rpn_backward",
    "class_selected_outputs",
    "packed_positives",
    "sparse_mask_targets",
    "keep_freed_memory",
    "aspect_buckets",
    "captured_steps",
    "triton_kernels",
    "device_preprocessing",
]
ConventionsName = Literal[  # explained in maskperf.model.conventions
    "reference",
    "torchvision",
    "torchvision_coco_v1",
    "torchvision_v2",
    "detectron2",
    "mmdetection",
    "mmdetection_caffe",
]


def option(default: Any, text: str) -> Any:
    """Return a field with its default and the line of `maskperf run --help` about it."""
    return field(default=default, metadata={"help": text})


# The benchmark's targets, how many images of COCO 2017 it uses (of the files of train2017 those with objects), and the
# backbone: Detectron's R-50.pkl.
BOX_TARGET, MASK_TARGET = 0.377, 0.339
BENCHMARK = "maskrcnn"
NUM_TRAIN_IMAGES, NUM_VAL_IMAGES = 117_266, 5_000
NUM_TRAIN_FILES = 118_287
BACKBONE_MD5 = "b19105fdd7baafb40480251377de18f2"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images and annotations are, and how an image becomes a tensor."""

    root: FilePath = option("data/coco", "COCO folder: annotations/, train2017/, val2017/")
    train_json: FilePath = option("", "annotations of own data; these four replace root")
    train_images: FilePath = option("", "folder of images of own data")
    val_json: FilePath = option("", "annotations of own validation data")
    val_images: FilePath = option("", "folder of images of own validation data")
    holdout: tuple[Annotated[float, Meta(ge=0, lt=1)], CountOrZero] = option(
        (0.0, 0), "FRACTION,SEED of training images to validate on; 0: none"
    )
    generate_images: tuple[CountOrZero, ...] = option((0, 0), "synthetic images in root: TRAINING,VALIDATION[,SEED]")
    check_counts: bool = option(False, "demand the image and polygon counts of COCO 2017")
    skip_bad: bool = option(False, "leave out images and annotations that have problems")
    negatives: bool = option(False, "train on images without objects too")
    crowd_as_objects: bool = option(False, "read iscrowd=1 as 0: exports of brush masks set it always")
    categories_by_name: bool = option(False, "match categories of both files by name, not by id")
    max_image_pixels: Count = option(178_956_970, "larger images are refused before they are decoded")
    short_side: Count = option(800, "pixels of an image's shorter side")
    long_side: Count = option(1333, "pixels of an image's longer side, at most")
    resize: Literal["reference", "torchvision", "detectron2", "mmdetection"] = option(
        "reference", "whose rule gives the new size and its pixels"
    )
    size_divisor: Annotated[int, Meta(ge=32, multiple_of=32)] = option(32, "padded sides are multiples of this")
    pixel_means_bgr: tuple[Color, Color, Color] = option((102.9801, 115.9465, 122.7717), "subtracted from B, G and R")
    flip_probability: Fraction = option(0.5, "of a mirrored training image")
    short_sides: tuple[Count, ...] = option((), "multi-scale: one is drawn for each training image")
    color: Fraction = option(0.0, "random brightness, contrast, saturation; 0: off")
    scale_jitter: tuple[Positive, Positive] = option(
        (1.0, 1.0), "large-scale jitter: LOW,HIGH; above 1 crops; 1,1: off"
    )
    copy_paste: Fraction = option(0.0, "of training images that get objects of another image")
    shuffle: bool = option(True, "a new order of the training images in each epoch")
    group_by_aspect: bool = option(True, "batches of images that are all wide or all tall")
    loader_threads: Count = option(2, "threads of each process, two batches ahead each")

    @property
    def is_generated(self) -> bool:
        """Whether root is a synthetic data set, which the run writes where it is not there."""
        return any(self.generate_images[:2])


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of the network, its proposals, samplers and detections."""

    conventions: ConventionsName = option("reference", "what weights mean by boxes, anchors, RoIs: see docs")
    num_classes: CountOrZero = option(81, "with background; 0: the training categories plus one")
    stage_blocks: tuple[Count, Count, Count, Count] = option((3, 4, 6, 3), "bottlenecks of each stage")
    stem_channels: Count = option(64, "channels of the first convolution")
    stage_channels: tuple[Count, Count, Count, Count] = option((256, 512, 1024, 2048), "output of each stage")
    batch_norm: Literal["frozen", "trainable"] = option("frozen", "frozen or trainable")
    frozen_stages: Annotated[int, Meta(ge=0, le=5)] = option(2, "stem and first stages; 0 trains all, 5 none")
    backbone_weights: FilePath = option("", "R-50.pkl or its .safetensors; empty: random weights")
    initial_weights: FilePath = option("", "a whole model: .pth of the reference or .safetensors")
    reset_predictors: bool = option(False, "initial_weights without the layers of its classes")
    fpn_channels: Count = option(256, "channels of every pyramid level")
    anchor_sizes: tuple[Count, ...] = option((32, 64, 128, 256, 512), "pixels, for the levels P2 to P6")
    anchor_ratios: tuple[Positive, ...] = option((0.5, 1.0, 2.0), "height / width")
    rpn_iou_thresholds: tuple[Fraction, PositiveFraction] = option(
        (0.3, 0.7), "IoU below which an anchor is negative, from which positive"
    )
    rpn_samples_per_image: Count = option(256, "anchors in the loss")
    rpn_positive_fraction: PositiveFraction = option(0.5, "of the sampled anchors, at most")
    rpn_nms_iou: PositiveFraction = option(0.7, "IoU above which a proposal is suppressed")
    candidates_per_level: tuple[Count, Count] = option((2000, 1000), "before and after NMS: in training, in evaluation")
    proposals_train: Count = option(2000, "over all levels")
    proposal_quota: Literal["pooled", "per_image"] = option("pooled", "pooled over the device's batch, or per_image")
    proposals_test: Count = option(1000, "over all levels in evaluation")
    roi_positive_iou: PositiveFraction = option(0.5, "IoU from which a proposal is positive")
    roi_samples_per_image: Count = option(512, "proposals in the loss")
    roi_positive_fraction: PositiveFraction = option(0.25, "of the sampled proposals, at most")
    mask_slots_per_image: CountOrZero = option(0, "0: room for every positive RoI the sampler may choose")
    box_head_channels: Count = option(1024, "width of the box head")
    mask_head_channels: Count = option(256, "channels of the mask head")
    mask_head_convs: Count = option(4, "3 x 3 convolutions of the mask head")
    loss_weights: tuple[NonNegative, NonNegative, NonNegative, NonNegative, NonNegative] = option(
        (1.0, 1.0, 1.0, 1.0, 1.0), "objectness, RPN box, classification, box, mask"
    )
    score_threshold: Fraction = option(0.05, "detections below it are dropped")
    detection_nms_iou: PositiveFraction = option(0.5, "IoU above which a detection of the class is suppressed")
    detections_per_image: Count = option(100, "best detections of an image; the metric counts 100 or more")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The update of the weights and its schedule."""

    batch_size: Count = option(2, "images per step over all devices and micro-batches")
    accumulation_steps: Count = option(1, "micro-batches per step on each device")
    learning_rate: Positive = option(0.0025, "after the warm-up")
    method: Literal["sgd", "adamw"] = option("sgd", "sgd with momentum, or adamw")
    momentum: Annotated[float, Meta(ge=0, lt=1)] = option(0.9, "of the gradients; adamw: of their mean")
    weight_decay: NonNegative = option(1e-4, "of weights")
    biases: tuple[NonNegative, NonNegative] = option((2.0, 0.0), "of biases: factor of the learning rate, weight decay")
    clip_norm: NonNegative = option(0.0, "largest norm of all gradients; 0: no limit")
    average_decay: Annotated[float, Meta(ge=0, lt=1)] = option(0.0, "evaluate moving averages of weights; 0: none")
    schedule: Literal["steps", "cosine"] = option("steps", "by decay_steps, or cosine: to 0 at the last step")
    warmup_method: Literal["linear", "mlperf_linear", "constant"] = option("linear", "mlperf_linear or constant")
    warmup_steps: CountOrZero = option(500, "steps until the full learning rate")
    warmup_factor: Fraction = option(1 / 3, "of the first step; mlperf_linear: rise per step")
    decay_steps: tuple[Count, ...] = option((480000, 640000), "where the learning rate falls")
    decay_factor: PositiveFraction = option(0.1, "learning rate after such a step, times this")
    max_steps: Count = option(720000, "a run that misses its targets ends here")
    max_epochs: CountOrZero = option(0, "or here; 0: no limit")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a model is evaluated, and when the run may stop."""

    box_target: Fraction = option(BOX_TARGET, "box AP to reach; 0: no target")
    mask_target: Fraction = option(MASK_TARGET, "mask AP to reach; 0: no target")
    engine: Literal["fast", "official"] = option("fast", "fast: hotcoco, confirmed by pycocotools at the end")
    every_epochs: Count = option(1, "the last epoch is always evaluated")
    batch_size: CountOrZero = option(0, "images per forward pass; 0: 16 on a GPU, 1 on a CPU")
    patience: CountOrZero = option(0, "evaluations without a better one to stop after")


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """Less work for the same numbers, up to float32 rounding; maskperf.techniques explains each technique."""

    without: tuple[Literal[TechniqueName, "all"], ...] = option((), "techniques to leave out, or all")
    precision: Literal["auto", "float32", "bfloat16"] = option("auto", "of layers; auto: bfloat16 on a GPU")


@dataclass(frozen=True, kw_only=True)
class SystemConfig:
    """The machine a run uses."""

    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto, cpu or cuda")
    threads: CountOrZero = option(0, "0: one per free physical core that the CPU quota allows")
    log_every_steps: Count = option(10, "steps between two plain lines of progress")
    on_collapse: Literal["stop", "warn"] = option("stop", "or warn: go on after the loss collapsed but is finite")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Where the records of metrics.jsonl go as well, for packages that are installed."""

    tensorboard: bool = option(False, "event files for TensorBoard in the run folder")
    trackers: tuple[Literal["wandb", "mlflow", "trackio"], ...] = option((), "wandb, mlflow or trackio")

    @property
    def packages(self) -> list[str]:
        """The names of these packages, each once."""
        return [*(["tensorboard"] if self.tensorboard else []), *dict.fromkeys(self.trackers)]


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How much of a run may be lost where it is killed; `resume=` goes on from the last checkpoint."""

    minutes: NonNegative = option(10.0, "between checkpoints; 0: only when stopped")


@dataclass(frozen=True, kw_only=True)
class MlperfConfig:
    """What the benchmark's log says about the submission."""

    organization: str = option("maskperf", "who submits")
    platform: str = option("local", "name of the system")
    division: Literal["open", "closed"] = option("open", "closed: every rule of that division is checked at the start")
    status: Literal["onprem", "cloud", "preview", "research"] = option("onprem", "onprem, cloud, preview or research")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, complete."""

    recipe: str
    run_dir: FilePath = option("", "folder of the run; empty: runs/<recipe>-<date>-<time>")
    seed: Seed = option(-1, "-1: from the operating system's entropy")
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    system: SystemConfig = field(default_factory=SystemConfig)
    log: LogConfig = field(default_factory=LogConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    mlperf: MlperfConfig = field(default_factory=MlperfConfig)


def has_targets(box_target: float | int | None, mask_target: float | int | None) -> bool:
    """Return whether there is anything to reach: a target of 0 is none, one of None is not known."""
    return box_target != 0 or mask_target != 0


def meets_targets(
    box_ap: float | int, mask_ap: float | int, *, box_target: float | int | None, mask_target: float | int | None
) -> bool:
    """Return whether an evaluation meets every target there is, unrounded; without targets none does."""
    pairs = ((box_ap, box_target), (mask_ap, mask_target))
    met = [target is None or ap >= target for ap, target in pairs if target != 0]
    return bool(met) and all(met)
