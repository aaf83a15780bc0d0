"""Which values each key of the configuration may have on its own; maskperf.overrides.validate checks them."""

from collections.abc import Callable
from typing import Any

from maskperf.techniques import TECHNIQUE_NAMES

MAX_SEED = 2**62  # as maskperf.seeds.entropy_seed
CHOICES = {
    "model.batch_norm": ("frozen", "trainable"),
    "model.proposal_quota": ("pooled", "per_image"),
    "optimizer.warmup_method": ("linear", "mlperf_linear", "constant"),
    "evaluation.engine": ("fast", "official"),
    "speed.path": ("fast", "plain"),
    "speed.without": TECHNIQUE_NAMES,
    "speed.precision": ("auto", "float32", "bfloat16"),
    "system.device": ("auto", "cpu", "cuda"),
    "system.on_collapse": ("stop", "warn"),
    "mlperf.division": ("open", "closed"),
    "mlperf.status": ("onprem", "cloud", "preview", "research"),
}
# Where a file or folder is; a tilde at the start of such a value is the user's home.
PATHS = (
    *("run_dir", "data.root", "data.train_json", "data.train_images", "data.val_json", "data.val_images"),
    *("model.backbone_weights", "model.initial_weights"),
)
# What is allowed in words, the same as a test of one number (of a tuple: each of its numbers), and for which keys.
RANGES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "1 or more",
        lambda number: number >= 1,
        "data.short_side data.long_side data.loader_threads data.prefetch_batches model.stage_blocks "
        "model.stem_channels model.stage_channels model.fpn_channels model.anchor_sizes model.rpn_samples_per_image "
        "model.candidates_per_level_train model.candidates_per_level_test model.proposals_train model.proposals_test "
        "model.roi_samples_per_image model.box_head_channels model.mask_head_channels model.mask_head_convs "
        "model.detections_per_image optimizer.batch_size optimizer.accumulation_steps optimizer.decay_steps "
        "optimizer.max_steps evaluation.every_epochs "
        "data.max_image_pixels system.log_every_steps",
    ),
    (
        "0 or more",
        lambda number: number >= 0,
        "data.generate_images data.generate_seed model.mask_slots_per_image "
        "optimizer.bias_learning_rate_factor optimizer.weight_decay optimizer.bias_weight_decay "
        "optimizer.warmup_steps optimizer.max_epochs evaluation.batch_size system.threads",
    ),
    ("11 or more", lambda number: number >= 11, "evaluation.max_detections"),
    ("above 0", lambda number: number > 0, "model.anchor_ratios optimizer.learning_rate"),
    (
        "from 0 to 1",
        lambda number: 0 <= number <= 1,
        "data.flip_probability model.score_threshold model.rpn_negative_iou optimizer.warmup_factor "
        "evaluation.box_target evaluation.mask_target",
    ),
    ("from 0 up to, but not, 1", lambda number: 0 <= number < 1, "optimizer.momentum"),
    (
        "above 0, at most 1",
        lambda number: 0 < number <= 1,
        "model.rpn_positive_iou model.rpn_positive_fraction model.rpn_nms_iou model.roi_positive_iou "
        "model.roi_positive_fraction model.detection_nms_iou optimizer.decay_factor",
    ),
    ("from 0 to 255", lambda number: 0 <= number <= 255, "data.pixel_means_bgr"),
    ("a multiple of 32, 32 or more", lambda number: number >= 32 and number % 32 == 0, "data.size_divisor"),
    ("from 0 (train all) to 5 (train no stage)", lambda number: 0 <= number <= 5, "model.frozen_stages"),
    ("0 (as many as the data has) or 2 and more", lambda number: number == 0 or number >= 2, "model.num_classes"),
    ("-1 (from entropy) or 0 to 2**62", lambda number: -1 <= number <= MAX_SEED, "seed"),
)
