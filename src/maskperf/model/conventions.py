"""The conventions of each family of weights: what a network means by its numbers, beyond the shapes of its tensors.

Inside, boxes have inclusive corners in every family: a box whose right edge is x2 without a "+1" is held as x2 - 1, so
that areas, overlaps and the box coder are the same formulas. Where the "+1" never counted (RoIAlign, mask crops,
rescaling, pasting), `edges` gives such a box its edges back. The network takes B, G, R everywhere: the first
convolution of a family that takes R, G, B has its input channels reversed.
"""

from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from maskperf.config import ModelConfig
from maskperf.ops.roi_align_rules import RoiAlignRule

IMAGENET_MEANS_BGR = (103.53, 116.28, 123.675)
IMAGENET_DEVIATIONS_BGR = (57.375, 57.12, 58.395)


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """What one family does where families differ; by default what the reference does.

    docs/conventions.md shows all of them side by side.
    """

    strided_kernel: Literal[1, 3] = 1  # of a bottleneck: the first 1x1 convolution has the stride, or the 3x3
    batch_norm_epsilon: float = 0.0
    is_rgb: bool = False  # the channels of the family's own files
    means_bgr: tuple[float, float, float] = (102.9801, 115.9465, 122.7717)
    deviations_bgr: tuple[float, float, float] | None = None  # what pixels minus the means are divided by
    resize: Literal["reference", "torchvision", "detectron2", "mmdetection"] = "reference"  # data.resize
    has_plus_one: bool = True  # a box is x2 - x1 + 1 wide
    anchor_rounding: Literal["sides", "corners", "none"] = "sides"
    # False: the stride of a level is its padded side over the map's, rounded down: 800 // 13 = 61 at P6
    has_fixed_anchor_strides: bool = True
    limits_shrinking: bool = False  # of decoded boxes; growth is limited by all
    least_proposal: float | None = None  # shorter side in pixels; None: nothing is removed, 0.0: what has no area
    least_detection: float | None = None
    roi_align: RoiAlignRule | None = None  # None: the reference's, by its own fast ways
    keeps_ties: bool = True  # detections equal to the last of the best 100
    background: Literal["first", "last"] = "first"  # in the family's own files; inside it is class 0
    paste: Literal["box", "grid"] = "box"  # resized to the box's whole pixels, or sampled at pixel centres
    rpn_convs: int = 1
    box_head_convs: int = 0  # with convolutions there is one fully connected layer, else two


REFERENCE = Conventions()
TORCHVISION = Conventions(
    strided_kernel=3,
    batch_norm_epsilon=1e-5,
    is_rgb=True,
    means_bgr=(0.406 * 255, 0.456 * 255, 0.485 * 255),
    deviations_bgr=(0.225 * 255, 0.224 * 255, 0.229 * 255),
    resize="torchvision",
    has_plus_one=False,
    anchor_rounding="corners",
    has_fixed_anchor_strides=False,
    least_proposal=1e-3,
    least_detection=1e-2,
    roi_align=RoiAlignRule(is_aligned=False, samples=2, level_epsilons=(0.0, 1e-6)),
    keeps_ties=False,
)
DETECTRON2 = Conventions(
    batch_norm_epsilon=1e-5,
    means_bgr=IMAGENET_MEANS_BGR,
    resize="detectron2",
    has_plus_one=False,
    anchor_rounding="none",
    least_proposal=0.0,
    least_detection=0.0,
    roi_align=RoiAlignRule(is_aligned=True, samples=0, level_epsilons=(1e-8, 0.0)),
    keeps_ties=False,
    background="last",
    paste="grid",
)
MMDETECTION = replace(
    DETECTRON2,
    strided_kernel=3,
    is_rgb=True,
    deviations_bgr=IMAGENET_DEVIATIONS_BGR,
    resize="mmdetection",
    limits_shrinking=True,
    least_detection=None,
    roi_align=RoiAlignRule(is_aligned=True, samples=0, level_epsilons=(2.5e-7, 0.0)),
)
CONVENTIONS = {
    "reference": REFERENCE,
    "torchvision": TORCHVISION,
    # The file torchvision publishes is used without an epsilon, unlike models that were trained with torchvision.
    "torchvision_coco_v1": replace(TORCHVISION, batch_norm_epsilon=0.0),
    "torchvision_v2": replace(TORCHVISION, rpn_convs=2, box_head_convs=4),
    "detectron2": DETECTRON2,
    "mmdetection": MMDETECTION,
    # Its configurations of the style "caffe" start from the same backbone as detectron2's.
    "mmdetection_caffe": replace(MMDETECTION, strided_kernel=1, is_rgb=False, deviations_bgr=None),
}


def conventions_of(config: ModelConfig) -> Conventions:
    """Return the conventions that a model has."""
    return CONVENTIONS[config.conventions]


def edges(boxes: Float[Tensor, "*batch 4"], conventions: Conventions) -> Float[Tensor, "*batch 4"]:
    """Return the boxes as they are scaled, pooled, cropped and pasted: without a "+1", x2 is the right edge itself."""
    return boxes if conventions.has_plus_one else boxes + boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
