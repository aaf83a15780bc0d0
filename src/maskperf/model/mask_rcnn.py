"""Mask R-CNN as a set of small steps; the engine calls them in order, losses are computed elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from maskperf.config import ModelConfig
from maskperf.errors import ConfigError
from maskperf.model import heads
from maskperf.model.compute_weights import ComputeWeights
from maskperf.model.conventions import conventions_of, edges
from maskperf.model.fpn import FeaturePyramid
from maskperf.model.patches import cell_patches
from maskperf.model.resnet import ResNet
from maskperf.ops.anchors import pyramid_anchors
from maskperf.ops.products import Casts
from maskperf.ops.roi_align import pyramid_roi_align
from maskperf.ops.roi_align_rules import roi_align_by_rule
from maskperf.ops.sampling import compact
from maskperf.structures import RpnOutput
from maskperf.techniques import Techniques, active

STRIDES = (4, 8, 16, 32, 64)
LARGEST_ROUNDING = 1e-3  # of the largest output; sums in another order differ by some 1e-6 of it
POOLED_LEVELS = 4  # P2 to P5; P6 feeds the RPN only


def most_positive_rois(config: ModelConfig) -> int:
    """Return how many positive RoIs of an image the sampler may choose."""
    return max(1, int(config.roi_samples_per_image * config.roi_positive_fraction))


class MaskRcnn(nn.Module):
    """ResNet-FPN backbone, RPN head, box head, mask head (He et al. 2017). `state_dict` uses the reference's names."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        if config.num_classes < 2:
            raise ValueError(f"num_classes={config.num_classes}: a model needs the background and one class at least")
        channels = config.fpn_channels
        self.config, self.conventions = config, conventions_of(config)
        self.compute_dtype = torch.float32  # of features and hidden layers; engine/precision.py chooses it
        self._compute_weights: dict[Techniques, ComputeWeights] = {}  # made at the first use, on the model's device
        self._is_computing = False
        self.backbone = nn.ModuleDict({"body": ResNet(config), "fpn": FeaturePyramid(config.stage_channels, channels)})
        rpn_head = heads.RpnHead(channels, len(config.anchor_ratios), self.conventions.rpn_convs)
        self.rpn = nn.ModuleDict({"head": rpn_head})
        box, mask, convs = config.box_head_channels, config.mask_head_channels, self.conventions.box_head_convs
        box_features = heads.ConvolvedBoxFeatures(channels, box, convs) if convs else heads.BoxFeatures(channels, box)
        box_head = heads.RoiHead(box_features, heads.BoxPredictor(box, config.num_classes))
        mask_features = heads.MaskFeatures(channels, mask, config.mask_head_convs)
        mask_head = heads.RoiHead(mask_features, heads.MaskPredictor(mask, config.num_classes))
        self.roi_heads = nn.ModuleDict({"box": box_head, "mask": mask_head})
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in PyTorch's stubs

    def features(self, pixels: Float[Tensor, "images 3 height width"]) -> list[Tensor]:
        """Return P2 to P6, channels-last."""
        if self.conventions.deviations_bgr is not None:
            pixels = pixels / pixels.new_tensor(self.conventions.deviations_bgr)[:, None, None]
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with self.computing():
            return self.backbone["fpn"](self.backbone["body"](self._in_compute_format(pixels)))

    def rpn_output(self, features: list[Tensor]) -> RpnOutput:
        """Return logits and deltas of all anchors, P2 first."""
        with self.computing():
            levels = [self.rpn["head"](feature) for feature in features]
        return RpnOutput(
            logits=torch.cat([logits for logits, _ in levels], dim=1),
            deltas=torch.cat([deltas for _, deltas in levels], dim=1),
        )

    def samples_rpn_cells(self) -> bool:
        """Return whether sampled anchors are computed once more, from the cells that one 3x3 convolution reads."""
        return active().sparse_rpn_backward and self.conventions.rpn_convs == 1

    def rpn_output_at(self, features: list[Tensor], index: Int[Tensor, "images samples"]) -> RpnOutput:
        """Return logits and deltas of these anchors alone, from the 3x3 cells around each.

        Equal to picking them from `rpn_output`, up to the order of sums; backward works on these anchors alone too.
        """
        anchors_per_cell = len(self.config.anchor_ratios)
        patches = cell_patches(features, index // anchors_per_cell)
        head = self.rpn["head"]
        assert isinstance(head, heads.RpnHead)
        with self.computing():
            logits, deltas = head.of_patches(patches.flatten(0, 1), (index % anchors_per_cell).flatten())
        return RpnOutput(logits=logits.view(index.shape), deltas=deltas.view(*index.shape, 4))

    def box_outputs(self, features: list[Tensor], boxes: Float[Tensor, "images rois 4"]) -> tuple[Tensor, Tensor]:
        """Return class logits (images, rois, classes) and deltas (images, rois, classes, 4)."""
        pooled = self._in_compute_format(self._pool(features, boxes, heads.BOX_POOL_SIZE))
        with self.computing():
            logits, deltas = self.roi_heads["box"](pooled)
        shape = boxes.shape[:2]
        return logits.unflatten(0, shape), deltas.unflatten(0, shape)

    def mask_logits(
        self,
        features: list[Tensor],
        boxes: Float[Tensor, "images masks 4"],
        labels: Int[Tensor, "images masks"] | None = None,
        valid: Bool[Tensor, "images masks"] | None = None,
        image_offsets: Int[Tensor, " images_plus_1"] | None = None,
    ) -> Float[Tensor, "images masks *classes 28 28"]:
        """Return the mask logits of every class, or with `labels` of each RoI's own class alone.

        With `valid`, the head works on the valid slots alone, which waits for the device; the others are zeros. One
        slot is always worked on, so that every parameter has a gradient.
        With `image_offsets` the boxes are those of all images in one row, see `pyramid_roi_align`.
        """
        pooled = self._in_compute_format(self._pool(features, boxes, heads.MASK_POOL_SIZE, image_offsets))
        own_labels = None if labels is None else labels.flatten()
        if valid is None or bool(valid.all()):
            return self._mask_head(pooled, own_labels).unflatten(0, boxes.shape[:2])
        slots = compact(valid.view(1, -1), max(1, int(valid.sum())))[0]
        if own_labels is not None:
            own_labels = own_labels.index_select(0, slots)
        logits = self._mask_head(pooled.index_select(0, slots), own_labels)
        zeros = logits.new_zeros(valid.numel(), *logits.shape[1:])
        return zeros.index_copy(0, slots, logits).unflatten(0, boxes.shape[:2])

    def _mask_head(self, pooled: Tensor, labels: Tensor | None) -> Tensor:
        head = self.roi_heads["mask"]
        assert isinstance(head, heads.RoiHead) and isinstance(head.predictor, heads.MaskPredictor)
        with self.computing():
            if labels is None:
                return head(pooled)
            return head.predictor.of_class(head.feature_extractor(pooled), labels)

    def _pool(
        self, features: list[Tensor], boxes: Tensor, size: int, image_offsets: Tensor | None = None
    ) -> Float[Tensor, "rois channels size size"]:
        """Return the pooled maps; weights of cells and sums in float32, whatever the format of the features."""
        if self.conventions.roi_align is not None:
            return roi_align_by_rule(
                features[:POOLED_LEVELS],
                edges(boxes, self.conventions),
                size=size,
                strides=STRIDES[:POOLED_LEVELS],
                rule=self.conventions.roi_align,
                image_offsets=image_offsets,
            )
        return pyramid_roi_align(
            features[:POOLED_LEVELS],
            boxes,
            size=size,
            strides=STRIDES[:POOLED_LEVELS],
            image_offsets=image_offsets,
            most_of_image=most_positive_rois(self.config),
        )

    def _in_compute_format(self, maps: Tensor) -> Tensor:
        return maps if self.compute_dtype == torch.float32 else maps.to(self.compute_dtype)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Inside the `with` block layers have their weights in `compute_dtype`, cast once; blocks may be nested."""
        if self.compute_dtype == torch.float32 or self._is_computing:
            yield
            return
        self._is_computing = True
        try:
            with self._weights().in_place():
                yield
        finally:
            self._is_computing = False

    def weight_casts(self) -> list[Casts]:
        """Return the casts of trainable weights, those together whose gradients are ready together."""
        return [] if self.compute_dtype == torch.float32 else self._weights().trainable

    def _weights(self) -> ComputeWeights:
        techniques = active()
        if techniques not in self._compute_weights:
            self._compute_weights[techniques] = ComputeWeights(self, self.compute_dtype)
        return self._compute_weights[techniques]


@torch.no_grad()
def require_one_definition(model: MaskRcnn) -> None:
    """Compare both ways through the heads on random maps: the whole output, and what training computes of it alone.

    Errors: ConfigError where they differ by more than the order of sums, as after a layer was added to one of them.
    """
    generator = torch.Generator().manual_seed(0)  # its own: nothing else that is drawn changes

    def maps(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator)
        return drawn.contiguous(memory_format=torch.channels_last)

    channels, classes = model.config.fpn_channels, model.config.num_classes
    if model.samples_rpn_cells():
        features = [maps(1, channels, 3, 4)]
        whole = model.rpn_output(features)
        own = model.rpn_output_at(features, torch.arange(whole.logits.shape[1])[None])
        _require_equal("RpnHead.forward and of_patches", "sparse_rpn_backward", whole.logits, own.logits)
        _require_equal("RpnHead.forward and of_patches", "sparse_rpn_backward", whole.deltas, own.deltas)
    if active().class_selected_outputs:
        pooled, labels = maps(2, channels, heads.MASK_POOL_SIZE, heads.MASK_POOL_SIZE), torch.tensor([1, classes - 1])
        of_class = model._mask_head(pooled, None)[torch.arange(2), labels]
        names = "the mask head's forward and MaskPredictor.of_class"
        _require_equal(names, "class_selected_outputs", of_class, model._mask_head(pooled, labels))


def _require_equal(names: str, technique: str, found: Tensor, other: Tensor) -> None:
    difference, scale = float((found - other).abs().max()), float(found.abs().max())
    if not difference <= LARGEST_ROUNDING * scale:
        raise ConfigError(
            f"{names} give different outputs for the same input (by {difference:.3g} of {scale:.3g}), "
            f"so a trained model would not be the one that is evaluated. Fix: change both alike, or leave the second "
            f"one out: speed.without={technique}"
        )


def feature_anchors(model: MaskRcnn, features: list[Tensor]) -> tuple[Tensor, tuple[int, ...]]:
    """Return the anchors of all levels for these feature maps, and how many each level has."""
    sizes = tuple((feature.shape[2], feature.shape[3]) for feature in features)
    anchors = _anchors(model, sizes, features[0].device)
    return anchors, tuple(height * width * len(model.config.anchor_ratios) for height, width in sizes)


def padded_anchors(model: MaskRcnn, padded_hw: tuple[int, int], device: torch.device) -> Tensor:
    """Return the anchors of a padded size, which a forward pass of that size takes as well."""
    sizes = tuple((-(-padded_hw[0] // stride), -(-padded_hw[1] // stride)) for stride in STRIDES)
    return _anchors(model, sizes, device)


def _anchors(model: MaskRcnn, sizes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    config, conventions = model.config, model.conventions
    padded_hw = None if conventions.has_fixed_anchor_strides else (sizes[0][0] * STRIDES[0], sizes[0][1] * STRIDES[0])
    shape = (config.anchor_sizes, config.anchor_ratios)
    return pyramid_anchors(sizes, STRIDES, *shape, device, conventions.anchor_rounding, padded_hw)


def packs_slots(device: torch.device) -> bool:
    """Return whether the RoI heads leave out empty slots: on a CPU, where reading their number costs nothing.

    On a GPU that would stop the step until the device has caught up, so there all slots are worked on.
    """
    return active().packed_positives and device.type == "cpu"
