"""The pretrained backbone: Detectron's R-50.pkl, a Python-2 pickle, read without running anything that is in it."""

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from maskperf.config import BACKBONE_MD5
from maskperf.errors import DataError, StorageError
from maskperf.model.families import COUNTER_SUFFIX, DETECTRON
from maskperf.model.pickles import WRONG_FILE_FIX, read_detectron_pickle
from maskperf.model.quantize import BACKBONE_FORMAT, load_stored_backbone, store_backbone
from maskperf.model.weight_problems import BODY, damage_named, model_problems, raise_any, tensor_problems
from maskperf.model.weights import read_header

FOLD_EPSILON = 1e-5  # of detectron2's file, whose batch norms are not folded
DIGEST_FIELD = "source_sha256"
CLASSIFIER_ARRAYS = {"fc1000_w", "fc1000_b"}
UNFOLDED_PARTS = ("gamma", "beta", "running_mean", "running_var")


def convert_names(
    blobs: Mapping[str, np.ndarray], model_state: Mapping[str, Tensor], *, file: str = "R-50.pkl"
) -> dict[str, Tensor]:
    """Return the backbone's tensors in float32 under the model's names, every convolution and batch norm of it.

    Batch norms of the file are one scale and one shift per channel; the mean becomes 0 and the variance 1. Those of
    detectron2's file of the same name (`_bn_gamma` and so on) are folded into such a pair first. Convolution biases
    and the classifier are left out: the model has none. Channels stay BGR.

    Errors: DataError for missing, unexpected, wrongly shaped and non-finite arrays, under the file's names.
    Source: the benchmark's mapping of R-50.pkl.
    """
    wanted = body_state(model_state)
    is_unfolded = any(name.endswith("_bn_gamma") for name in blobs)
    sources = {name: _sources(name, is_unfolded) for name in wanted}
    wanted_arrays = {source: wanted[name] for name, names in sources.items() for source in names}
    ignored = {f"{name.removesuffix('_w')}_b" for name in wanted_arrays if name.endswith("_w")} | CLASSIFIER_ARRAYS
    arrays = {name: torch.from_numpy(np.array(blobs[name], dtype=np.float64)) for name in blobs if name not in ignored}

    def name_in_file(name: str) -> str:
        return _sources(name, is_unfolded)[0] if name.startswith(BODY) else ""

    raise_any(model_problems(arrays, wanted_arrays, file=file, fix=WRONG_FILE_FIX, name_in_file=name_in_file))
    tensors = {name: _build(name, [arrays[one] for one in sources[name]], wanted[name].shape) for name in wanted}
    # a negative variance, or beyond float32
    raise_any(tensor_problems(tensors, wanted, file=file, fix=WRONG_FILE_FIX))
    return tensors


