"""A run is a named function: each returns one complete configuration."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources

from maskperf.config import DataConfig, EvaluationConfig, ModelConfig, OptimizerConfig, RunConfig


def demo() -> RunConfig:
    """A small Mask R-CNN from scratch on synthetic images: minutes on two cores."""
    data = DataConfig(
        root="data/demo",
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
        candidates_per_level=(150, 100),
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
    """The reference's default: COCO 2017, two images a step, learning rate 0.0025."""
    return RunConfig(
        recipe="coco",
        data=DataConfig(check_counts=True),
        model=ModelConfig(backbone_weights="data/R-50.pkl"),
    )


@dataclass(frozen=True, kw_only=True)
class ReferencePoint:
    """A reference convergence point: how many epochs the reference implementation needed with these settings."""

    learning_rate: float
    decay_steps: tuple[int, int]
    warmup_steps: int
    warmup_factor: float
    proposals: int
    epochs: tuple[int, ...]  # to both targets, for each run


@cache
def reference_points() -> dict[int, ReferencePoint]:
    """Return the reference convergence points of round 3.1 by batch size, ascending.

    Source: mlperf-logging, rcp_checker/training_3.1.0/rcps_maskrcnn.json.
    """
    table = resources.files("mlperf_logging") / "rcp_checker" / "training_3.1.0" / "rcps_maskrcnn.json"
    points = {}
    for record in json.loads(table.read_text(encoding="utf-8")).values():
        settings = record["Hyperparams"]
        points[record["BS"]] = ReferencePoint(
            learning_rate=settings["opt_base_learning_rate"],
            decay_steps=tuple(settings["opt_learning_decay_steps"]),
            warmup_steps=settings["opt_learning_rate_warmup_steps"],
            warmup_factor=settings["opt_learning_rate_warmup_factor"],
            proposals=settings["num_image_candidates"],
            epochs=tuple(record["Epochs to converge"]),
        )
    return dict(sorted(points.items()))


def _coco_batch(batch_size: int) -> Callable[[], RunConfig]:
    """Return the recipe of a reference convergence point."""

    def recipe() -> RunConfig:
        """A published reference convergence point."""
        base, point = coco(), reference_points()[batch_size]
        optimizer = replace(
            base.optimizer,
            batch_size=batch_size,
            learning_rate=point.learning_rate,
            decay_steps=point.decay_steps,
            warmup_method="mlperf_linear",
            # 625 = 0.06 / 9.6e-5: the 800 steps published for batch 48 would make the first rates negative.
            warmup_steps=625 if batch_size == 48 else point.warmup_steps,
            warmup_factor=point.warmup_factor,
            max_steps=2 * point.decay_steps[1],
        )
        model = replace(base.model, proposals_train=point.proposals)
        return replace(base, recipe=f"coco_batch_{batch_size}", optimizer=optimizer, model=model)

    return recipe


OWN_DATA = "train"  # the name of what `maskperf train` makes of a data set
RECIPES: dict[str, Callable[[], RunConfig]] = {
    "demo": demo,
    "coco": coco,
    **{f"coco_batch_{batch_size}": _coco_batch(batch_size) for batch_size in (8, 48, 64, 96, 128, 256)},
}
