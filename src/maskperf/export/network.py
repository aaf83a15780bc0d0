"""The network from bytes to detections in plain operations of fixed sizes, for other runtimes: slow and obvious.

Nothing here is shared with the fast paths but layers, box coder and the tables of RoIAlign. Tests compare the two. The
conventions are those of the weights; RoIAlign with as many samples as a bin has cells has no fixed shape, and is left
to the operator that ONNX has for it.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from maskperf.config import DataConfig
from maskperf.model.conventions import edges
from maskperf.model.heads import BOX_POOL_SIZE, MASK_POOL_SIZE
from maskperf.model.mask_rcnn import POOLED_LEVELS, STRIDES, MaskRcnn, padded_anchors
from maskperf.ops.boxes import BOX_HEAD_WEIGHTS, RPN_BOX_WEIGHTS, are_at_least, clip_boxes, decode_boxes, pairwise_iou
from maskperf.ops.roi_align import SAMPLES, assign_levels, axis_samples
from maskperf.ops.roi_align_rules import RoiAlignRule, levels_by_rule
from maskperf.techniques import plain, using

MOST_CANDIDATES = 2000  # pairs of RoI and class, the best of an image, among which suppression chooses
ONNX_ROI_ALIGN = 16  # the version of the operator that knows aligned boxes
Survivors = Callable[[Tensor, Tensor], Tensor]
BoxWeights = tuple[float, float, float, float]


def needs_onnx(rule: RoiAlignRule | None) -> bool:
    """Return whether RoIAlign by this rule (None: the reference's) can be exported to ONNX alone."""
    return rule is not None and (rule.is_aligned or rule.samples != SAMPLES)


def survivors(suppresses: Tensor, valid: Tensor) -> Tensor:
    """Return 1 for the boxes (groups, boxes) that survive a suppression in their order, 0 for others.

    `suppresses`[i, j] is 1 where box i, if it survives, suppresses the later box j. Each turn settles one box more at
    least, so the loop ends where nothing changes: at the one solution that going through the boxes in order has.
    TorchScript compiles this source.
    """
    alive = valid
    changed = True
    while changed:
        hit = torch.bmm(alive[:, None], suppresses)[:, 0]
        new = valid * (hit == 0).to(valid.dtype)
        changed = bool((new != alive).any())
        alive = new
    return alive


def exported_survivors(suppresses: Tensor, valid: Tensor) -> Tensor:
    """Return the same by an operator that `torch.export` keeps as a loop."""

    def goes_on(alive: Tensor, changes: Tensor) -> Tensor:
        return changes > 0

    def turn(alive: Tensor, changes: Tensor) -> tuple[Tensor, Tensor]:
        hit = torch.bmm(alive[:, None], suppresses)[:, 0]
        new = valid * (hit == 0).to(valid.dtype)
        return new, (new != alive).sum()

    start = (valid.clone(), torch.ones((), dtype=torch.int64))
    return torch.while_loop(goes_on, turn, start)[0]


class PlainNetwork(nn.Module):
    """Images of one padded size to a fixed number of detections each."""

    anchors: Tensor
    means: Tensor
    category_ids: Tensor

    def __init__(
        self, model: MaskRcnn, data: DataConfig, size_hw: tuple[int, int], category_ids: Sequence[int], loop: Survivors
    ):
        super().__init__()
        self.model, self.config, self.size_hw, self.survivors = model, model.config, size_hw, loop
        self.conventions = model.conventions
        self.level_counts = [
            -(-size_hw[0] // stride) * -(-size_hw[1] // stride) * len(self.config.anchor_ratios) for stride in STRIDES
        ]
        self.register_buffer("anchors", padded_anchors(model, size_hw, torch.device("cpu")).clone(), persistent=False)
        self.register_buffer("means", torch.tensor(data.pixel_means_bgr).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("category_ids", torch.tensor([0, *category_ids]), persistent=False)

    def forward(
        self, images: UInt8[Tensor, "n height width 3"], sizes_hw: Int[Tensor, "n 2"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return boxes (n, d, 4), with inclusive corners or edges as the conventions have it, scores (n, d),
        labels (n, d) and masks (n, d, 28, 28)."""
        with using(plain()):
            pixels = self._normalized(images, sizes_hw)
            features = self.model.backbone["fpn"](self.model.backbone["body"](pixels))
            rois, is_roi = self._proposals(features, sizes_hw)
            boxes, scores, classes = self._detections(features, rois, is_roi, sizes_hw)
            pooled = self._pool(features, boxes, MASK_POOL_SIZE)
            logits = self.model.roi_heads["mask"](pooled)
        own = classes.reshape(-1, 1, 1, 1).expand(-1, 1, *logits.shape[2:])
        masks = logits.gather(1, own)[:, 0].sigmoid().reshape(boxes.shape[0], boxes.shape[1], *logits.shape[2:])
        found = (scores > 0).to(scores.dtype)
        labels = self.category_ids[classes] * (scores > 0)
        return edges(boxes, self.conventions) * found[..., None], scores, labels, masks * found[..., None, None]

    def _normalized(self, images: Tensor, sizes_hw: Tensor) -> Float[Tensor, "n 3 height width"]:
        """Return B, G, R minus the means, over the deviations where there are any, zero outside the image."""
        height, width = self.size_hw
        pixels = torch.stack([images[..., 2], images[..., 1], images[..., 0]], dim=1).to(torch.float32) - self.means
        if self.conventions.deviations_bgr is not None:
            pixels = pixels / torch.tensor(self.conventions.deviations_bgr).view(1, 3, 1, 1)
        rows = torch.arange(height)[None] < sizes_hw[:, :1]
        columns = torch.arange(width)[None] < sizes_hw[:, 1:]
        return pixels * (rows[:, None, :, None] & columns[:, None, None, :]).to(torch.float32)

    def _proposals(self, features: list[Tensor], sizes_hw: Tensor) -> tuple[Tensor, Tensor]:
        """Return the proposals (n, rois, 4) by falling score, and 1 where there is one; boxes are zeros elsewhere."""
        limit = min(self.config.candidates_per_level[1], max(self.level_counts))
        all_boxes, all_scores = [], []
        for feature, anchors in zip(features, self.anchors.split(self.level_counts), strict=True):
            logits, deltas = self.model.rpn["head"](feature)
            scores, index = logits.sigmoid().topk(min(limit, len(anchors)), dim=1)
            deltas = deltas.gather(1, index[..., None].expand(-1, -1, 4))
            boxes, valid = self._decode(
                deltas, anchors[index], RPN_BOX_WEIGHTS, sizes_hw, self.conventions.least_proposal
            )
            suppresses = (pairwise_iou(boxes, boxes) > self.config.rpn_nms_iou).to(torch.float32).triu(diagonal=1)
            all_scores.append(torch.where(self.survivors(suppresses, valid) > 0, scores, -1.0))
            all_boxes.append(boxes)
        boxes, scores = torch.cat(all_boxes, dim=1), torch.cat(all_scores, dim=1)
        best, index = scores.topk(min(self.config.proposals_test, scores.shape[1]), dim=1)
        is_roi = (best >= 0).to(boxes.dtype)
        return boxes.gather(1, index[..., None].expand(-1, -1, 4)) * is_roi[..., None], is_roi

    def _decode(
        self, deltas: Tensor, anchors: Tensor, weights: BoxWeights, sizes_hw: Tensor, least: float | None
    ) -> tuple[Tensor, Tensor]:
        """Return the boxes that offsets make of anchors, inside the image, and 1 for those that are large enough."""
        decoded = decode_boxes(deltas, anchors, weights, limits_shrinking=self.conventions.limits_shrinking)
        boxes = clip_boxes(decoded, sizes_hw, has_plus_one=self.conventions.has_plus_one)
        is_large = torch.ones_like(boxes[..., 0]) if least is None else are_at_least(boxes, least).to(boxes.dtype)
        return boxes, is_large

    def _pool(self, features: list[Tensor], boxes: Float[Tensor, "n rois 4"], size: int) -> Tensor:
        """Return the pooled maps (n_rois, c, size, size)."""
        rule, rows = self.conventions.roi_align, edges(boxes, self.conventions)
        pyramid = features[:POOLED_LEVELS]
        if rule is None:
            return roi_align(pyramid, rows, assign_levels(boxes.flatten(0, 1), len(pyramid)), size)
        levels = levels_by_rule(rows.flatten(0, 1), len(pyramid), rule)
        return (onnx_roi_align if needs_onnx(rule) else roi_align)(pyramid, rows, levels, size)

    def _detections(
        self, features: list[Tensor], rois: Float[Tensor, "n rois 4"], is_roi: Float[Tensor, "n rois"], sizes_hw: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, scores and classes of `detections_per_image` detections; the score of one that is none is 0."""
        config, num_rois = self.config, rois.shape[1]
        logits, deltas = self.model.roi_heads["box"](self._pool(features, rois, BOX_POOL_SIZE))
        foreground = config.num_classes - 1
        scores = logits.softmax(dim=1)[:, 1:].reshape(-1, num_rois, foreground) * is_roi[..., None]
        scores, index = scores.flatten(1).topk(min(MOST_CANDIDATES, num_rois * foreground), dim=1)
        roi, classes = index // foreground, index % foreground + 1
        deltas = deltas.reshape(-1, num_rois * config.num_classes, 4)
        chosen = (roi * config.num_classes + classes)[..., None].expand(-1, -1, 4)
        own_rois = rois.gather(1, roi[..., None].expand(-1, -1, 4))
        least = self.conventions.least_detection
        boxes, is_large = self._decode(deltas.gather(1, chosen), own_rois, BOX_HEAD_WEIGHTS, sizes_hw, least)
        passes = (scores > config.score_threshold).to(torch.float32) * is_large
        is_same = classes[:, :, None] == classes[:, None, :]
        suppresses = ((pairwise_iou(boxes, boxes) > config.detection_nms_iou) & is_same).to(torch.float32)
        scores = scores * self.survivors(suppresses.triu(diagonal=1), passes)
        scores, index = scores.topk(min(config.detections_per_image, scores.shape[1]), dim=1)
        return boxes.gather(1, index[..., None].expand(-1, -1, 4)), scores, classes.gather(1, index)


def roi_align(
    features: list[Tensor], boxes: Float[Tensor, "n rois 4"], levels: Int[Tensor, " n_rois"], size: int
) -> Float[Tensor, "n_rois c s s"]:
    """Return each box's pooled map: one look-up in the pyramid for each of the 16 cells around its samples."""
    num_images, num_rois = boxes.shape[0], boxes.shape[1]
    sizes_hw = [(feature.shape[2], feature.shape[3]) for feature in features]
    # The rows of a table: level, image, line, column.
    table = torch.cat([feature.permute(0, 2, 3, 1).reshape(-1, feature.shape[1]) for feature in features])
    rows = boxes.reshape(-1, 4)
    strides = torch.tensor(STRIDES[: len(features)], dtype=rows.dtype)[levels]
    heights, widths = (torch.tensor(sides)[levels] for sides in zip(*sizes_hw, strict=True))
    areas = torch.tensor([0, *(height * width for height, width in sizes_hw)]).cumsum(0)[:-1]
    image = torch.arange(num_images)[:, None].expand(-1, num_rois).reshape(-1)
    first = areas[levels] * num_images + image * heights * widths
    corners = rows / strides[:, None]
    extents = (corners[:, 2:] - corners[:, :2]).clamp(min=1.0)
    columns, column_weights = axis_samples(corners[:, 0], extents[:, 0], widths, size)
    lines, line_weights = axis_samples(corners[:, 1], extents[:, 1], heights, size)
    total = torch.zeros(())
    for line in range(2 * SAMPLES):
        for column in range(2 * SAMPLES):
            cells = first[:, None, None] + lines[:, :, None, line] * widths[:, None, None] + columns[:, None, :, column]
            weights = line_weights[:, :, None, line] * column_weights[:, None, :, column] / SAMPLES**2
            total = total + table[cells] * weights[..., None]
    return total.permute(0, 3, 1, 2)


def onnx_roi_align(
    features: list[Tensor], boxes: Float[Tensor, "n rois 4"], levels: Int[Tensor, " n_rois"], size: int
) -> Float[Tensor, "n_rois c s s"]:
    """Return the same as a graph of ONNX has it: aligned, with as many samples as a bin has cells. It has no numbers
    in PyTorch. Every level pools every box, those of other levels as a box of no extent, which gives zeros."""
    rows = boxes.flatten(0, 1)
    image = torch.arange(boxes.shape[0])[:, None].expand(-1, boxes.shape[1]).reshape(-1)
    total = torch.zeros(())
    for level, (feature, stride) in enumerate(zip(features, STRIDES, strict=False)):
        own = rows * (levels == level)[:, None].to(rows.dtype)
        attributes: dict[str, int | float | str] = {
            "output_height": size,
            "output_width": size,
            "sampling_ratio": 0,
            "mode": "avg",
            "spatial_scale": 1.0 / stride,
            "coordinate_transformation_mode": "half_pixel",
        }
        total = total + torch.onnx.ops.symbolic(
            "RoiAlign",
            (feature, own, image),
            attributes,  # type: ignore[arg-type]  # a dictionary of values of one kind each
            dtype=feature.dtype,
            shape=(rows.shape[0], feature.shape[1], size, size),
            version=ONNX_ROI_ALIGN,
        )
    return total
