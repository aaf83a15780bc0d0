"""Mask R-CNN as a set of small steps; the engine calls them in order, losses are computed elsewhere."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from maskperf.config import ModelConfig
from maskperf.model.fpn import FeaturePyramid
from maskperf.model.heads import (
    BOX_POOL_SIZE,
    MASK_POOL_SIZE,
    BoxFeatures,
    BoxPredictor,
    MaskFeatures,
    MaskPredictor,
    RoiHead,
    RpnHead,
)
from maskperf.model.resnet import ResNet
from maskperf.ops.roi_align import pyramid_roi_align
from maskperf.structures import RpnOutput

STRIDES = (4, 8, 16, 32, 64)
POOLED_LEVELS = 4  # P2 to P5; P6 feeds the RPN only


class MaskRcnn(nn.Module):
    """ResNet-FPN trunk, RPN head, box head, mask head (He et al. 2017). `state_dict` uses the reference's names."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        if config.num_classes < 2:
            raise ValueError(f"num_classes={config.num_classes}: a model needs the background and one class at least")
        channels = config.fpn_channels
        self.config = config
        self.backbone = nn.ModuleDict(
            {
                "body": ResNet(
                    stem_channels=config.stem_channels,
                    stage_blocks=config.stage_blocks,
                    stage_channels=config.stage_channels,
                    batch_norm=config.batch_norm,
                    frozen_stages=config.frozen_stages,
                ),
                "fpn": FeaturePyramid(config.stage_channels, channels),
            }
        )
        self.rpn = nn.ModuleDict({"head": RpnHead(channels, len(config.anchor_ratios))})
        box = RoiHead(
            BoxFeatures(channels, config.box_head_channels),
            BoxPredictor(config.box_head_channels, config.num_classes),
        )
        mask = RoiHead(
            MaskFeatures(channels, config.mask_head_channels, config.mask_head_convs),
            MaskPredictor(config.mask_head_channels, config.num_classes),
        )
        self.roi_heads = nn.ModuleDict({"box": box, "mask": mask})
        self.to(memory_format=torch.channels_last)

    def features(self, pixels: Float[Tensor, "images 3 height width"]) -> list[Tensor]:
        """Returns P2 to P6, channels-last."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return self.backbone["fpn"](self.backbone["body"](pixels))

    def rpn_output(self, features: list[Tensor]) -> RpnOutput:
        """Returns logits and deltas of all anchors, P2 first."""
        levels = [self.rpn["head"](feature) for feature in features]
        return RpnOutput(
            logits=torch.cat([logits for logits, _ in levels], dim=1),
            deltas=torch.cat([deltas for _, deltas in levels], dim=1),
        )

    def box_outputs(self, features: list[Tensor], boxes: Float[Tensor, "images rois 4"]) -> tuple[Tensor, Tensor]:
        """Returns class logits (images, rois, classes) and deltas (images, rois, classes, 4)."""
        pooled = self._pool(features, boxes, BOX_POOL_SIZE)
        logits, deltas = self.roi_heads["box"](pooled)
        shape = boxes.shape[:2]
        return logits.unflatten(0, shape), deltas.unflatten(0, shape)

    def mask_logits(
        self, features: list[Tensor], boxes: Float[Tensor, "images masks 4"]
    ) -> Float[Tensor, "images masks classes 28 28"]:
        """Returns the mask logits of every class."""
        pooled = self._pool(features, boxes, MASK_POOL_SIZE)
        return self.roi_heads["mask"](pooled).unflatten(0, boxes.shape[:2])

    def _pool(self, features: list[Tensor], boxes: Tensor, size: int) -> Float[Tensor, "rois channels size size"]:
        return pyramid_roi_align(features[:POOLED_LEVELS], boxes, size=size, strides=STRIDES[:POOLED_LEVELS])
