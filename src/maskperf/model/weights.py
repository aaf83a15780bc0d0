"""Files with the weights of a whole model, and the checks that every weight file passes."""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from maskperf.errors import Problem
from maskperf.files import replace_file
from maskperf.model.families import (
    COUNTER_SUFFIX,
    OWN,
    Family,
    current_names,
    family_of,
    to_maskperf,
    without_head_norms,
)
from maskperf.model.mask_rcnn import STRIDES, MaskRcnn
from maskperf.model.pickles import read_detectron_pickle
from maskperf.model.weight_problems import (
    BOX_HEAD,
    DAMAGED_FIX,
    MASK_HEAD,
    damage_named,
    file_error,
    model_problems,
    named_tensors,
    raise_any,
    tensor_problems,
)
from maskperf.ops.anchors import cell_anchors

MODEL_FORMAT = "maskperf-model"
DIGEST_KEY = "tensors_sha256"
CELL_ANCHORS_PREFIX = "rpn.anchor_generator.cell_anchors."
PREDICTORS = (f"{BOX_HEAD}predictor.", f"{MASK_HEAD}predictor.mask_fcn_logits.")  # one output or more a class
STATE_KEYS = ("model", "state_dict")  # under which a checkpoint has its weights


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """What a file holds, under its own names."""

    path: Path
    state: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)  # of a .safetensors
    notes: dict[str, Any] = field(default_factory=dict)  # "meta" of mmdetection

    @property
    def family(self) -> Family | None:
        return family_of(self.state)

    @property
    def conventions(self) -> str:
        """Whose conventions the weights have, as far as the file says."""
        if "config" in self.metadata:
            return json.loads(json.loads(self.metadata["config"]))["model"].get("conventions", "reference")
        if self.family is None:
            return OWN.conventions
        if self.family.name == "mmdetection" and "'caffe'" in str(self.notes.get("cfg", "")):
            return "mmdetection_caffe"
        return self.family.conventions

    def for_model(
        self, wanted: Mapping[str, Tensor], kept: Collection[str] = ()
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], list[str]]:
        """Return what the file has for a model of the state `wanted`, under maskperf's names, but for names in `kept`.

        Besides: what the model needs of it, the cell anchors, and the names of counters of batch norms that the model
        does not have. Counters may be missing. What is beyond the model keeps its own name.
        """
        state = self._in_maskperf_names(name for name in wanted if not name.endswith(COUNTER_SUFFIX))
        anchors = {name: tensor for name, tensor in state.items() if name.startswith(CELL_ANCHORS_PREFIX)}
        dropped = [name for name in state if name.endswith(COUNTER_SUFFIX) and name not in wanted]
        found = {name: tensor for name, tensor in state.items() if name not in {*anchors, *dropped, *kept}}
        required = {
            name: tensor
            for name, tensor in wanted.items()
            if name not in kept and (name in found or not name.endswith(COUNTER_SUFFIX))
        }
        return found, required, anchors, dropped

    def _in_maskperf_names(self, wanted: Iterable[str]) -> dict[str, Tensor]:
        """Return the state under maskperf's names, as far as it is there; what is beyond keeps its own."""
        family = self.family
        if family is None or family is OWN:
            return self.state
        state = current_names(self.state, family)
        if family.rules.box_head_convs:
            state = without_head_norms(state, family.rules.batch_norm_epsilon)
        return to_maskperf(state, family, wanted)


def load_model_weights(model: MaskRcnn, path: str | Path, *, reset_predictors: bool = False) -> list[str]:
    """Return notices for the user, after every weight of `model` was replaced by the file's.

    Takes the files of all families (see `families`). The model is changed only if nothing at all is wrong. With
    `reset_predictors` the last layers of box and mask head, which belong to the file's classes, stay as they are.

    Errors: DataError for missing, unexpected, wrongly shaped or non-finite tensors, one problem for each cause.
    """
    path = Path(path)
    file = read_weight_file(path)
    _require_conventions(file, model)
    wanted = model.state_dict()
    kept = tuple(name for name in wanted if reset_predictors and name.startswith(PREDICTORS))
    found, required, anchors, dropped = file.for_model(wanted, kept)
    fix = "Choose the settings of the section model that the file was made with, or another file."
    problems = model_problems(found, required, file=str(path), fix=fix) + _anchor_problems(model, anchors, str(path))
    raise_any(problems)
    model.load_state_dict(found, strict=False)
    notices = [f"{path}: {len(found)} tensors loaded"]
    if kept:
        notices.append(f"{path}: not taken over, as they belong to its classes: {', '.join(kept)}; these begin anew")
    if anchors:
        notices.append(f"{path}: {len(anchors)} tensors of cell anchors equal the model's")
    if dropped:
        notices.append(f"{path}: {len(dropped)} counters of trainable batch norms left out; the model has frozen ones")
    if any(name.endswith(COUNTER_SUFFIX) and name not in found for name in wanted):
        notices.append(f"{path}: has no counters of trainable batch norms; the model's are kept")
    return notices


def save_state(state: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, object]) -> None:
    """Write the state of a model as .safetensors, complete or not at all. Values of the metadata become JSON.

    Errors: StorageError when the file cannot be written.
    """
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    write_tensor_file(state, path, {**texts, "format": json.dumps(MODEL_FORMAT)})


