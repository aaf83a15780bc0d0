"""Files of every family: recognised, read into our model, and written back bit for bit."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden_reference import GOLDEN_FOLDER
from small_weights import write_small_weights
from weight_files import TINY, assert_equal, problems_of

from maskperf.cli.main import main
from maskperf.errors import ConfigError
from maskperf.model.conventions import CONVENTIONS
from maskperf.model.families import FAMILY, STEM, current_names, family_of, from_maskperf
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.model.weights import load_model_weights
from maskperf.weights.open import open_weights
from maskperf.weights.write import write_weights

FOREIGN = ("torchvision", "detectron2", "mmdetection", "detectron")
# As the programs write them; each family's own table of names must give these.
PUBLISHED = {
    "detectron2": (
        "backbone.bottom_up.stem.conv1.weight", "backbone.bottom_up.stem.conv1.norm.running_var",
        "backbone.bottom_up.res4.0.conv2.norm.bias", "backbone.bottom_up.res2.0.shortcut.norm.weight",
        "backbone.bottom_up.res5.0.shortcut.weight", "backbone.fpn_lateral2.bias", "backbone.fpn_output5.weight",
        "proposal_generator.rpn_head.conv.weight", "proposal_generator.rpn_head.objectness_logits.bias",
        "proposal_generator.rpn_head.anchor_deltas.weight", "roi_heads.box_head.fc1.weight",
        "roi_heads.box_head.fc2.bias", "roi_heads.box_predictor.cls_score.weight",
        "roi_heads.box_predictor.bbox_pred.bias", "roi_heads.mask_head.mask_fcn1.weight",
        "roi_heads.mask_head.deconv.weight", "roi_heads.mask_head.predictor.bias",
    ),
    "mmdetection": (
        "backbone.conv1.weight", "backbone.bn1.running_mean", "backbone.layer3.0.bn2.weight",
        "backbone.layer1.0.downsample.1.running_var", "neck.lateral_convs.0.conv.bias",
        "neck.fpn_convs.3.conv.weight", "rpn_head.rpn_conv.weight", "rpn_head.rpn_cls.bias", "rpn_head.rpn_reg.weight",
        "roi_head.bbox_head.shared_fcs.0.weight", "roi_head.bbox_head.shared_fcs.1.bias",
        "roi_head.bbox_head.fc_cls.weight", "roi_head.bbox_head.fc_reg.bias", "roi_head.mask_head.convs.0.conv.weight",
        "roi_head.mask_head.upsample.weight", "roi_head.mask_head.conv_logits.bias",
    ),
    "detectron": (
        "conv1_w", "res_conv1_bn_s", "res4_0_branch2b_w", "res5_0_branch2c_bn_b", "res2_0_branch1_w",
        "res3_0_branch1_bn_s", "fpn_inner_res5_2_sum_w", "fpn_inner_res4_5_sum_lateral_b", "fpn_res2_2_sum_w",
        "conv_rpn_fpn2_b", "rpn_cls_logits_fpn2_w", "rpn_bbox_pred_fpn2_b", "fc6_w", "fc7_b", "cls_score_w",
        "bbox_pred_b", "_[mask]_fcn1_w", "conv5_mask_w", "mask_fcn_logits_b",
    ),
}  # fmt: skip


def own_state(conventions):
    torch.manual_seed(1)
    state = MaskRcnn(replace(TINY, conventions=conventions)).state_dict()
    return {name: torch.rand_like(tensor) for name, tensor in state.items()}


def state_in_file(name):
    state = from_maskperf(own_state(FAMILY[name].conventions), FAMILY[name])
    return {key: tensor for key, tensor in state.items() if "running" not in key or name != "detectron"}


def file_of(folder, name):
    """Write a file as the family's program does, and return its path."""
    state = state_in_file(name)
    if name == "detectron":
        path = folder / "model.pkl"
        arrays = {key: tensor.numpy() for key, tensor in state.items()}
        extra = {"conv1_b": np.zeros(4, np.float32), "fc1000_w": np.ones((2, 3)), "fc6_w_momentum": np.ones(3)}
        path.write_bytes(pickle.dumps({"blobs": {**arrays, **extra}, "cfg": "text"}, protocol=2))
        return path
    path = folder / "model.pth"
    counters = {"backbone.body.bn1.num_batches_tracked": torch.tensor(3)} if name == "torchvision" else {}
    content = {"torchvision": {**state, **counters}, "detectron2": {"model": state, "iteration": 7},
               "mmdetection": {"meta": {"CLASSES": ("cat", "dog")}, "state_dict": state}}  # fmt: skip
    torch.save(content[name], path)
    return path


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_are_those_that_the_program_writes(name):
    assert [wanted for wanted in PUBLISHED[name] if wanted not in state_in_file(name)] == []


