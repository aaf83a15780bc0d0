"""The numbers of a model's configuration that the losses take."""

from maskperf.config import ModelConfig


def rpn_options(config: ModelConfig) -> dict[str, float | int]:
    return {
        "positive_iou": config.rpn_iou_thresholds[1],
        "negative_iou": config.rpn_iou_thresholds[0],
        "num_samples": config.rpn_samples_per_image,
        "positive_fraction": config.rpn_positive_fraction,
    }


def roi_options(config: ModelConfig) -> dict[str, float | int]:
    return {
        "positive_iou": config.roi_positive_iou,
        "num_samples": config.roi_samples_per_image,
        "positive_fraction": config.roi_positive_fraction,
    }
