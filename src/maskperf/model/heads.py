"""The heads: RPN, box and mask. Their parameters carry the names of the reference's state dict."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from maskperf.ops.convolution import Convolution, bias_of
from maskperf.ops.products import float32_linear, linear_relu, own_class_logits

BOX_POOL_SIZE = 7
MASK_POOL_SIZE = 14
MASK_SIZE = 2 * MASK_POOL_SIZE
FAN_OUT = {"mode": "fan_out", "nonlinearity": "relu"}  # of kaiming_normal_
# The layers of the last maps, by their names in each head: their results are float32 whatever the layers before are
# in, and so are their biases.
FLOAT32_BIASES = ("cls_logits", "bbox_pred", "cls_score", "mask_fcn_logits")

Layer = TypeVar("Layer", bound=nn.Linear | nn.Conv2d | nn.ConvTranspose2d)


def initialized(layer: Layer, initialize: Callable[..., Tensor], **options: Any) -> Layer:
    """Return the layer with weights from a function of nn.init, and zeros as biases."""
    initialize(layer.weight, **options)
    nn.init.zeros_(bias_of(layer))
    return layer


class RpnHead(nn.Module):
    """3x3 convolutions, mostly one, then one objectness logit and four offsets per anchor; shared by all levels."""

    def __init__(self, channels: int, anchors_per_cell: int, num_convs: int = 1):
        super().__init__()
        self.num_convs = num_convs
        for number in range(2, num_convs + 1):
            self.add_module(
                f"conv{number}", initialized(Convolution(channels, channels, 3, padding=1), nn.init.normal_, std=0.01)
            )
        self.conv = initialized(Convolution(channels, channels, 3, padding=1), nn.init.normal_, std=0.01)
        self.cls_logits = initialized(Convolution(channels, anchors_per_cell, 1), nn.init.normal_, std=0.01)
        self.bbox_pred = initialized(Convolution(channels, 4 * anchors_per_cell, 1), nn.init.normal_, std=0.01)

    def forward(self, feature: Float[Tensor, "n channels h w"]) -> tuple[Tensor, Tensor]:
        """Return logits (n, h * w * anchors) and deltas (n, h * w * anchors, 4): row, column, anchor fastest."""
        hidden = self.conv(feature, relu=True)
        for number in range(2, self.num_convs + 1):
            hidden = getattr(self, f"conv{number}")(hidden, relu=True)
        if hidden.dtype == torch.bfloat16:
            logits, deltas = self._outputs(hidden.permute(0, 2, 3, 1).flatten(0, 2))
            return logits.reshape(len(hidden), -1), deltas.reshape(len(hidden), -1, 4)
        logits = self.cls_logits(hidden).permute(0, 2, 3, 1).flatten(1)
        deltas = self.bbox_pred(hidden).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4))
        return logits, deltas

    def of_patches(
        self, patches: Float[Tensor, "samples nine channels"], numbers: Int[Tensor, " samples"]
    ) -> tuple[Float[Tensor, " samples"], Float[Tensor, "samples 4"]]:
        """Return logit and deltas of one anchor for each patch: number `numbers` of the cell in the patch's middle."""
        assert self.num_convs == 1, "a second convolution sees more than a patch"
        kernel = self.conv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # row, column and input channel; output channel
        if patches.dtype == torch.bfloat16:
            logits, deltas = self._outputs(linear_relu(patches.flatten(1), kernel.t(), bias_of(self.conv)))
        else:
            hidden = torch.relu_(torch.addmm(bias_of(self.conv), patches.flatten(1), kernel))
            logits = torch.addmm(bias_of(self.cls_logits), hidden, self.cls_logits.weight.flatten(1).t())
            deltas = torch.addmm(bias_of(self.bbox_pred), hidden, self.bbox_pred.weight.flatten(1).t())
        deltas = deltas.unflatten(1, (-1, 4))
        own = numbers[:, None]
        return logits.gather(1, own)[:, 0], deltas.gather(1, own[..., None].expand(-1, 1, 4))[:, 0]

    def _outputs(self, rows: Float[Tensor, "cells channels"]) -> tuple[Tensor, Tensor]:
        """Return logits (cells, anchors) and deltas (cells, anchors * 4) of hidden cells, by one product."""
        weight = torch.cat([self.cls_logits.weight, self.bbox_pred.weight]).flatten(1)
        biases = [bias_of(self.cls_logits), bias_of(self.bbox_pred)]
        return float32_linear(rows, weight, torch.cat(biases)).split([len(bias) for bias in biases], dim=1)


class BoxFeatures(nn.Module):
    """Two fully connected layers over the pooled 7x7 map, flattened channel-major."""

    def __init__(self, inputs: int, channels: int):
        super().__init__()
        self.fc6 = initialized(nn.Linear(inputs * BOX_POOL_SIZE**2, channels), nn.init.kaiming_uniform_, a=1)
        self.fc7 = initialized(nn.Linear(channels, channels), nn.init.kaiming_uniform_, a=1)

    def forward(self, pooled: Float[Tensor, "rois inputs 7 7"]) -> Float[Tensor, "rois channels"]:
        if pooled.dtype == torch.bfloat16:
            # The weight's columns are put into the order of a channels-last map: it is smaller than all the maps.
            columns = self.fc6.weight.unflatten(1, pooled.shape[1:]).permute(0, 2, 3, 1).flatten(1)
            hidden = linear_relu(pooled.permute(0, 2, 3, 1).flatten(1), columns, self.fc6.bias)
            return linear_relu(hidden, self.fc7.weight, self.fc7.bias)
        return torch.relu_(self.fc7(torch.relu_(self.fc6(pooled.flatten(1)))))


