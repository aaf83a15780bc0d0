"""Everything a run may choose: frozen dataclasses, one field per choice, defaults as in the benchmark."""

from dataclasses import dataclass, field, fields

# The benchmark's targets, and how many images of COCO 2017 it uses: of the 118,287 of train2017 those with objects.
BOX_TARGET, MASK_TARGET = 0.377, 0.339
NUM_TRAIN_IMAGES, NUM_VAL_IMAGES = 117_266, 5_000


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images and annotations are, and how an image becomes a tensor."""

    root: str = "data/coco"  # COCO folder: annotations/instances_*.json, train2017/, val2017/
    train_json: str = ""  # these four replace the folder layout for other data sets
    train_images: str = ""
    val_json: str = ""
    val_images: str = ""
    generate: bool = False  # write the synthetic data set of the recipe `demo` into `root` first
    generate_train_images: int = 0
    generate_val_images: int = 0
    generate_seed: int = 0
    check_counts: bool = False  # demand the image and polygon counts of COCO 2017
    skip_bad: bool = False  # go on without the images and annotations that have errors
    negatives: bool = False  # train on images without objects too
    crowd_as_objects: bool = False  # read iscrowd=1 as 0: exports of brush masks set it on every object
    categories_by_name: bool = False  # match the validation file's categories to the training file's by name
    max_image_pixels: int = 178_956_970  # larger images are refused before they are decoded; Pillow's own limit
    short_side: int = 800
    long_side: int = 1333
    size_divisor: int = 32  # padded sides are multiples of this
    pixel_means_bgr: tuple[float, float, float] = (102.9801, 115.9465, 122.7717)
    flip_probability: float = 0.5
    shuffle: bool = True
    group_by_aspect: bool = True
    loader_threads: int = 2
    prefetch_batches: int = 4


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of the network, its proposals, samplers and detections."""

    num_classes: int = 81  # with background; 0 means: as many as the training categories, plus one
    stage_blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    stem_channels: int = 64
    stage_channels: tuple[int, int, int, int] = (256, 512, 1024, 2048)
    batch_norm: str = "frozen"  # or "trainable"
    frozen_stages: int = 2  # stem and first residual stage ("freeze at 2"); 0 trains all
    backbone_weights: str = ""  # R-50.pkl or its converted .safetensors; empty: random weights
    initial_weights: str = ""  # a whole model: .pth of the reference or .safetensors
    fpn_channels: int = 256
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rpn_positive_iou: float = 0.7
    rpn_negative_iou: float = 0.3
    rpn_samples_per_image: int = 256
    rpn_positive_fraction: float = 0.5
    rpn_nms_iou: float = 0.7
    candidates_per_level_train: int = 2000  # kept by score before NMS, and at most after it
    candidates_per_level_test: int = 1000
    proposals_train: int = 2000
    proposal_quota: str = "pooled"  # over the device's batch, or "per_image"
    proposals_test: int = 1000
    roi_positive_iou: float = 0.5
    roi_samples_per_image: int = 512
    roi_positive_fraction: float = 0.25
    mask_slots_per_image: int = 0  # 0: room for every positive RoI the sampler may choose
    box_head_channels: int = 1024
    mask_head_channels: int = 256
    mask_head_convs: int = 4
    score_threshold: float = 0.05
    detection_nms_iou: float = 0.5
    detections_per_image: int = 100


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Stochastic gradient descent and its schedule."""

    batch_size: int = 2  # images per step over all devices and micro-batches
    accumulation_steps: int = 1  # micro-batches per step on each device
    learning_rate: float = 0.0025
    bias_learning_rate_factor: float = 2.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    bias_weight_decay: float = 0.0
    warmup_method: str = "linear"  # or "mlperf_linear", "constant"
    warmup_steps: int = 500
    warmup_factor: float = 1 / 3
    decay_steps: tuple[int, ...] = (480000, 640000)
    decay_factor: float = 0.1
    max_steps: int = 720000
    max_epochs: int = 0  # 0: only max_steps ends a run that misses its targets


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a model is judged, and when the run may stop."""

    box_target: float = BOX_TARGET
    mask_target: float = MASK_TARGET
    engine: str = "fast"  # hotcoco decides and pycocotools confirms; "official": pycocotools alone
    every_epochs: int = 1  # the last epoch is always evaluated
    max_detections: int = 100  # detections of an image that the metric counts
    batch_size: int = 0  # images per forward pass and device; 0: 16 on a GPU, 1 on a CPU


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """Less work for the same numbers, up to float32 rounding; all switches off is the plain path."""

    # On a CPU: Winograd for 3x3, matrix products for 1x1. On a GPU in bfloat16: bias, sum, ReLU inside cuDNN calls.
    fast_convolutions: bool = True
    folded_batch_norm: bool = True  # frozen batch norm inside the weights; frozen stages keep nothing for a backward
    grouped_roi_align: bool = True  # on a CPU: RoIAlign of neighbouring RoIs together, backward without a scatter
    sparse_rpn_backward: bool = True  # only the sampled anchors have a gradient
    class_selected_outputs: bool = True  # mask logits of the one class that is used
    packed_positives: bool = True  # RoI heads on the places in use alone; on a GPU: mask head on as many as usual
    sparse_mask_targets: bool = True  # on a CPU: polygons meet only the columns they cross
    keep_freed_memory: bool = True  # on a CPU with glibc: freed memory stays with the process for the next step
    aspect_buckets: bool = True  # batches of pictures that fill nearly the same canvas
    precision: str = "auto"  # "bfloat16" (weights stay float32) or "float32"; auto: bfloat16 on a GPU
    captured_steps: bool = True  # on a GPU: the step replayed as a CUDA graph
    triton_kernels: bool = True  # on a GPU with Triton: own kernels for the operators
    device_preprocessing: bool = True  # on a GPU: pictures travel as bytes and are resized there


def plain_path() -> SpeedConfig:
    """Return every switch off: the slow way, which each technique is compared with."""
    switches = [entry.name for entry in fields(SpeedConfig) if entry.type is bool]
    return SpeedConfig(**dict.fromkeys(switches, False), precision="float32")


@dataclass(frozen=True, kw_only=True)
class SystemConfig:
    """The machine a run uses."""

    device: str = "auto"  # or "cpu", "cuda"
    threads: int = 0  # 0: one per physical core, as far as a container's CPU quota allows
    log_every_steps: int = 10
    on_collapse: str = "stop"  # or "warn": go on after the loss collapsed while it is finite


@dataclass(frozen=True, kw_only=True)
class MlperfConfig:
    """What the benchmark's log says about the submission."""

    organization: str = "maskperf"
    platform: str = "local"
    division: str = "open"
    status: str = "onprem"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, complete."""

    recipe: str
    run_dir: str = ""  # empty: runs/<recipe>-<date>-<time>
    seed: int = -1  # -1: from the operating system's entropy
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    system: SystemConfig = field(default_factory=SystemConfig)
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