def convert_pickle(path: Path, model_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what `convert_names` makes of the arrays of a pickle."""
    return convert_names(read_detectron_pickle(path), model_state, file=str(path))


def pickle_origin(path: Path) -> tuple[dict[str, str], str]:
    """Return the metadata of a conversion of this pickle, and a notice whether the benchmark names this file."""
    with damage_named(path, "cannot be read"):
        data = path.read_bytes()
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    relation = "is that" if md5 == BACKBONE_MD5 else f"is not that ({BACKBONE_MD5})"
    metadata = {"source": path.name, "source_md5": md5, DIGEST_FIELD: hashlib.sha256(data).hexdigest()}
    return metadata, f"{path}: MD5 {md5} {relation} of the file the benchmark names"


def load_backbone(path: str | Path, model_state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a backbone under the model's names, and notices for the user about their origin.

    The file is a .pkl of Detectron or a .safetensors that `store_backbone` wrote. A .pkl is converted once: the result
    is saved beside it, or in ~/.cache/maskperf where that cannot be done, and used from then on as long as the .pkl has
    the same SHA-256. One that cannot be used, such as that of a user who lets nobody read it, is passed over with a
    notice and left as it is.

    Errors: DataError when anything about the file does not fit `model_state`.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        tensors, notice = _load_stored(path, model_state)
        return tensors, [notice]
    metadata, notice = pickle_origin(path)
    notices = [notice]
    usable: list[Path] = []
    exact = {"format": BACKBONE_FORMAT, "storage": "float32"}
    for target in _cache_paths(path, metadata[DIGEST_FIELD]):
        try:
            # not Path.is_file, which is an error where the folder may not be searched
            header = read_header(target) if os.path.isfile(target) else {**exact, "source": path.name}
            if {**header, **exact} == header and header.get(DIGEST_FIELD) == metadata[DIGEST_FIELD]:
                tensors, notice = _load_stored(target, model_state)
                return tensors, [*notices, notice]
            if {**header, **exact, "source": path.name} == header:
                usable.append(target)
            else:
                notices.append(f"{target}: not overwritten, it was not converted from {path.name}")
        except DataError as error:
            notices.append(f"{target}: passed over: {error.problems[0].message}")
    tensors = convert_pickle(path, model_state)
    return tensors, notices + _save_conversion(tensors, usable, metadata)


def load_backbone_weights(model: nn.Module, path: str | Path) -> list[str]:
    """Return notices for the user after the backbone of `model` was replaced by the file's; the rest stays."""
    tensors, notices = load_backbone(path, model.state_dict())
    model.load_state_dict(tensors, strict=False)
    return notices


def body_state(model_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of a model's state dict that a pretrained backbone must fill."""
    names = [name for name in model_state if name.startswith(BODY) and not name.endswith(COUNTER_SUFFIX)]
    return {name: model_state[name] for name in names}


def _sources(name: str, is_unfolded: bool) -> tuple[str, ...]:
    """Return the names of the file's arrays that the backbone's tensor `name` is made from."""
    if name.endswith(("running_mean", "running_var")):
        return ()
    source = DETECTRON.name_in_file(name)
    if is_unfolded and "_bn_" in source:
        return tuple(f"{source[:-1]}{part}" for part in UNFOLDED_PARTS)
    return (source,)


def _build(name: str, arrays: list[Tensor], shape: torch.Size) -> Tensor:
    """Return one tensor of the backbone, in float32, from its arrays in float64."""
    if not arrays:
        return torch.ones(shape) if name.endswith("running_var") else torch.zeros(shape)
    if len(arrays) == 1:
        return arrays[0].float()
    gamma, beta, mean, variance = arrays
    scale = gamma / (variance + FOLD_EPSILON).sqrt()
    return (scale if name.endswith("weight") else beta - mean * scale).float()


def _load_stored(path: Path, model_state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    tensors, metadata = load_stored_backbone(path)
    raise_any(model_problems(tensors, body_state(model_state), file=str(path), fix=WRONG_FILE_FIX))
    loss = metadata.get("precision_loss", "loss unknown")
    return tensors, f"{path}: backbone stored as {metadata['storage']}; {loss}"


def _cache_paths(path: Path, sha256: str) -> list[Path]:
    """Return where the converted backbone of a .pkl may be: beside it, and in the user's cache."""
    paths = [path.with_suffix(".safetensors")]
    with suppress(RuntimeError):  # a user without a home
        paths.append(Path.home() / ".cache" / "maskperf" / f"{path.stem}-{sha256[:16]}.safetensors")
    return paths


def _save_conversion(tensors: Mapping[str, Tensor], paths: list[Path], metadata: Mapping[str, str]) -> list[str]:
    """Return notices, after the converted backbone was written to the first path where that is possible."""
    notices: list[str] = []
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            store_backbone(tensors, path, "float32", metadata=metadata)
            return [*notices, f"{path}: the converted backbone is saved here and used from now on"]
        except (StorageError, OSError) as error:
            notices.append(f"the converted backbone cannot be saved there: {error}")
    return [*notices, "the converted backbone is saved nowhere, so the pickle will be converted again next time"]
