import pytest
import torch
from torch import nn

from maskperf.model.heads import (
    FLOAT32_BIASES,
    BoxFeatures,
    BoxPredictor,
    MaskFeatures,
    MaskPredictor,
    RoiHead,
    RpnHead,
)
from maskperf.ops.products import own_class


def fill_(layer, weight=0.0, bias=0.0):
    nn.init.constant_(layer.weight, weight)
    nn.init.constant_(layer.bias, bias)


def cell_counting_head():
    """An RPN head whose outputs are 100 times the value of channel 0 plus the number of the output channel."""
    head = RpnHead(2, 3)
    fill_(head.conv)
    head.conv.weight.data[0, 0, 1, 1] = 1.0
    for layer in (head.cls_logits, head.bbox_pred):
        fill_(layer)
        layer.weight.data[:, 0] = 100.0
        layer.bias.data = torch.arange(layer.out_channels, dtype=torch.float32)
    return head


def test_rpn_outputs_run_over_rows_then_columns_then_anchors():
    feature = torch.zeros(2, 2, 3, 4)
    feature[:, 0] = torch.arange(12.0).view(3, 4)  # row * 4 + column
    feature[1, 0] += 12
    logits, deltas = cell_counting_head()(feature)
    assert logits.shape == (2, 36)
    assert deltas.shape == (2, 36, 4)
    cells, anchors = torch.arange(24.0)[:, None], torch.arange(3.0)
    assert torch.equal(logits, (100 * cells + anchors).view(2, 36))
    numbers = 4 * anchors[:, None] + torch.arange(4.0)  # anchor-major: four offsets beside one another
    assert torch.equal(deltas, (100 * cells[..., None] + numbers).view(2, 36, 4))


def test_box_offsets_are_class_major():
    predictor = BoxPredictor(5, 3)
    fill_(predictor.cls_score, bias=0.5)
    fill_(predictor.bbox_pred)
    predictor.bbox_pred.bias.data = torch.arange(12.0)
    logits, deltas = predictor(torch.randn(2, 5))
    assert torch.equal(logits, torch.full((2, 3), 0.5))
    assert deltas[0].tolist() == deltas[1].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_box_features_flatten_channel_by_channel():
    features = BoxFeatures(2, 98)
    for layer in (features.fc6, features.fc7):
        fill_(layer)
        layer.weight.data = torch.eye(98)
    pooled = torch.rand(3, 2, 7, 7)
    expected = torch.cat([pooled[:, 0].reshape(3, 49), pooled[:, 1].reshape(3, 49)], dim=1)
    assert torch.equal(features(pooled), expected)
    assert torch.equal(features(pooled.contiguous(memory_format=torch.channels_last)), expected)


def test_mask_predictor_turns_each_pixel_into_a_square_of_four():
    predictor = MaskPredictor(1, 2)
    fill_(predictor.conv5_mask)
    predictor.conv5_mask.weight.data[0, 0] = torch.tensor([[1.0, 2.0], [-3.0, 4.0]])
    fill_(predictor.mask_fcn_logits)
    predictor.mask_fcn_logits.weight.data[:, 0, 0, 0] = torch.tensor([10.0, -1.0])
    hidden = torch.zeros(1, 1, 14, 14)
    hidden[0, 0, 3, 5] = 1.0
    logits = predictor(hidden)
    assert logits.shape == (1, 2, 28, 28)
    assert logits[0, 0, 6:8, 10:12].tolist() == [[10, 20], [0, 40]]  # the relu between the two took -3
    assert logits[0, 1, 6:8, 10:12].tolist() == [[-1, -2], [0, -4]]
    assert logits[0, 0].sum() == 70


@pytest.mark.parametrize("rois", [0, 1, 5])
def test_map_of_one_class_is_the_map_among_those_of_all_classes(rois):
    torch.manual_seed(0)
    predictor = MaskPredictor(6, 4)
    nn.init.normal_(predictor.conv5_mask.bias)
    nn.init.normal_(predictor.mask_fcn_logits.bias)
    hidden = torch.randn(rois, 6, 14, 14, requires_grad=True)
    labels = torch.tensor([1, 3, 3, 0, 1])[:rois]
    inputs = (hidden, *predictor.parameters())
    dense = own_class(predictor(hidden)[None], labels[None])[0]
    alone = predictor.of_class(hidden, labels)
    weights = torch.randn(rois, 28, 28)
    torch.testing.assert_close(alone, dense, rtol=1e-5, atol=1e-6)  # float32 sums in another order
    wanted = torch.autograd.grad((dense * weights).sum(), inputs)
    found = torch.autograd.grad((alone * weights).sum(), inputs)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert found[3][2].abs().max() == 0  # weights of a class that no RoI has: a gradient, of zeros


def test_every_head_gives_float32_with_weights_in_bfloat16():
    torch.manual_seed(0)
    heads = (
        RpnHead(4, 3),
        RoiHead(BoxFeatures(4, 8), BoxPredictor(8, 3)),
        RoiHead(MaskFeatures(4, 4, 1), MaskPredictor(4, 3)),
    )
    for head in heads:
        for name, parameter in head.named_parameters():
            if not (name.endswith("bias") and name.split(".")[-2] in FLOAT32_BIASES):
                parameter.data = parameter.data.bfloat16()
    rpn, box, mask = (
        head(torch.randn(2, 4, side, side).to(torch.bfloat16, memory_format=torch.channels_last))
        for head, side in zip(heads, (2, 7, 14), strict=True)
    )
    assert {tensor.dtype for tensor in (*rpn, *box, mask)} == {torch.float32}
