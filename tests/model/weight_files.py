"""A tiny model, and the problems of weight files that do not fit one."""

from dataclasses import replace

import pytest
import torch

from maskperf.config import ModelConfig
from maskperf.errors import DataError
from maskperf.model.mask_rcnn import MaskRcnn

TINY = ModelConfig(
    num_classes=3,
    stage_blocks=(1, 1, 1, 1),
    stem_channels=4,
    stage_channels=(8, 16, 32, 64),
    fpn_channels=4,
    box_head_channels=4,
    mask_head_channels=4,
    mask_head_convs=1,
)


def state_of(**changes):
    torch.manual_seed(0)
    return MaskRcnn(replace(TINY, **changes)).state_dict()


def problems_of(call, *arguments, **named):
    with pytest.raises(DataError) as caught:
        call(*arguments, **named)
    return caught.value.problems


def assert_equal(found, wanted):
    """Two sets of tensors have the same names and bits."""
    assert found.keys() == wanted.keys()
    assert [name for name, tensor in wanted.items() if not torch.equal(found[name], tensor)] == []


def assert_sizes_named(problem, config):
    """The fix of a problem gives the keys of its field with their values in `config`."""
    for key in problem.field.split(", "):
        value = getattr(config, key.removeprefix("model."))
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert f"{key}={text}" in problem.fix