class ConvolvedBoxFeatures(nn.Module):
    """3x3 convolutions over the pooled 7x7 map, then one fully connected layer."""

    def __init__(self, inputs: int, channels: int, num_convs: int):
        super().__init__()
        self.num_convs = num_convs
        for number in range(1, num_convs + 1):
            conv = Convolution(inputs, inputs, 3, padding=1)
            self.add_module(f"conv{number}", initialized(conv, nn.init.kaiming_normal_, **FAN_OUT))
        self.fc6 = initialized(nn.Linear(inputs * BOX_POOL_SIZE**2, channels), nn.init.kaiming_uniform_, a=1)

    def forward(self, pooled: Float[Tensor, "rois inputs 7 7"]) -> Float[Tensor, "rois channels"]:
        for number in range(1, self.num_convs + 1):
            pooled = getattr(self, f"conv{number}")(pooled, relu=True)
        return torch.relu_(self.fc6(pooled.flatten(1)))


class BoxPredictor(nn.Module):
    """Class logits and, for every class, four offsets."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.cls_score = initialized(nn.Linear(channels, num_classes), nn.init.normal_, std=0.01)
        self.bbox_pred = initialized(nn.Linear(channels, 4 * num_classes), nn.init.normal_, std=0.001)

    def forward(self, hidden: Float[Tensor, "rois channels"]) -> tuple[Tensor, Tensor]:
        """Return logits (rois, classes) and deltas (rois, classes, 4)."""
        layers = (self.cls_score, self.bbox_pred)
        if hidden.dtype == torch.bfloat16:
            logits, deltas = (float32_linear(hidden, layer.weight, layer.bias) for layer in layers)
        else:
            logits, deltas = (layer(hidden) for layer in layers)
        return logits, deltas.unflatten(1, (-1, 4))


class MaskFeatures(nn.Module):
    """3x3 convolutions over the pooled 14x14 map."""

    def __init__(self, inputs: int, channels: int, num_convs: int):
        super().__init__()
        self.num_convs = num_convs
        for number in range(1, num_convs + 1):
            conv = Convolution(inputs if number == 1 else channels, channels, 3, padding=1)
            self.add_module(f"mask_fcn{number}", initialized(conv, nn.init.kaiming_normal_, **FAN_OUT))

    def forward(self, pooled: Float[Tensor, "rois inputs 14 14"]) -> Float[Tensor, "rois channels 14 14"]:
        for number in range(1, self.num_convs + 1):
            pooled = getattr(self, f"mask_fcn{number}")(pooled, relu=True)
        return pooled


class MaskPredictor(nn.Module):
    """Doubles the side to 28 and gives one map of logits per class."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        transposed = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.conv5_mask = initialized(transposed, nn.init.kaiming_normal_, **FAN_OUT)
        self.mask_fcn_logits = initialized(Convolution(channels, num_classes, 1), nn.init.kaiming_normal_, **FAN_OUT)

    def forward(self, hidden: Float[Tensor, "rois channels 14 14"]) -> Float[Tensor, "rois classes 28 28"]:
        doubled = torch.relu_(self.conv5_mask(hidden))
        if doubled.dtype == torch.bfloat16:
            rows, layer = doubled.permute(0, 2, 3, 1), self.mask_fcn_logits
            logits = float32_linear(rows.flatten(0, 2), layer.weight.flatten(1), bias_of(layer))
            return logits.view(*rows.shape[:3], -1).permute(0, 3, 1, 2)
        return self.mask_fcn_logits(doubled)

    def of_class(
        self, hidden: Float[Tensor, "rois channels 14 14"], labels: Int[Tensor, " rois"]
    ) -> Float[Tensor, "rois 28 28"]:
        """Return the map of each RoI's own class alone.

        The transposed convolution turns every pixel into a square of four, and no two squares meet: one matrix product
        gives them all. A logit is then one dot product with the class's weights. Only the logits, one number a pixel,
        are put into the order of the map.
        """
        matrix = self.conv5_mask.weight.permute(0, 2, 3, 1).flatten(1)  # input; row, column in the square and output
        pixels = hidden.permute(0, 2, 3, 1)
        rows, biases = pixels.flatten(0, 2), bias_of(self.conv5_mask).repeat(4)
        shape = (len(hidden), 4 * pixels.shape[1] * pixels.shape[2], matrix.shape[1] // 4)
        weight, bias = self.mask_fcn_logits.weight.flatten(1), bias_of(self.mask_fcn_logits)
        if hidden.dtype == torch.bfloat16:
            squares = linear_relu(rows, matrix.t(), biases, has_rectified_gradient=True).view(shape)
            logits = own_class_logits(squares, weight, bias, labels)
        else:
            squares = torch.relu_(torch.addmm(biases, rows, matrix)).view(shape)
            offsets = bias.index_select(0, labels)[:, None, None]
            logits = torch.baddbmm(offsets, squares, weight.index_select(0, labels)[..., None])
        return logits.view(*pixels.shape[:3], 2, 2).transpose(2, 3).flatten(3).flatten(1, 2)


class RoiHead(nn.Module):
    """A feature extractor and a predictor, under the reference's names."""

    def __init__(self, feature_extractor: nn.Module, predictor: nn.Module):
        super().__init__()
        self.feature_extractor = feature_extractor
        self.predictor = predictor

    def forward(self, pooled: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.predictor(self.feature_extractor(pooled))
