import pytest
import torch
from small_batches import SMALL

from maskperf.engine.build import build_model
from maskperf.model.heads import FLOAT32_BIASES
from maskperf.model.resnet import FrozenBatchNorm

BFLOAT16 = torch.bfloat16


def model_in_bfloat16():
    model = build_model(SMALL, 0)[0]
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm):
            for buffer in module.buffers():
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    model.compute_dtype = BFLOAT16
    return model


def test_inside_the_block_layers_have_casts_and_outside_their_parameters():
    model = model_in_bfloat16()
    before = dict(model.named_parameters())
    with model.computing():
        for name in before:
            layer, _, kind = name.rpartition(".")
            tensor = getattr(model.get_submodule(layer), kind)
            stays = kind == "bias" and layer.rpartition(".")[2] in FLOAT32_BIASES
            assert tensor.dtype == (torch.float32 if stays else BFLOAT16), name
    assert all(value is before[name] for name, value in model.named_parameters())


def test_an_error_inside_the_block_puts_the_parameters_back():
    model = model_in_bfloat16()
    before = list(model.parameters())
    with pytest.raises(RuntimeError, match="inside"), model.computing():
        raise RuntimeError("inside")
    assert all(one is other for one, other in zip(model.parameters(), before, strict=True))
    assert all(module.folded_shift is None for module in model.modules() if isinstance(module, FrozenBatchNorm))


def test_frozen_batch_norm_is_folded_before_rounding_and_follows_its_buffers():
    model = model_in_bfloat16()
    block = model.backbone["body"].layer2[0]
    for _ in range(2):
        scale, shift = block.bn1.scale_and_shift()
        with model.computing():
            weight = block.conv1.weight.detach().clone()
            assert torch.equal(block.bn1.folded_shift, shift.to(BFLOAT16))
        assert torch.equal(weight, (block.conv1.weight * scale[:, None, None, None]).to(BFLOAT16))
        block.bn1.running_var.mul_(2.0)


def test_factors_keep_their_memory_when_they_change():
    model = model_in_bfloat16()
    with model.computing():
        (weights,) = model._compute_weights.values()
        addresses = [scale.data_ptr() for scale in weights._scales]
    model.load_state_dict({name: value * 2 for name, value in model.state_dict().items()})
    with model.computing():
        assert [scale.data_ptr() for scale in weights._scales] == addresses


def test_blocks_may_be_nested_and_weights_are_cast_once():
    model = model_in_bfloat16()
    with model.computing():
        weight = model.rpn["head"].conv.weight
        with model.computing():
            assert model.rpn["head"].conv.weight is weight
        assert model.rpn["head"].conv.weight is weight


def test_trainable_weights_come_in_groups_that_share_no_parameter():
    model = model_in_bfloat16()
    groups = model.weight_casts()
    assert len(groups) == 9  # stem, four stages, pyramid, RPN, box head, mask head
    together = [parameter for casts in groups for parameter in casts.parameters]
    assert len(set(together)) == len(together)
    left = {name for name, value in model.named_parameters() if value.requires_grad and value not in set(together)}
    assert left == {
        name for name, _ in model.named_parameters() if name.split(".")[-2] in FLOAT32_BIASES and name.endswith("bias")
    }
    model.compute_dtype = torch.float32
    assert model.weight_casts() == []
