"""The pretrained backbone: Detectron's R-50.pkl, a Python-2 pickle, read without running anything that is in it."""

import hashlib
import io
import os
import pickle
import pickletools
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maskperf.config import BACKBONE_MD5
from maskperf.errors import DataError, StorageError
from maskperf.model.quantize import BACKBONE_FORMAT, load_stored_backbone, store_backbone
from maskperf.model.weight_problems import model_problems, tensor_problems
from maskperf.model.weights import COUNTER_SUFFIX, file_error, read_header

BODY_PREFIX = "backbone.body."
FOLD_EPSILON = 1e-5  # of detectron2's file, whose batch norms are not folded
DIGEST_FIELD = "source_sha256"
WRONG_FILE_FIX = "Use Detectron's R-50.pkl (ImageNetPretrained/MSRA), and model.stage_blocks that fit it."
CLASSIFIER_ARRAYS = {"fc1000_w", "fc1000_b"}
UNFOLDED_PARTS = ("gamma", "beta", "running_mean", "running_var")
DAMAGE_ERRORS = (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, ImportError)
TOO_LARGE_ERRORS = (OverflowError, MemoryError)


@dataclass(frozen=True)
class BackboneWeights:
    """The backbone's tensors under the model's names, and what the user should know about where they came from."""

    tensors: dict[str, Tensor]
    notices: list[str]


class _ForbiddenGlobal(pickle.UnpicklingError):
    """The pickle asked for something that no weight file needs."""


# What a pickle may build: inert stand-ins for numpy's types, so no code of anyone runs on a stranger's arguments.
# Each class has __setstate__: without it the opcode BUILD could set attributes of the class itself.
class _Inert:
    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("this object takes no state")


class _Bytes(_Inert):
    def __new__(cls, text: Any, encoding: Any) -> Any:
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}; only latin-1 is allowed")
        return text.encode("latin-1")


