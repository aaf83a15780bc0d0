"""What is wrong with tensors for a model: one problem for each cause, however many tensors it moves."""

import itertools
import pickle
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from maskperf.errors import DataError, Problem

NAMES_SHOWN = 3
STAGES = (1, 2, 3, 4)
BLOCK_PARTS = (".conv1.weight", ".conv2.weight", ".conv3.weight")
BODY = "backbone.body."
BOX_HEAD, MASK_HEAD = "roi_heads.box.", "roi_heads.mask."
# Keys whose value is the first dimension of one tensor.
WIDTHS = {
    "model.stem_channels": BODY + "stem.conv1.weight",
    "model.fpn_channels": "backbone.fpn.fpn_inner1.weight",
    "model.box_head_channels": BOX_HEAD + "feature_extractor.fc6.weight",
    "model.mask_head_channels": MASK_HEAD + "feature_extractor.mask_fcn1.weight",
    "model.num_classes": BOX_HEAD + "predictor.cls_score.weight",
}

DAMAGED_FIX = "Copy or download the file again; it is damaged, cut short or of another kind."
# What torch.load, safetensors and the unpickler raise for damaged files; torch.load has no error of its own.
DAMAGE_ERRORS = (
    *(SafetensorError, pickle.UnpicklingError, struct.error, OSError, EOFError, ValueError, TypeError, LookupError),
    *(AttributeError, ImportError, AssertionError, RuntimeError, OverflowError, MemoryError),
)

ShapeOf = Callable[[str], tuple[int, ...] | None]


def tensor_problems(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, file: str, fix: str) -> list[Problem]:
    """Return a problem for the tensors that are missing, for those that are unexpected, wrongly shaped, not finite."""
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    both = [name for name in wanted if name in found]
    misshaped = [name for name in both if found[name].shape != wanted[name].shape]
    broken = [name for name in both if name not in misshaped and not torch.isfinite(found[name]).all()]
    bad = [f"{int((~torch.isfinite(found[name])).sum())} of {found[name].numel()}" for name in broken[:NAMES_SHOWN]]
    groups = (
        (missing, "name", "missing", f"the model needs shape {_shapes(wanted, missing)} here."),
        (unexpected, "name", f"shape {_shapes(found, unexpected)}", "the model has no such tensor."),
        (misshaped, "shape", _shapes(found, misshaped), f"the model needs shape {_shapes(wanted, misshaped)}."),
        (broken, "values", _listed(bad, len(broken)), "not finite (NaN or infinity)."),
    )
    return [
        Problem(file=file, where=named_tensors(names), field=field, value=value, message=message, fix=fix)
        for names, field, value, message in groups
        if names
    ]


def model_problems(
    found: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    *,
    file: str,
    fix: str,
    name_in_file: Callable[[str], str] = str,
) -> list[Problem]:
    """Return `tensor_problems`, but where the file is that of a model of other sizes, one problem that names the keys.

    `wanted` has the names of the file, which `name_in_file` finds for a name of the model.
    """
    problems = tensor_problems(found, wanted, file=file, fix=fix)
    own, others = (sizes_of(tensors, name_in_file) for tensors in (wanted, found))
    keys = [key for key in own if key in others and own[key] != others[key]]
    if not keys:
        return problems
    unfit = [name for name in wanted if name not in found or found[name].shape != wanted[name].shape]
    unfit += [name for name in found if name not in wanted]
    made_with = " ".join(f"{key}={others[key]}" for key in keys)
    fix = f"Set {made_with}, or give a file that fits the model."
    if "model.num_classes" in keys:
        fix += " Weights serve the categories they were trained for: the data must have as many, plus background."
    other_sizes = Problem(
        file=file,
        where=named_tensors(unfit),
        field=", ".join(keys),
        value="; ".join(others[key] for key in keys),
        message=f"The file is of a model with {made_with}; this model has {'; '.join(own[key] for key in keys)}.",
        fix=fix,
    )
    return [other_sizes, *(problem for problem in problems if problem.field == "values")]


def raise_any(problems: Sequence[Problem]) -> None:
    """Raise a DataError if there are problems."""
    if problems:
        raise DataError(problems)


@contextmanager
def damage_named(path: Path, problem: str) -> Iterator[None]:
    """Inside the `with` block, errors of reading a weight file become DataErrors with this problem.

    Errors: DataError as well for a file that is missing or may not be read.
    """
    try:
        with open(path, "rb"):
            pass
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        fix = "Give the path of an existing weight file."
        raise file_error(path, "path", str(path), "there is no such file.", fix) from error
    except OSError as error:
        fix = "Ask the owner of the file for the permission to read it, or copy it."
        raise file_error(path, "path", str(path), f"cannot be read: {error.strerror}.", fix) from error
    try:
        yield
    except DAMAGE_ERRORS as error:
        reason = str(error).split("\n")[0]
        problem = f"{problem}: {type(error).__name__}: {reason}."
        raise file_error(path, "content", "unreadable", problem) from error


def file_error(path: Path, field: str, value: str, problem: str, fix: str = DAMAGED_FIX) -> DataError:
    """Return the error for one thing that is wrong with a weight file as a whole."""
    return DataError([Problem(file=str(path), where="whole file", field=field, value=value, message=problem, fix=fix)])


def sizes_of(tensors: Mapping[str, Tensor], name_in_file: Callable[[str], str] = str) -> dict[str, str]:
    """Return keys of the section model and the values, as they are written, that these tensors belong to.

    Keys whose tensors are not there are left out.
    """

    def shape_of(name: str) -> tuple[int, ...] | None:
        tensor = tensors.get(name_in_file(name))
        return None if tensor is None else tuple(tensor.shape)

    sizes = {key: str(shape[0]) for key, name in WIDTHS.items() if (shape := shape_of(name))}
    blocks = [_count(shape_of, f"{BODY}layer{stage}.", BLOCK_PARTS, first=0) for stage in STAGES]
    if all(blocks):
        sizes["model.stage_blocks"] = ",".join(map(str, blocks))
    widths = [shape_of(f"{BODY}layer{stage}.0.conv3.weight") for stage in STAGES]
    if all(widths):
        sizes["model.stage_channels"] = ",".join(str(shape[0]) for shape in widths if shape)
    convs = _count(shape_of, MASK_HEAD + "feature_extractor.mask_fcn", (".weight", ".bias"), first=1)
    if convs:
        sizes["model.mask_head_convs"] = str(convs)
    return sizes


def _count(shape_of: ShapeOf, prefix: str, suffixes: Sequence[str], *, first: int) -> int:
    """Return how many parts there are, numbered from `first`; a part is there if half of its tensors are."""
    for number in itertools.count(first):
        found = [shape_of(f"{prefix}{number}{suffix}") for suffix in suffixes]
        if 2 * found.count(None) > len(found):
            break
    return number - first


def named_tensors(names: Sequence[str]) -> str:
    """Return one name, or how many there are and the first ones."""
    if len(names) == 1:
        return f"tensor {names[0]}"
    return f"{len(names)} tensors ({_listed(names, len(names))})"


def _shapes(tensors: Mapping[str, Tensor], names: Sequence[str]) -> str:
    return _listed([str(tuple(tensors[name].shape)) for name in names[:NAMES_SHOWN]], len(names))


def _listed(texts: Sequence[str], count: int) -> str:
    """Return the first texts of `count`."""
    return ", ".join([*texts[:NAMES_SHOWN], *(["..."] if count > NAMES_SHOWN else [])])
