"""The families of weight files: recognised by the names of their tensors, and turned into maskperf's names and orders.

Each family has one function from maskperf's name of a tensor to its own; reading and writing both use it. What differs
beyond names: where the background's rows are, the order of the first convolution's channels, and, in torchvision's v2,
batch norms outside of the backbone, which become a part of the convolution before them.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from maskperf.model.conventions import CONVENTIONS, Conventions
from maskperf.model.weight_problems import BODY

STEM = "backbone.body.stem.conv1.weight"
COUNTER_SUFFIX = "num_batches_tracked"  # of trainable batch norms; frozen ones have none
# Tensors with a row (boxes: four rows) for each class.
BOX_ROWS = ("roi_heads.box.predictor.bbox_pred.weight", "roi_heads.box.predictor.bbox_pred.bias")
SCORE_ROWS = ("roi_heads.box.predictor.cls_score.weight", "roi_heads.box.predictor.cls_score.bias")
MASK_ROWS = ("roi_heads.mask.predictor.mask_fcn_logits.weight", "roi_heads.mask.predictor.mask_fcn_logits.bias")
PARTS = {  # by the beginnings of maskperf's names
    "backbone": BODY,
    "FPN": "backbone.fpn.",
    "RPN": "rpn.",
    "box head": "roi_heads.box.",
    "mask head": "roi_heads.mask.",
}
NORM_PARTS = ("weight", "bias", "running_mean", "running_var")

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Family:
    """One kind of file."""

    name: str
    title: str
    signature: str  # a regular expression that one of the names of such a file matches as a whole
    renames: Rules = ()  # from maskperf's names to those in the file
    variants: tuple[str, ...] = ()  # what else its files may mean, where nothing in them says so

    @property
    def conventions(self) -> str:
        """What files of this family mean, where nothing in them says otherwise."""
        return self.name if self.name in CONVENTIONS else "reference"

    @property
    def rules(self) -> Conventions:
        return CONVENTIONS[self.conventions]

    def name_in_file(self, name: str) -> str:
        return _renamed(name, self.renames)


def _renamed(name: str, rules: Rules) -> str:
    """Return the name after each (pattern, replacement) in turn; `{n+1}` in a replacement is the number plus one."""
    for pattern, replacement in rules:
        match = re.search(pattern, name)
        if match is not None:
            name = name[: match.start()] + _filled(match, replacement) + name[match.end() :]
    return name


def _filled(match: re.Match, text: str) -> str:
    text = re.sub(r"\{n([+-]\d)\}", lambda mark: str(int(match["n"]) + int(mark[1])), text)
    return match.expand(text)


_TORCHVISION: Rules = (
    (r"^backbone\.body\.stem\.", "backbone.body."),
    (r"fpn\.fpn_inner(?P<n>\d)\.", r"fpn.inner_blocks.{n-1}.0."),
    (r"fpn\.fpn_layer(?P<n>\d)\.", r"fpn.layer_blocks.{n-1}.0."),
    (r"^rpn\.head\.conv\.", "rpn.head.conv.0.0."),
    (r"^rpn\.head\.conv2\.", "rpn.head.conv.1.0."),
    (r"^roi_heads\.box\.feature_extractor\.", "roi_heads.box_head."),
    (r"^roi_heads\.mask\.feature_extractor\.mask_fcn(?P<n>\d+)\.", r"roi_heads.mask_head.{n-1}.0."),
    (r"^roi_heads\.(box|mask)\.predictor\.", r"roi_heads.\1_predictor."),
)
_TORCHVISION_V2: Rules = (
    *_TORCHVISION,
    (r"^roi_heads\.box_head\.conv(?P<n>\d)\.", r"roi_heads.box_head.{n-1}.0."),
    (r"^roi_heads\.box_head\.fc6\.", "roi_heads.box_head.5."),
)
_DETECTRON2: Rules = (
    (r"^backbone\.body\.stem\.bn1\.", "backbone.bottom_up.stem.conv1.norm."),
    (r"^backbone\.body\.stem\.", "backbone.bottom_up.stem."),
    (r"^backbone\.body\.layer(?P<n>\d)\.", r"backbone.bottom_up.res{n+1}."),
    (r"^(backbone\.bottom_up\.res.*)\.bn(\d)\.", r"\1.conv\2.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"^backbone\.fpn\.fpn_inner(?P<n>\d)\.", r"backbone.fpn_lateral{n+1}."),
    (r"^backbone\.fpn\.fpn_layer(?P<n>\d)\.", r"backbone.fpn_output{n+1}."),
    (r"^rpn\.head\.cls_logits\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"^rpn\.head\.bbox_pred\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"^rpn\.head\.", "proposal_generator.rpn_head."),
    (r"^roi_heads\.box\.feature_extractor\.fc(?P<n>\d)\.", r"roi_heads.box_head.fc{n-5}."),
    (r"^roi_heads\.box\.predictor\.", "roi_heads.box_predictor."),
    (r"^roi_heads\.mask\.feature_extractor\.", "roi_heads.mask_head."),
    (r"^roi_heads\.mask\.predictor\.conv5_mask\.", "roi_heads.mask_head.deconv."),
    (r"^roi_heads\.mask\.predictor\.mask_fcn_logits\.", "roi_heads.mask_head.predictor."),
)
_MMDETECTION: Rules = (
    (r"^backbone\.body\.(stem\.)?", "backbone."),
    (r"^backbone\.fpn\.fpn_inner(?P<n>\d)\.", r"neck.lateral_convs.{n-1}.conv."),
    (r"^backbone\.fpn\.fpn_layer(?P<n>\d)\.", r"neck.fpn_convs.{n-1}.conv."),
    (r"^rpn\.head\.conv\.", "rpn_head.rpn_conv."),
    (r"^rpn\.head\.cls_logits\.", "rpn_head.rpn_cls."),
    (r"^rpn\.head\.bbox_pred\.", "rpn_head.rpn_reg."),
    (r"^roi_heads\.box\.feature_extractor\.fc(?P<n>\d)\.", r"roi_head.bbox_head.shared_fcs.{n-6}."),
    (r"^roi_heads\.box\.predictor\.cls_score\.", "roi_head.bbox_head.fc_cls."),
    (r"^roi_heads\.box\.predictor\.bbox_pred\.", "roi_head.bbox_head.fc_reg."),
    (r"^roi_heads\.mask\.feature_extractor\.mask_fcn(?P<n>\d+)\.", r"roi_head.mask_head.convs.{n-1}.conv."),
    (r"^roi_heads\.mask\.predictor\.conv5_mask\.", "roi_head.mask_head.upsample."),
    (r"^roi_heads\.mask\.predictor\.mask_fcn_logits\.", "roi_head.mask_head.conv_logits."),
)
_LAST_BLOCKS = {1: "res2_2", 2: "res3_3", 3: "res4_5", 4: "res5_2"}  # of the stages of a ResNet-50
_DETECTRON: Rules = (  # Caffe2: `_w` and `_b`, batch norms folded into `_bn_s` and `_bn_b`
    (r"^backbone\.body\.stem\.bn1\.weight$", "res_conv1_bn_s"),
    (r"^backbone\.body\.stem\.bn1\.bias$", "res_conv1_bn_b"),
    (r"^backbone\.body\.stem\.", ""),
    (r"^backbone\.body\.layer(?P<n>\d)\.(\d+)\.", r"res{n+1}_\2_"),
    (r"_downsample\.1\.weight$", "_branch1_bn_s"),
    (r"_downsample\.1\.bias$", "_branch1_bn_b"),
    (r"_downsample\.0\.", "_branch1."),
    *((rf"_(conv|bn){number}\.", rf"_branch2{letter}.\1.") for number, letter in enumerate("abc", start=1)),
    (r"\.bn\.weight$", "_bn_s"),
    (r"\.bn\.bias$", "_bn_b"),
    (r"\.conv\.", "."),
    (r"^backbone\.fpn\.fpn_inner4\.", "fpn_inner_res5_2_sum."),
    *((rf"^backbone\.fpn\.fpn_inner{n}\.", f"fpn_inner_{_LAST_BLOCKS[n]}_sum_lateral.") for n in (1, 2, 3)),
    *((rf"^backbone\.fpn\.fpn_layer{n}\.", f"fpn_{block}_sum.") for n, block in _LAST_BLOCKS.items()),
    (r"^rpn\.head\.(weight|bias)$", r"conv_rpn_fpn2.\1"),  # `.conv` is gone
    (r"^rpn\.head\.(cls_logits|bbox_pred)\.", r"rpn_\1_fpn2."),
    (r"^roi_heads\.(box|mask)\.(feature_extractor|predictor)\.", ""),
    (r"^mask_fcn(\d)\.", r"_[mask]_fcn\1."),
    (r"\.weight$", "_w"),
    (r"\.bias$", "_b"),
)
FAMILIES = (
    Family(
        "torchvision_v2", "torchvision maskrcnn_resnet50_fpn_v2", r"roi_heads\.box_head\.5\.weight", _TORCHVISION_V2
    ),
    Family(
        name="torchvision",
        title="torchvision maskrcnn_resnet50_fpn",
        signature=r"roi_heads\.box_head\.fc6\.weight",
        renames=_TORCHVISION,
        variants=("torchvision_coco_v1",),
    ),
    Family("detectron2", "detectron2", r"(proposal_generator\.rpn_head|backbone\.bottom_up)\..*", _DETECTRON2),
    Family(
        name="mmdetection",
        title="mmdetection",
        signature=r"(rpn_head\.rpn_conv|roi_head\.bbox_head\.fc_cls)\.weight",
        renames=_MMDETECTION,
        variants=("mmdetection_caffe",),
    ),
    Family(
        name="reference",
        title="maskrcnn-benchmark, such as MLPerf's reference",
        signature=r"(roi_heads\.box\.feature_extractor\.fc6|backbone\.body\.stem\.conv1)\.weight",
    ),
    Family("detectron", "Detectron (Caffe2)", r"res2_0_branch2a_w", _DETECTRON),
)
FAMILY = {family.name: family for family in FAMILIES}
OWN, DETECTRON = FAMILY["reference"], FAMILY["detectron"]


def family_of(names: Iterable[str]) -> Family | None:
    """Return the family that tensors of these names belong to."""
    known = list(names)
    return next((one for one in FAMILIES if any(re.fullmatch(one.signature, name) for name in known)), None)


def current_names(state: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Return the state under the names of the family's present versions, without what holds no weights."""
    old: Rules = ()
    if family.name.startswith("torchvision"):
        old = (
            (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$", r"\1.0.\2"),
            (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
            (r"^roi_heads\.mask_head\.mask_fcn(?P<n>\d)\.", r"roi_heads.mask_head.{n-1}.0."),
        )
    ignored = (COUNTER_SUFFIX, "pixel_mean", "pixel_std")
    return {
        _renamed(name, old): tensor
        for name, tensor in state.items()
        if not name.endswith(ignored) and ".anchor_generator." not in name and not name.startswith("fc1000_")
    }


def to_maskperf(state: Mapping[str, Tensor], family: Family, wanted: Iterable[str]) -> dict[str, Tensor]:
    """Return the family's state under maskperf's names, the background first and channels in the order B, G, R.

    Tensors that the file lacks are left out; those it has beyond `wanted` keep their own names.
    """
    rest, found = dict(state), {}
    for name in wanted:
        source = family.name_in_file(name)
        if source in rest:
            found[name] = rest.pop(source)
        elif family.name == "detectron" and name.endswith((".running_mean", ".running_var")):
            like = state.get(family.name_in_file(re.sub(r"running_\w+$", "bias", name)))
            if like is not None:
                found[name] = torch.ones_like(like) if name.endswith("var") else torch.zeros_like(like)
    if family.name == "detectron":  # the converter's convolution biases, zeros mostly; the model has none
        for name in [name for name in rest if re.fullmatch(r"(conv1|res\d_\d+_branch\d[abc]?)_b", name)]:
            rest.pop(name)
    if family.rules.is_rgb and STEM in found:
        found[STEM] = found[STEM].flip(1)
    if family.rules.background == "last":
        found.update(_background_first(found))
    return {**found, **rest}


def from_maskperf(state: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Return maskperf's state under the family's names and in its orders, without counters of batch norms."""
    found = {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER_SUFFIX)}
    if family.rules.is_rgb and STEM in found:
        found[STEM] = found[STEM].flip(1)
    if family.rules.background == "last":
        for name in SCORE_ROWS:
            found[name] = torch.cat([found[name][1:], found[name][:1]])
        for name in (*BOX_ROWS, *MASK_ROWS):
            found[name] = found[name][4 if name in BOX_ROWS else 1 :]
    return {family.name_in_file(name): tensor.contiguous() for name, tensor in found.items()}


def _background_first(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with rows of classes, the background's first: zeros where the family has none for it."""
    changed = {name: torch.cat([found[name][-1:], found[name][:-1]]) for name in SCORE_ROWS if name in found}
    for name in (*BOX_ROWS, *MASK_ROWS):
        if name in found:
            rows = found[name].new_zeros(4 if name in BOX_ROWS else 1, *found[name].shape[1:])
            changed[name] = torch.cat([rows, found[name]])
    return changed


def without_head_norms(state: Mapping[str, Tensor], epsilon: float) -> dict[str, Tensor]:
    """Return a state of torchvision's v2 in which the batch norms outside the backbone are in their convolutions.

    `x.0.weight` with `x.1.weight`, `x.1.running_var` and so on becomes `x.0.weight` and `x.0.bias`: the same numbers up
    to rounding, as these batch norms use their running statistics.
    """
    folded = dict(state)
    for name in state:
        match = re.fullmatch(r"(?!backbone\.body\.)(.+)\.1\.running_var", name)
        if match is None:
            continue
        layer = match[1]
        weight, bias, mean, variance = (folded.pop(f"{layer}.1.{part}").double() for part in NORM_PARTS)
        scale = weight / (variance + epsilon).sqrt()
        conv = folded[f"{layer}.0.weight"]
        folded[f"{layer}.0.weight"] = (conv.double() * scale[:, None, None, None]).to(conv.dtype)
        folded[f"{layer}.0.bias"] = (bias - mean * scale).to(conv.dtype)
    return folded


def parts_of(state: Mapping[str, Tensor], family: Family, wanted: Iterable[str]) -> dict[str, float]:
    """Return for each part of the network how much of it the state has, 0 to 1."""
    names = list(wanted)
    owned = {part: [name for name in names if name.startswith(prefix)] for part, prefix in PARTS.items()}
    return {
        part: sum(family.name_in_file(name) in state for name in own) / max(len(own), 1) for part, own in owned.items()
    }
