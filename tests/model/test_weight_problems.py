from dataclasses import replace

import pytest
import torch

from maskperf.config import ModelConfig
from maskperf.errors import describe_problems
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.model.weight_problems import model_problems, sizes_of, tensor_problems

SMALL = ModelConfig(
    num_classes=3,
    stage_blocks=(1, 2, 1, 1),
    stem_channels=4,
    stage_channels=(8, 16, 32, 64),
    fpn_channels=4,
    box_head_channels=4,
    mask_head_channels=4,
    mask_head_convs=2,
)


def state_of(**changes):
    return MaskRcnn(replace(SMALL, **changes)).state_dict()


def shape_in(state):
    return lambda name: tuple(state[name].shape) if name in state else None


def problems_between(found, wanted):
    return model_problems(found, wanted, file="a.safetensors", fix="Take another file.")


def test_the_sizes_of_a_model_are_read_from_its_tensors():
    assert sizes_of(shape_in(state_of())) == {
        "model.stem_channels": "4",
        "model.fpn_channels": "4",
        "model.box_head_channels": "4",
        "model.mask_head_channels": "4",
        "model.num_classes": "3",
        "model.stage_blocks": "1,2,1,1",
        "model.stage_channels": "8,16,32,64",
        "model.mask_head_convs": "2",
    }
    assert sizes_of(shape_in({})) == {}


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"num_classes": 81}, ["num_classes"]),
        ({"num_classes": 2}, ["num_classes"]),
        ({"stem_channels": 8}, ["stem_channels"]),
        ({"stage_channels": (16, 16, 32, 64)}, ["stage_channels"]),
        ({"stage_channels": (16, 24, 32, 48)}, ["stage_channels"]),
        ({"stage_blocks": (3, 4, 6, 3)}, ["stage_blocks"]),
        ({"fpn_channels": 8}, ["fpn_channels"]),
        ({"box_head_channels": 8}, ["box_head_channels"]),
        ({"mask_head_channels": 8}, ["mask_head_channels"]),
        ({"mask_head_convs": 4}, ["mask_head_convs"]),
        ({"num_classes": 9, "stem_channels": 8}, ["stem_channels", "num_classes"]),
    ],
)
def test_a_model_of_other_sizes_is_one_problem_that_names_its_keys(changes, keys):
    found, wanted = state_of(**changes), state_of()
    (problem,) = problems_between(found, wanted)
    assert problem.field == ", ".join(f"model.{key}" for key in keys)
    unfit = [name for name in wanted if name not in found or found[name].shape != wanted[name].shape]
    unfit += [name for name in found if name not in wanted]
    assert problem.where.startswith(f"{len(unfit)} tensors ({unfit[0]}, ")
    for key in keys:
        value = changes[key]
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert f"model.{key}={text}" in problem.fix
    assert len(describe_problems([problem]).splitlines()) == 1


def test_numbers_that_are_not_finite_are_named_beside_other_sizes():
    found = state_of(num_classes=5)
    found["backbone.body.stem.conv1.weight"][0, 0, 0, 0] = torch.nan
    sizes, values = problems_between(found, state_of())
    assert sizes.field == "model.num_classes"
    assert (values.where, values.value) == ("tensor backbone.body.stem.conv1.weight", "1 of 588")


@pytest.mark.parametrize(
    "name",
    [
        "backbone.body.layer2.1.conv1.weight",
        "backbone.body.layer1.0.conv3.weight",
        "backbone.body.stem.conv1.weight",
        "roi_heads.mask.feature_extractor.mask_fcn2.weight",
        "roi_heads.box.predictor.cls_score.weight",
        "rpn.head.conv.bias",
    ],
)
def test_one_lost_tensor_is_not_taken_for_another_size(name):
    found = state_of()
    del found[name]
    (problem,) = problems_between(found, state_of())
    assert (problem.where, problem.field, problem.value) == (f"tensor {name}", "name", "missing")


def test_each_kind_of_problem_comes_once_with_its_count_and_first_names():
    wanted = {f"a{place}": torch.ones(2) for place in range(20)}
    found = {name: torch.ones(2) for name in wanted if name > "a13"} | {
        f"b{place}": torch.ones(3) for place in range(5)
    }
    found["a4"], found["a5"] = torch.ones(3), torch.ones(4)
    found["a6"], found["a7"] = torch.tensor([1.0, torch.nan]), torch.tensor([torch.inf, torch.nan])
    problems = tensor_problems(found, wanted, file="a.pth", fix="Take another file.")
    assert [(problem.where, problem.field, problem.value) for problem in problems] == [
        ("6 tensors (a0, a1, a10, ...)", "name", "missing"),
        ("5 tensors (b0, b1, b2, ...)", "name", "shape (3,), (3,), (3,), ..."),
        ("2 tensors (a4, a5)", "shape", "(3,), (4,)"),
        ("2 tensors (a6, a7)", "values", "1 of 2, 2 of 2"),
    ]
    assert tensor_problems(wanted, wanted, file="a.pth", fix="") == []
