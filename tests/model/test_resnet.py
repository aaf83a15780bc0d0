import pytest
import torch
import torch.nn.functional as F
from weight_files import assert_equal

from maskperf.config import ModelConfig
from maskperf.model.resnet import Bottleneck, FrozenBatchNorm, ResNet
from maskperf.techniques import Techniques, using

UNFOLDED = Techniques().without("folded_batch_norm")


def small_backbone(**changes):
    torch.manual_seed(0)
    sizes = {"stem_channels": 8, "stage_blocks": (1, 2, 1, 1), "stage_channels": (16, 24, 32, 40)}
    return ResNet(ModelConfig(**{**sizes, **changes}))


def images(height=64, width=96):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def random_batch_norm(channels):
    norm = FrozenBatchNorm(channels)
    generator = torch.Generator().manual_seed(2)
    norm.weight.copy_(torch.randn(channels, generator=generator))
    norm.bias.copy_(torch.randn(channels, generator=generator))
    norm.running_mean.copy_(torch.randn(channels, generator=generator))
    norm.running_var.copy_(torch.rand(channels, generator=generator) * 1e-3 + 1e-5)  # small: an epsilon would show
    return norm


def train_one_step(backbone):
    """Return the state dicts before and after one update with weight decay."""
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    trainable = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.1, weight_decay=0.1)
    sum(stage.square().mean() for stage in backbone(images())).backward()
    optimizer.step()
    return before, backbone.state_dict()


def test_frozen_batch_norm_equals_that_of_torch_with_epsilon_zero():
    norm = random_batch_norm(channels=6)
    x = torch.randn(3, 6, 4, 5, generator=torch.Generator().manual_seed(3))
    expected = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False, eps=0.0)
    torch.testing.assert_close(norm.train()(x), expected, rtol=1e-5, atol=1e-3)  # values reach several hundred
    assert torch.equal(norm(x), norm.eval()(x)) and list(norm.parameters()) == []


def test_block_with_stride_sees_every_second_pixel_only():
    block = Bottleneck(4, 8, 2, ModelConfig())
    x = torch.randn(1, 4, 6, 8)
    y = block(x)
    unseen = torch.ones(6, 8, dtype=torch.bool)
    unseen[::2, ::2] = False
    assert y.shape == (1, 8, 3, 4)
    assert torch.equal(block(torch.where(unseen, 1e6, x)), y)
    assert not torch.equal(block(torch.where(unseen, x, x + 1)), y)


@pytest.mark.parametrize("batch_norm", ["frozen", "trainable"])
@pytest.mark.parametrize("frozen_stages", [0, 1, 2, 4])
def test_frozen_stages_do_not_move_and_of_frozen_batch_norms_no_buffer(frozen_stages, batch_norm):
    backbone = small_backbone(frozen_stages=frozen_stages, batch_norm=batch_norm)
    frozen = ("stem.", "layer1.", "layer2.", "layer3.", "layer4.")[:frozen_stages]
    before, after = train_one_step(backbone)
    for name, parameter in backbone.named_parameters():
        is_frozen = name.startswith(frozen)
        assert parameter.requires_grad is not is_frozen, name
        assert (parameter.grad is None) is is_frozen, name
        assert torch.equal(before[name], after[name]) is is_frozen, name
    buffers = [name for name, _ in backbone.named_buffers()]  # frozen: four of 20 batch norms; else their statistics
    assert len(buffers) == {"frozen": 4 * 20, "trainable": 3 * 20}[batch_norm]
    assert {torch.equal(before[name], after[name]) for name in buffers} == {batch_norm == "frozen"}


def twins(**changes):
    """Return the same backbone twice in float64, with batch norms that are not the identity."""
    pair = []
    for _ in range(2):
        backbone = small_backbone(**changes).double()
        generator = torch.Generator().manual_seed(5)
        for norm in backbone.modules():
            if isinstance(norm, FrozenBatchNorm):
                for buffer in norm.buffers():
                    buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
        pair.append(backbone)
    return pair


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("frozen_stages", [0, 2])
def test_folded_batch_norm_gives_the_numbers_and_gradients_of_the_plain_one(frozen_stages, fast):
    results = []
    techniques = Techniques() if fast else Techniques().without("fast_convolutions")
    backbones = twins(frozen_stages=frozen_stages, stage_channels=(16, 24, 512, 40))  # 128 in the third stage's 3x3
    for backbone, own in zip(backbones, (techniques, techniques.without("folded_batch_norm")), strict=True):
        # 90 tiles of 4x4 at stride 16, and the 1x1 at stride 4 are large
        with using(own):
            stages = backbone(images(256, 288).double())
        sum(stage.square().mean() for stage in stages).backward()
        grads = {name: parameter.grad for name, parameter in backbone.named_parameters()}
        results.append((stages, grads))
    (stages, grads), (expected_stages, expected_grads) = results
    for stage, expected in zip(stages, expected_stages, strict=True):
        torch.testing.assert_close(stage, expected, rtol=1e-9, atol=1e-9)
    for name, expected in expected_grads.items():
        assert (grads[name] is None) is (expected is None) is name.startswith(("stem.", "layer1.")[:frozen_stages])
        if expected is not None:
            torch.testing.assert_close(grads[name], expected, rtol=1e-9, atol=1e-9, msg=name)


def test_folded_batch_norm_follows_a_state_dict_that_is_loaded_later():
    folded, plain = twins()
    x = images().double()
    before = folded(x)
    assert_equal(folded.state_dict(), plain.state_dict())  # folding leaves it as it is
    changed = {name: value * 1.25 for name, value in plain.state_dict().items()}
    folded.load_state_dict(changed)
    plain.load_state_dict(changed)
    with using(UNFOLDED):
        wanted = plain(x)
    for stage, expected, old in zip(folded(x), wanted, before, strict=True):
        torch.testing.assert_close(stage, expected)
        assert not torch.allclose(stage, old)


def test_frozen_stages_save_nothing_for_a_backward_pass():
    backbone = small_backbone(frozen_stages=2)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda packed: packed):
        stage = backbone.layer1(backbone.stem(images()))
        assert not stage.requires_grad and saved == []
        assert backbone.layer2(stage).requires_grad and saved