class _NumberType:
    def __init__(self, code: Any, align: Any = False, copy: Any = False):
        if not re.fullmatch("[fiub][1248]", code):  # float, integer, unsigned, boolean
            raise pickle.UnpicklingError(f"arrays of type {code!r} are not plain numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    def __init__(self, array_type: Any, shape: Any, code: Any):
        self.values: np.ndarray | None = None  # comes with __setstate__

    def __setstate__(self, state: Any) -> None:
        _, shape, number_type, is_column_major, content = state
        self.values = _numbers(number_type, content).reshape(tuple(shape), order="F" if is_column_major else "C")


class _Scalar(_Inert):
    def __init__(self, number_type: Any, content: Any):
        self.values = _numbers(number_type, content).reshape(())


def _refuse_huge_memo(data: bytes) -> None:
    # Trap: one opcode can make the unpickler fill 64 GiB with empty places; a sound pickle numbers them in order.
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument is not None and argument > len(data):
            raise pickle.UnpicklingError(f"place {argument} of the memo cannot exist")


def _numbers(number_type: Any, content: Any) -> np.ndarray:
    if not isinstance(number_type, _NumberType) or not isinstance(content, (str, bytes)):
        raise pickle.UnpicklingError("an array that does not hold plain numbers")
    raw = content.encode("latin-1") if isinstance(content, str) else content
    return np.frombuffer(raw, dtype=number_type.dtype)


ALLOWED_GLOBALS = {
    ("numpy", "ndarray"): _Inert,
    ("numpy", "dtype"): _NumberType,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _Scalar,
    ("numpy._core.multiarray", "scalar"): _Scalar,
    ("_codecs", "encode"): _Bytes,
}


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        allowed = ALLOWED_GLOBALS.get((module_name, global_name))
        if allowed is None:
            raise _ForbiddenGlobal(f"{module_name}.{global_name}")
        return allowed


def read_detectron_pickle(path: str | Path) -> dict[str, np.ndarray]:
    """Return the arrays of a Detectron weight file by name, momentum left out, without running code from the file.

    Errors: DataError for a missing or damaged file, a pickle that asks for anything but arrays, entries that are not.
    """
    path = Path(path)
    data = _read_bytes(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # odd escapes and number codes of damaged files
            _refuse_huge_memo(data)
            content = _RestrictedUnpickler(io.BytesIO(data), encoding="latin-1").load()
    except _ForbiddenGlobal as error:
        problem = "the pickle asks for something that a weight file does not need; nothing of it was run."
        raise file_error(path, "global", str(error), problem, "Delete the file; get it from its source.") from error
    except (*DAMAGE_ERRORS, *TOO_LARGE_ERRORS) as error:
        problem = f"is not a whole pickle of arrays: {type(error).__name__}: {error}."
        raise file_error(path, "content", "unreadable", problem) from error
    blobs = content.get("blobs", content) if isinstance(content, dict) else content
    if not isinstance(blobs, dict):
        raise file_error(path, "content", type(blobs).__name__, "is not a dictionary of arrays.", WRONG_FILE_FIX)
    return _unwrap(path, {name: value for name, value in blobs.items() if not str(name).endswith("_momentum")})


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
    sources = {name: _sources(name.removeprefix(BODY_PREFIX), is_unfolded) for name in wanted}
    wanted_arrays = {source: wanted[name] for name, names in sources.items() for source in names}
    ignored = {f"{name.removesuffix('_w')}_b" for name in wanted_arrays if name.endswith("_w")} | CLASSIFIER_ARRAYS
    arrays = {name: torch.from_numpy(np.array(blobs[name], dtype=np.float64)) for name in blobs if name not in ignored}
    problems = model_problems(
        arrays,
        wanted_arrays,
        file=file,
        fix=WRONG_FILE_FIX,
        name_in_file=lambda name: _first_source(name, is_unfolded),
    )
    if problems:
        raise DataError(problems)
    tensors = {name: _build(name, [arrays[one] for one in sources[name]], wanted[name].shape) for name in wanted}
    problems = tensor_problems(tensors, wanted, file=file, fix=WRONG_FILE_FIX)  # a negative variance, or beyond float32
    if problems:
        raise DataError(problems)
    return tensors


def load_backbone(
    path: str | Path, model_state: Mapping[str, Tensor], *, cache_dir: str | Path | None = None
) -> BackboneWeights:
    """Return the backbone of a .pkl of Detectron or of a .safetensors that `store_backbone` wrote.

    A .pkl is converted once: the result is kept beside it, or in `cache_dir` (default: ~/.cache/maskperf) where that
    cannot be done, and used from then on as long as the .pkl has the same SHA-256. One that cannot be used, such as
    that of a user who keeps files for himself, is passed over with a notice and left as it is.

    Errors: DataError when anything about the file does not fit `model_state`.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _load_stored(path, model_state)
    data = _read_bytes(path)
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    sha256 = hashlib.sha256(data).hexdigest()
    relation = "is that" if md5 == BACKBONE_MD5 else f"is not that ({BACKBONE_MD5})"
    notices = [f"{path}: MD5 {md5} {relation} of the file the benchmark names"]
    usable = []
    for place in _places(path, sha256, cache_dir):
        try:
            if _conversion_header(place).get(DIGEST_FIELD) == sha256:
                stored = _load_stored(place, model_state)
                return BackboneWeights(tensors=stored.tensors, notices=notices + stored.notices)
            usable.append(place)
        except DataError as error:
            notices.append(f"{place}: passed over: {error.problems[0].message}")
    tensors = convert_names(read_detectron_pickle(path), model_state, file=str(path))
    metadata = {"source": path.name, "source_md5": md5, DIGEST_FIELD: sha256}
    return BackboneWeights(tensors=tensors, notices=notices + _keep(tensors, usable, metadata))


def load_backbone_weights(model: nn.Module, path: str | Path, *, cache_dir: str | Path | None = None) -> list[str]:
    """Return notices for the user after the backbone of `model` was replaced by the file's; the rest stays."""
    loaded = load_backbone(path, model.state_dict(), cache_dir=cache_dir)
    model.load_state_dict(loaded.tensors, strict=False)
    return loaded.notices


def body_state(model_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of a model's state dict that a pretrained backbone must fill."""
    return {
        name: tensor
        for name, tensor in model_state.items()
        if name.startswith(BODY_PREFIX) and not name.endswith(COUNTER_SUFFIX)
    }


def _sources(name: str, is_unfolded: bool) -> tuple[str, ...]:
    """Return the names of the file's arrays that the backbone's tensor `name` is made from."""
    module, _, part = name.rpartition(".")
    kind, base = _place_in_file(module)
    if kind == "conv":
        return (f"{base}_w",)
    if part in ("running_mean", "running_var"):
        return ()
    if is_unfolded:
        return tuple(f"{base}_bn_{one}" for one in UNFOLDED_PARTS)
    return (f"{base}_bn_{'s' if part == 'weight' else 'b'}",)


def _first_source(name: str, is_unfolded: bool) -> str:
    """Return the name of the file's array for a convolution of the backbone; empty for tensors outside of it."""
    return _sources(name.removeprefix(BODY_PREFIX), is_unfolded)[0] if name.startswith(BODY_PREFIX) else ""


def _place_in_file(module: str) -> tuple[str, str]:
    """Return ("conv" or "bn", name without suffix) of a module of the backbone."""
    if module == "stem.conv1":
        return "conv", "conv1"
    if module == "stem.bn1":
        return "bn", "res_conv1"
    match = re.fullmatch(r"layer(\d+)\.(\d+)\.(?:(conv|bn)(\d)|downsample\.(\d))", module)
    assert match, f"the backbone has a module {module} that no backbone file knows"
    stage, block, kind, number, shortcut = match.groups()
    branch = "1" if kind is None else "2" + "abc"[int(number) - 1]
    return kind or ("conv", "bn")[int(shortcut)], f"res{int(stage) + 1}_{block}_branch{branch}"


def _build(name: str, arrays: list[Tensor], shape: torch.Size) -> Tensor:
    """Return one tensor of the backbone, in float32, from its arrays in float64."""
    if not arrays:
        return torch.ones(shape) if name.endswith("running_var") else torch.zeros(shape)
    if len(arrays) == 1:
        return arrays[0].float()
    gamma, beta, mean, variance = arrays
    scale = gamma / (variance + FOLD_EPSILON).sqrt()
    return (scale if name.endswith("weight") else beta - mean * scale).float()


def _load_stored(path: Path, model_state: Mapping[str, Tensor]) -> BackboneWeights:
    stored = load_stored_backbone(path)
    problems = model_problems(stored.weights, body_state(model_state), file=str(path), fix=WRONG_FILE_FIX)
    if problems:
        raise DataError(problems)
    notice = f"{path}: backbone stored as {stored.storage}; {stored.metadata.get('precision_loss', 'loss unknown')}"
    return BackboneWeights(tensors=stored.weights, notices=[notice])


def _places(path: Path, sha256: str, cache_dir: str | Path | None) -> list[Path]:
    """Return where the converted backbone of a .pkl may lie: beside it, and in the user's cache."""
    beside = path.with_suffix(".safetensors")
    try:
        cache = Path(cache_dir) if cache_dir is not None else Path.home() / ".cache" / "maskperf"
    except RuntimeError:  # a user without a home
        return [beside]
    return [beside, cache / f"{path.stem}-{sha256[:16]}.safetensors"]


def _conversion_header(place: Path) -> dict[str, str]:
    """Return the metadata of a converted file in full precision; empty where there is none.

    Errors: DataError for a file that cannot be read.
    """
    if not os.path.isfile(place):  # not of Path, which is an error where the folder may not be searched
        return {}
    header = read_header(place)
    is_conversion = header.get("format") == BACKBONE_FORMAT and header.get("storage") == "float32"
    return header if is_conversion else {}


def _keep(tensors: Mapping[str, Tensor], places: list[Path], metadata: Mapping[str, str]) -> list[str]:
    """Return notices, after the converted backbone was written to the first place where that is possible."""
    notices = []
    for place in places:
        if os.path.isfile(place) and _conversion_header(place).get("source") != metadata["source"]:
            notices.append(f"{place}: not overwritten, it was not converted from {metadata['source']}")
            continue
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            store_backbone(tensors, place, "float32", metadata=metadata)
        except (StorageError, OSError) as error:
            notices.append(f"the converted backbone cannot be kept there: {error}")
            continue
        return [*notices, f"{place}: the converted backbone is kept here and used from now on"]
    return [*notices, "the converted backbone is kept nowhere, so the pickle will be converted again next time"]


def _unwrap(path: Path, blobs: dict) -> dict[str, np.ndarray]:
    problems = []
    for name, value in blobs.items():
        if not (isinstance(name, str) and isinstance(value, (_Array, _Scalar)) and value.values is not None):
            kind = type(value).__name__.lstrip("_")
            problems += file_error(path, f"entry {name!r}", kind, "is not a named array.", WRONG_FILE_FIX).problems
    if problems:
        raise DataError(problems)
    return {name: value.values for name, value in blobs.items()}


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        fix = "Give the path of Detectron's R-50.pkl."
        raise file_error(path, "path", str(path), f"cannot be read: {error.strerror}.", fix) from error
