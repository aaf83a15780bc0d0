"""The heads: RPN, box and mask. Their parameters carry the names of the reference's state dict."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

BOX_POOL_SIZE = 7
MASK_POOL_SIZE = 14
MASK_SIZE = 2 * MASK_POOL_SIZE


def _normal(layer: nn.Module, std: float) -> nn.Module:
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer


def _kaiming_uniform(layer: nn.Module) -> nn.Module:
    nn.init.kaiming_uniform_(layer.weight, a=1)
    nn.init.zeros_(layer.bias)
    return layer


def _kaiming_fan_out(layer: nn.Module) -> nn.Module:
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


class RpnHead(nn.Module):
    """3x3 convolution, then one objectness logit and four offsets per anchor; shared by all levels."""

    def __init__(self, channels: int, anchors_per_cell: int):
        super().__init__()
        self.conv = _normal(nn.Conv2d(channels, channels, 3, padding=1), std=0.01)
        self.cls_logits = _normal(nn.Conv2d(channels, anchors_per_cell, 1), std=0.01)
        self.bbox_pred = _normal(nn.Conv2d(channels, 4 * anchors_per_cell, 1), std=0.01)

    def forward(self, feature: Float[Tensor, "n channels h w"]) -> tuple[Tensor, Tensor]:
        """Returns logits (n, h * w * anchors) and deltas (n, h * w * anchors, 4): row, column, anchor fastest."""
        hidden = torch.relu_(self.conv(feature))
        logits = self.cls_logits(hidden).permute(0, 2, 3, 1).flatten(1)
        deltas = self.bbox_pred(hidden).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4))
        return logits.float(), deltas.float()


class BoxFeatures(nn.Module):
    """Two fully connected layers over the pooled 7x7 map, flattened channel-major."""

    def __init__(self, inputs: int, channels: int):
        super().__init__()
        self.fc6 = _kaiming_uniform(nn.Linear(inputs * BOX_POOL_SIZE**2, channels))
        self.fc7 = _kaiming_uniform(nn.Linear(channels, channels))

    def forward(self, pooled: Float[Tensor, "rois inputs 7 7"]) -> Float[Tensor, "rois channels"]:
        return torch.relu_(self.fc7(torch.relu_(self.fc6(pooled.flatten(1)))))


class BoxPredictor(nn.Module):
    """Class logits and, for every class, four offsets."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.cls_score = _normal(nn.Linear(channels, num_classes), std=0.01)
        self.bbox_pred = _normal(nn.Linear(channels, 4 * num_classes), std=0.001)

    def forward(self, hidden: Float[Tensor, "rois channels"]) -> tuple[Tensor, Tensor]:
        """Returns logits (rois, classes) and deltas (rois, classes, 4)."""
        return self.cls_score(hidden).float(), self.bbox_pred(hidden).unflatten(1, (-1, 4)).float()


class MaskFeatures(nn.Module):
    """3x3 convolutions over the pooled 14x14 map."""

    def __init__(self, inputs: int, channels: int, num_convs: int):
        super().__init__()
        self.num_convs = num_convs
        for number in range(1, num_convs + 1):
            conv = nn.Conv2d(inputs if number == 1 else channels, channels, 3, padding=1)
            self.add_module(f"mask_fcn{number}", _kaiming_fan_out(conv))

    def forward(self, pooled: Float[Tensor, "rois inputs 14 14"]) -> Float[Tensor, "rois channels 14 14"]:
        for number in range(1, self.num_convs + 1):
            pooled = torch.relu_(getattr(self, f"mask_fcn{number}")(pooled))
        return pooled


class MaskPredictor(nn.Module):
    """Doubles the side to 28 and gives one map of logits per class."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.conv5_mask = _kaiming_fan_out(nn.ConvTranspose2d(channels, channels, 2, stride=2))
        self.mask_fcn_logits = _kaiming_fan_out(nn.Conv2d(channels, num_classes, 1))

    def forward(self, hidden: Float[Tensor, "rois channels 14 14"]) -> Float[Tensor, "rois classes 28 28"]:
        return self.mask_fcn_logits(torch.relu_(self.conv5_mask(hidden))).float()


class RoiHead(nn.Module):
    """A feature extractor and a predictor, under the reference's names."""

    def __init__(self, feature_extractor: nn.Module, predictor: nn.Module):
        super().__init__()
        self.feature_extractor = feature_extractor
        self.predictor = predictor

    def forward(self, pooled: Tensor):
        return self.predictor(self.feature_extractor(pooled))
