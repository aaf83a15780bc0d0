"""A run is a named function: each returns one complete configuration."""

from collections.abc import Callable
from dataclasses import replace

from maskperf.config import (
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
)


def demo() -> RunConfig:
    """A small Mask R-CNN from scratch on synthetic pictures: minutes on two cores."""
    data = DataConfig(
        root="data/demo",
        generate=True,
        generate_images=(1000, 200),
        short_side=128,
        long_side=192,
        group_by_aspect=True,
    )
    model = ModelConfig(
        num_classes=9,
        stage_blocks=(1, 1, 2, 1),
        stem_channels=24,
        stage_channels=(64, 96, 160, 256),
        batch_norm="trainable",
        frozen_stages=0,
        fpn_channels=48,
        anchor_sizes=(16, 32, 64, 96, 128),
        candidates_per_level_train=150,
        candidates_per_level_test=100,
        proposals_train=100,
        proposal_quota="per_image",
        proposals_test=60,
        rpn_samples_per_image=128,
        roi_samples_per_image=48,
        box_head_channels=256,
        mask_head_channels=48,
        mask_head_convs=2,
    )
    optimizer = OptimizerConfig(
        batch_size=8,
        learning_rate=0.04,
        warmup_steps=100,
        warmup_factor=0.1,
        decay_steps=(610, 732),  # after epochs 5 and 6
        max_steps=4000,
        max_epochs=10,
    )
    evaluation = EvaluationConfig(box_target=0.55, mask_target=0.55, batch_size=8)
    return RunConfig(recipe="demo", data=data, model=model, optimizer=optimizer, evaluation=evaluation)


def coco() -> RunConfig:
    """The reference's default: COCO 2017, two images on one device, 0.0025, steps at 480,000 and 640,000."""
    return RunConfig(
        recipe="coco",
        data=DataConfig(check_counts=True),
        model=ModelConfig(backbone_weights="data/R-50.pkl"),
    )


def _convergence_point(
    batch_size: int,
    *,
    learning_rate: float,
    decay_steps: tuple[int, int],
    warmup_steps: int,
    warmup_factor: float,
    proposals: int = 6000,
) -> RunConfig:
    """Return a published reference convergence point (mlperf_logging, training_3.1.0/rcps_maskrcnn.json)."""
    base = coco()
    optimizer = replace(
        base.optimizer,
        batch_size=batch_size,
        learning_rate=learning_rate,
        decay_steps=decay_steps,
        warmup_method="mlperf_linear",
        warmup_steps=warmup_steps,
        warmup_factor=warmup_factor,
        max_steps=2 * decay_steps[1],
    )
    model = replace(base.model, proposals_train=proposals)
    return replace(base, recipe=f"coco_batch_{batch_size}", optimizer=optimizer, model=model)


def coco_batch_8() -> RunConfig:
    return _convergence_point(
        8,
        learning_rate=0.01,
        decay_steps=(144000, 192000),
        warmup_steps=500,
        warmup_factor=2e-5,
        proposals=1000,
    )


def coco_batch_48() -> RunConfig:
    """Warm-up over 625 = 0.06 / 9.6e-5 steps: the 800 of the published table would make the first rates negative."""
    return _convergence_point(
        48, learning_rate=0.06, decay_steps=(24000, 32000), warmup_steps=625, warmup_factor=9.6e-5
    )


def coco_batch_64() -> RunConfig:
    return _convergence_point(64, learning_rate=0.08, decay_steps=(18000, 24000), warmup_steps=800, warmup_factor=1e-4)


def coco_batch_96() -> RunConfig:
    return _convergence_point(
        96, learning_rate=0.12, decay_steps=(12000, 16000), warmup_steps=625, warmup_factor=1.92e-4
    )


def coco_batch_128() -> RunConfig:
    return _convergence_point(
        128, learning_rate=0.16, decay_steps=(9000, 12000), warmup_steps=625, warmup_factor=2.56e-4
    )


def coco_batch_256() -> RunConfig:
    return _convergence_point(
        256, learning_rate=0.24, decay_steps=(5625, 7500), warmup_steps=1800, warmup_factor=1.33e-4
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {
    function.__name__: function
    for function in (
        demo,
        coco,
        coco_batch_8,
        coco_batch_48,
        coco_batch_64,
        coco_batch_96,
        coco_batch_128,
        coco_batch_256,
    )
}