def read_metadata(path: str | Path) -> dict[str, object]:
    """Return the metadata that a model was saved with, without reading its weights.

    Errors: DataError when a run did not write the file.
    """
    path = Path(path)
    metadata = read_header(path)
    if metadata.get("format") != json.dumps(MODEL_FORMAT):
        found = metadata.get("format", "none")
        raise file_error(path, "format", found, "is not a model file of this program.", "Give a file made by a run.")
    return {key: json.loads(text) for key, text in metadata.items() if key not in ("format", DIGEST_KEY)}


def save_reference_state(model: MaskRcnn, path: str | Path) -> None:
    """Write {"model": state dict} as the reference implementation reads it, cell anchors included.

    The reference's batch norms add no epsilon, so that of a trainable batch norm goes into its running variance.
    """
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(COUNTER_SUFFIX)}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            state[f"{name}.running_var"] = state[f"{name}.running_var"] + module.eps
    state.update(_model_cell_anchors(model))
    plain = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    replace_file(Path(path), lambda temporary: torch.save({"model": plain}, temporary))


def read_tensor_file(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a .safetensors file, on the CPU, and its metadata.

    Errors: DataError when the file is missing or damaged, or its tensors do not have the digest it was written with.
    """
    path = Path(path)
    metadata = read_header(path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    digest = metadata.pop(DIGEST_KEY, None)
    if digest is not None and digest != tensors_digest(tensors):
        raise file_error(path, DIGEST_KEY, digest, "the tensors were changed after they were written.", DAMAGED_FIX)
    return tensors, metadata


def read_header(path: Path) -> dict[str, str]:
    """Return the metadata of a .safetensors file."""
    with damage_named(path, "is not a whole .safetensors file"), safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def write_tensor_file(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write a .safetensors file with a digest of its tensors, complete or not at all."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    texts = {**metadata, DIGEST_KEY: tensors_digest(plain)}

    def write(temporary: Path) -> None:
        try:
            save_file(plain, temporary, metadata=texts)
        except (RuntimeError, SafetensorError) as error:
            raise OSError(str(error)) from error

    replace_file(Path(path), write)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_weight_file(path: str | Path) -> WeightFile:
    """Return the tensors of a .safetensors, a .pkl of Detectron or detectron2, or what torch.save wrote.

    No code from the file is run. Names may begin with "module.", which is left out.
    Errors: DataError when the file is missing or damaged, or holds anything but named tensors.
    """
    path = Path(path)
    metadata: dict[str, str] = {}
    notes: dict[str, Any] = {}
    if path.suffix == ".safetensors":
        state, metadata = read_tensor_file(path)
    elif path.suffix == ".pkl":
        arrays = read_detectron_pickle(path)
        with damage_named(path, "holds arrays that are no tensors"):
            state = {name: torch.from_numpy(values.copy()) for name, values in arrays.items()}
    else:
        state, notes = _read_torch_state(path)
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return WeightFile(path=path, state=plain, metadata=metadata, notes=notes)


def _read_torch_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with damage_named(path, "cannot be loaded as plain tensors"):
        content = torch.load(path, map_location="cpu", weights_only=True)
    state, notes = content, dict[str, Any]()
    if isinstance(content, Mapping):
        state = next((content[key] for key in STATE_KEYS if key in content), content)
        notes = content["meta"] if isinstance(content.get("meta"), dict) else {}
    if not isinstance(state, Mapping):
        problem = "holds neither a state dict nor a dictionary with the key model."
        raise file_error(path, "content", type(state).__name__, problem)
    foreign = [name for name, value in state.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if foreign:
        raise file_error(path, f"entry {foreign[0]}", type(state[foreign[0]]).__name__, "is not a named tensor.")
    return dict(state), notes


def _require_conventions(file: WeightFile, model: MaskRcnn) -> None:
    """Raise a DataError where a model with other conventions would take the weights for what they are not."""
    family, own = file.family, model.config.conventions
    allowed = {file.conventions}
    if "config" not in file.metadata and family is not None:
        allowed |= {family.conventions, *family.variants}
    if own in allowed or (file.path.suffix == ".safetensors" and "config" not in file.metadata and family is OWN):
        return  # a .safetensors without a configuration says nothing
    rules = model.conventions if family is None else family.rules
    problem = f"the weights mean boxes, anchors and pixels as {file.conventions} does, the model as {own} does."
    means = ",".join(f"{mean:g}" for mean in rules.means_bgr)
    fix = f"Set model.conventions={file.conventions} data.resize={rules.resize} data.pixel_means_bgr={means}."
    raise file_error(file.path, "model.conventions", own, problem, fix)


def _model_cell_anchors(model: MaskRcnn) -> dict[str, Tensor]:
    levels = zip(STRIDES, model.config.anchor_sizes, strict=True)
    ratios = model.config.anchor_ratios
    return {f"{CELL_ANCHORS_PREFIX}{i}": cell_anchors(stride, size, ratios) for i, (stride, size) in enumerate(levels)}


def _anchor_problems(model: MaskRcnn, anchors: Mapping[str, Tensor], file: str) -> list[Problem]:
    fix = "Set model.anchor_sizes and model.anchor_ratios to what the file was made with."
    table = _model_cell_anchors(model)
    wanted = {name: table[name] for name in anchors if name in table}
    problems = tensor_problems(anchors, wanted, file=file, fix=fix)
    others = [name for name, tensor in wanted.items() if anchors[name].shape == tensor.shape
              and not torch.equal(anchors[name].float(), tensor)]  # fmt: skip
    if others:
        name = others[0]
        message = f"the model's anchors of {name} are {wanted[name].tolist()}."
        where, value = named_tensors(others), str(anchors[name].tolist())
        problems.append(Problem(file=file, where=where, field="values", value=value, message=message, fix=fix))
    return problems