def test_names_of_torchvision_are_those_of_its_own_model():
    golden = np.load(GOLDEN_FOLDER / "torchvision_v1.npz")
    state = {name: torch.zeros(1) for name in golden["names"].tolist()}
    wanted = current_names(state, FAMILY["torchvision"])
    model = MaskRcnn(replace(TINY, stage_blocks=(3, 4, 6, 3), mask_head_convs=4, conventions="torchvision"))
    assert set(from_maskperf(model.state_dict(), FAMILY["torchvision"])) == set(wanted)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_is_recognised_and_becomes_our_model(name, tmp_path):
    path, family = file_of(tmp_path, name), FAMILY[name]
    opened = open_weights(path)
    assert opened.config.model.conventions == family.conventions
    assert opened.config.data.pixel_means_bgr == CONVENTIONS[family.conventions].means_bgr
    assert opened.config.data.resize == CONVENTIONS[family.conventions].resize
    assert (opened.config.model.num_classes, opened.config.model.stage_blocks) == (3, (1, 1, 1, 1))
    wanted = own_state(family.conventions)
    for key in wanted:
        if name == "detectron" and "running" in key:
            wanted[key] = torch.full_like(wanted[key], float(key.endswith("var")))
        if family.rules.background == "last" and ("bbox_pred" in key or "mask_fcn_logits" in key) and "rpn" not in key:
            wanted[key][: 4 if "bbox" in key else 1] = 0  # a background's own row was never there
    assert_equal(opened.state, wanted)
    MaskRcnn(opened.config.model).load_state_dict(opened.state)
    assert opened.categories == ({1: "cat", 2: "dog"} if name == "mmdetection" else {})


def test_channels_and_background_are_where_maskperf_has_them(tmp_path):
    state = state_in_file("mmdetection")
    opened = open_weights(file_of(tmp_path, "mmdetection"))
    assert torch.equal(opened.state[STEM], state["backbone.conv1.weight"][:, [2, 1, 0]])
    scores = opened.state["roi_heads.box.predictor.cls_score.bias"]
    assert scores.tolist() == state["roi_head.bbox_head.fc_cls.bias"][[2, 0, 1]].tolist()
    boxes = opened.state["roi_heads.box.predictor.bbox_pred.weight"]
    assert torch.equal(boxes[4:], state["roi_head.bbox_head.fc_reg.weight"])


@pytest.mark.parametrize("form", ["torchvision", "detectron2"])
def test_what_is_written_is_what_was_read(form, tmp_path):
    first = file_of(tmp_path, form)
    own, again = tmp_path / "own.safetensors", tmp_path / "again.pth"
    write_weights(open_weights(first), "maskperf", own)
    assert write_weights(open_weights(own), form, again) == []
    content = torch.load(again, weights_only=True)
    assert_equal(content["model"] if form == "detectron2" else content, state_in_file(form))


def test_old_names_of_torchvision_are_known(tmp_path):
    state = state_in_file("torchvision")
    old = {
        name.replace("inner_blocks.0.0.", "inner_blocks.0.")
        .replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        .replace("mask_head.0.0.", "mask_head.mask_fcn1."): tensor
        for name, tensor in state.items()
    }
    assert set(old) - set(state)
    assert_equal(current_names(old, FAMILY["torchvision"]), state)


