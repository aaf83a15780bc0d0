import pytest
import torch
from weight_files import TINY, assert_sizes_named, state_of

from maskperf.errors import describe_problems
from maskperf.model.weight_problems import model_problems, sizes_of, tensor_problems


def problems_between(found, wanted):
    return model_problems(found, wanted, file="a.safetensors", fix="Take another file.")


def test_the_sizes_of_a_model_are_read_from_its_tensors():
    assert sizes_of(state_of(stage_blocks=(1, 2, 1, 1), mask_head_convs=2)) == {
        "model.stem_channels": "4",
        "model.fpn_channels": "4",
        "model.box_head_channels": "4",
        "model.mask_head_channels": "4",
        "model.num_classes": "3",
        "model.stage_blocks": "1,2,1,1",
        "model.stage_channels": "8,16,32,64",
        "model.mask_head_convs": "2",
    }
    assert sizes_of({}) == {}


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"num_classes": 81}, "model.num_classes"),
        ({"num_classes": 2}, "model.num_classes"),
        ({"stem_channels": 8}, "model.stem_channels"),
        ({"stage_channels": (16, 16, 32, 64)}, "model.stage_channels"),
        ({"stage_channels": (16, 24, 32, 48)}, "model.stage_channels"),
        ({"stage_blocks": (3, 4, 6, 3)}, "model.stage_blocks"),
        ({"fpn_channels": 8}, "model.fpn_channels"),
        ({"box_head_channels": 8}, "model.box_head_channels"),
        ({"mask_head_channels": 8}, "model.mask_head_channels"),
        ({"mask_head_convs": 4}, "model.mask_head_convs"),
        ({"num_classes": 9, "stem_channels": 8}, "model.stem_channels, model.num_classes"),
        ({"stem_channels": 8, "stage_channels": (16, 32, 64, 128)}, "model.stem_channels, model.stage_channels"),
    ],
)
def test_a_model_of_other_sizes_is_one_problem_that_names_its_keys(changes, keys):
    found, wanted = state_of(), state_of(**changes)
    (problem,) = problems_between(found, wanted)
    assert problem.field == keys
    assert_sizes_named(problem, TINY)
    unfit = [name for name in wanted if name not in found or found[name].shape != wanted[name].shape]
    unfit += [name for name in found if name not in wanted]
    assert problem.where.startswith(f"{len(unfit)} tensors ({unfit[0]}, ")
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
    wanted = state_of(stage_blocks=(1, 2, 1, 1), mask_head_convs=2)
    (problem,) = problems_between({other: wanted[other] for other in wanted if other != name}, wanted)
    assert (problem.where, problem.field, problem.value) == (f"tensor {name}", "name", "missing")


def test_each_kind_of_problem_comes_once_with_its_count_and_first_names():
    wanted = {f"a{index}": torch.ones(2) for index in range(20)}
    found = {name: torch.ones(2) for name in wanted if name > "a13"}
    found |= {f"b{index}": torch.ones(3) for index in range(5)}
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
