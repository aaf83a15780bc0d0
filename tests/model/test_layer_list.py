from dataclasses import replace
from functools import partial

import pytest
import torch
from weight_files import TINY

from maskperf.config import ModelConfig
from maskperf.model.layer_list import LayerRow, format_layers, list_layers
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.techniques import plain, using


@pytest.fixture(scope="module")
def full_rows():
    with torch.device("meta"):
        model = MaskRcnn(ModelConfig())
    return list_layers(model)


def test_shapes_and_arithmetic_of_single_layers_by_hand(full_rows):
    rows = {row.name: row for row in full_rows}
    stem = rows["backbone.body.stem.conv1"]
    assert stem == LayerRow(
        name="backbone.body.stem.conv1",
        kind="Conv2d",
        output_shape=(1, 64, 400, 672),
        calls=1,
        parameters=9_408,
        multiply_adds=400 * 672 * 64 * 3 * 7 * 7,
        frozen=True,
    )
    assert rows["backbone.body.layer4.2.conv3"].output_shape == (1, 2048, 25, 42)
    assert rows["backbone.body.layer2.0.conv1"].output_shape == (1, 128, 100, 168)  # the stride is in the first 1x1
    cells = 200 * 336 + 100 * 168 + 50 * 84 + 25 * 42 + 13 * 21
    assert rows["rpn.head.cls_logits"].calls == 5 and 3 * cells == 268_569
    assert rows["rpn.head.cls_logits"].multiply_adds == 268_569 * 256
    assert rows["roi_heads.box.feature_extractor.fc6"].output_shape == (512, 1024)
    assert rows["roi_heads.box.feature_extractor.fc6"].multiply_adds == 512 * 12544 * 1024
    assert rows["roi_heads.mask.predictor.conv5_mask"].output_shape == (128, 256, 28, 28)
    assert rows["roi_heads.mask.predictor.conv5_mask"].multiply_adds == 128 * 14 * 14 * 256 * 256 * 4
    assert rows["roi_heads.mask.predictor.mask_fcn_logits"].output_shape == (128, 81, 28, 28)
    text = format_layers(full_rows)
    assert "parameters: 44,347,573 in all, 44,125,173 trained, 222,400 frozen" in text


@pytest.mark.parametrize("batch_norm", ["frozen", "trainable"])
def test_every_parameter_and_buffer_of_a_real_model_belongs_to_a_row(batch_norm):
    model = MaskRcnn(replace(TINY, batch_norm=batch_norm))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = list_layers(model, (64, 96), images=2, box_rois=3, mask_rois=1)
    assert {name.rpartition(".")[0] for name in before} == {row.name for row in rows}
    for row in rows:
        parameters = list(model.get_submodule(row.name).parameters())
        assert row.parameters == sum(parameter.numel() for parameter in parameters)
        assert row.frozen == (not any(parameter.requires_grad for parameter in parameters))
    after = model.state_dict()  # listing neither computes nor changes anything
    assert all(torch.equal(after[name], tensor) and after[name].device.type == "cpu" for name, tensor in before.items())


def test_shapes_are_those_of_a_real_forward_pass_and_no_hook_stays():
    model = MaskRcnn(TINY).eval()
    rows = {row.name: row for row in list_layers(model, (64, 96), images=2, box_rois=3, mask_rois=1)}
    assert not any(module._forward_hooks for module in model.modules())
    seen = {}

    def see(name, module, inputs, output):
        seen.setdefault(name, tuple(output.shape))

    for name in rows:
        model.get_submodule(name).register_forward_hook(partial(see, name))
    boxes = torch.tensor([[[0.0, 0, 20, 20], [5, 5, 60, 40], [1, 2, 9, 9]]] * 2)
    with torch.no_grad(), using(plain()):  # folded, a layer is never called
        features = model.features(torch.randn(2, 3, 64, 96))
        model.rpn_output(features)
        model.box_outputs(features, boxes)
        model.mask_logits(features, boxes[:, :1])
    assert seen == {name: row.output_shape for name, row in rows.items()}


@pytest.mark.parametrize("size", [(800, 1333), (0, 64), (-32, 64)])
def test_a_size_that_the_pyramid_cannot_take_is_refused(size):
    with pytest.raises(ValueError, match="multiples of 32"):
        list_layers(MaskRcnn(TINY), size)


def test_the_table_lines_up_and_ends_with_totals():
    rows = [
        LayerRow("stem", "Conv2d", (1, 64, 4, 4), calls=1, parameters=9408, multiply_adds=12345678, frozen=True),
        LayerRow("head.conv", "Linear", (5, 7), calls=5, parameters=42, multiply_adds=210, frozen=False),
    ]
    assert format_layers(rows).splitlines() == [
        "layer      kind    output           parameters  multiply-adds  trained",
        "-" * 70,
        "stem       Conv2d  1 x 64 x 4 x 4        9,408     12,345,678       no",
        "head.conv  Linear  5 x 7 (5 calls)          42            210      yes",
        "-" * 70,
        "parameters: 9,450 in all, 42 trained, 9,408 frozen",
        "multiply-adds of one forward pass: 12,345,888",
    ]