def test_a_model_of_other_conventions_is_refused(tmp_path):
    path = file_of(tmp_path, "torchvision")
    (problem,) = problems_of(load_model_weights, MaskRcnn(TINY), path)
    assert (
        problem.field == "model.conventions" and "model.conventions=torchvision data.resize=torchvision" in problem.fix
    )
    own = tmp_path / "own.safetensors"
    write_weights(open_weights(path), "maskperf", own)
    assert problems_of(load_model_weights, MaskRcnn(TINY), own)[0].field == "model.conventions"
    load_model_weights(MaskRcnn(replace(TINY, conventions="torchvision")), own)


def test_a_network_that_the_other_program_lacks_is_not_written(tmp_path):
    opened = open_weights(file_of(tmp_path, "detectron2"))
    with pytest.raises(ConfigError, match="strided_kernel"):
        write_weights(opened, "torchvision", tmp_path / "out.pth")
    opened = open_weights(file_of(tmp_path, "torchvision"))
    (notice,) = write_weights(opened, "detectron2", tmp_path / "out.pth")
    assert "strided_kernel 3 (there 1)" in notice and "deviations_bgr" in notice


def test_no_code_of_a_pickle_runs(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": Evil()}}))
    (problem,) = problems_of(open_weights, path)
    assert problem.value == "builtins.print"
    torch.save({"state_dict": {"a": Evil()}}, tmp_path / "model.pth")
    assert problems_of(open_weights, tmp_path / "model.pth")[0].field == "content"


def test_a_style_that_the_file_notes_is_used_and_a_wrong_one_refused(tmp_path):
    path = tmp_path / "model.pth"
    content = {
        "meta": {"cfg": "backbone=dict(type='ResNet', style='caffe')"},
        "state_dict": state_in_file("mmdetection"),
    }
    torch.save(content, path)
    assert open_weights(path).config.model.conventions == "mmdetection_caffe"
    assert open_weights(path, conventions="mmdetection").config.model.conventions == "mmdetection"
    with pytest.raises(ConfigError, match="mmdetection_caffe"):
        open_weights(path, conventions="detectron2")


def test_the_command_says_what_a_file_is_and_writes_it(tmp_path, capsys):
    path, names = file_of(tmp_path, "detectron2"), tmp_path / "names.txt"
    names.write_text("left\nright\n", encoding="utf-8")
    assert main(["weights", str(path)]) == 0
    text = capsys.readouterr().out
    assert "detectron2" in text and "3 with the background, which is last" in text and "as a whole" in text
    own = str(tmp_path / "own.safetensors")
    assert main(["weights", str(path), "--names", str(names), "--to", "maskperf", own]) == 0
    assert open_weights(own).categories == {1: "left", 2: "right"}
    assert main(["weights", str(path), "--to", "maskperf", own]) != 0  # it exists
    names.write_text("left\n", encoding="utf-8")
    assert main(["weights", str(path), "--names", str(names)]) == 3


def test_all_parts_of_a_model_with_trainable_batch_norms_are_complete(tmp_path, capsys):
    path, config = write_small_weights(tmp_path, images=1)
    assert config.model.batch_norm == "trainable" and main(["weights", str(path)]) == 0
    assert "backbone 100%, FPN 100%, RPN 100%, box head 100%, mask head 100%" in capsys.readouterr().out


def test_a_part_of_a_model_is_described_and_not_opened(tmp_path, capsys):
    state = {name: tensor for name, tensor in state_in_file("detectron2").items() if "mask_head" not in name}
    path = tmp_path / "faster.pth"
    torch.save({"model": state}, path)
    assert main(["weights", str(path)]) == 3
    text = capsys.readouterr().out
    assert "not as a whole; complete are: backbone, FPN, RPN, box head" in text and "mask head 0%" in text


def test_names_of_nothing_known_are_of_no_family(tmp_path):
    assert family_of(["model.0.conv.weight"]) is None
    torch.save({"model.0.conv.weight": torch.zeros(1)}, tmp_path / "yolo.pth")
    (problem,) = problems_of(open_weights, tmp_path / "yolo.pth")
    assert problem.value == "model.0.conv.weight"
