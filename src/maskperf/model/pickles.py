"""Pickles of weights, of Detectron and detectron2, read without running anything that is in them."""

import io
import pickle
import pickletools
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from maskperf.model.weight_problems import damage_named, file_error, raise_any

WRONG_FILE_FIX = "Use Detectron's R-50.pkl (ImageNetPretrained/MSRA), and model.stage_blocks that fit it."


# What a pickle may build: inert stand-ins for numpy's types, so that no code runs on a stranger's arguments.
# Each class has __setstate__: without it the opcode BUILD could set attributes of the class itself.
class _NumberType:
    def __init__(self, code: Any, align: Any = False, copy: Any = False):
        if not re.fullmatch("[fiub][1248]", code):  # float, integer, unsigned, boolean
            raise pickle.UnpicklingError(f"arrays of type {code!r} are not plain numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    def __init__(self, *arguments: Any):
        self.values: np.ndarray | None = None  # comes with __setstate__

    def __setstate__(self, state: Any) -> None:
        _, shape, number_type, is_column_major, content = state
        self.values = _numbers(number_type, content).reshape(tuple(shape), order="F" if is_column_major else "C")


class _Scalar(_Array):
    def __init__(self, number_type: Any, content: Any):
        self.values = _numbers(number_type, content).reshape(())


class _Bytes(_Array):
    def __new__(cls, text: Any, encoding: Any) -> Any:
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"bytes in encoding {encoding!r}; only latin-1 is allowed")
        return text.encode("latin-1")


class _Dictionary(dict):
    def __setstate__(self, state: Any) -> None:
        pass


def _numbers(number_type: Any, content: Any) -> np.ndarray:
    if not isinstance(number_type, _NumberType) or not isinstance(content, (str, bytes)):
        raise pickle.UnpicklingError("an array that does not hold plain numbers")
    raw = content.encode("latin-1") if isinstance(content, str) else content
    return np.frombuffer(raw, dtype=number_type.dtype)


ALLOWED_GLOBALS = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _NumberType,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _Scalar,
    ("_codecs", "encode"): _Bytes,
    ("collections", "OrderedDict"): _Dictionary,
}


class _RestrictedUnpickler(pickle.Unpickler):
    def __init__(self, path: Path, data: bytes):
        super().__init__(io.BytesIO(data), encoding="latin-1")
        self.path = path

    def find_class(self, module_name: str, global_name: str) -> Any:
        if allowed := ALLOWED_GLOBALS.get((module_name.replace("numpy._core", "numpy.core"), global_name)):
            return allowed
        problem = "the pickle asks for something that a weight file does not need; nothing of it was run."
        fix = "Delete the file; get it from its source."
        raise file_error(self.path, "global", f"{module_name}.{global_name}", problem, fix)


def read_detectron_pickle(path: str | Path) -> dict[str, np.ndarray]:
    """Return the arrays of a Detectron weight file by name, momentum left out, without running code from the file.

    Errors: DataError for a missing or damaged file, a pickle that asks for anything but arrays, entries that are not.
    """
    path = Path(path)
    # Warnings are of odd escapes and number codes of damaged files.
    with damage_named(path, "is not a whole pickle of arrays"), warnings.catch_warnings(action="ignore"):
        data = path.read_bytes()
        # Trap: one opcode can make the unpickler fill 64 GiB with empty slots; a sound pickle numbers them in order.
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument is not None and argument > len(data):
                raise pickle.UnpicklingError(f"slot {argument} of the memo cannot exist")
        content = _RestrictedUnpickler(path, data).load()
    blobs = content.get("blobs", content.get("model", content)) if isinstance(content, dict) else content
    if not isinstance(blobs, dict):
        raise file_error(path, "content", type(blobs).__name__, "is not a dictionary of arrays.", WRONG_FILE_FIX)
    problems, arrays = [], {}
    for name, value in blobs.items():
        if isinstance(name, str) and isinstance(value, _Array) and value.values is not None:
            arrays[name] = value.values
        elif not str(name).endswith("_momentum"):
            kind = type(value).__name__.lstrip("_")
            problems += file_error(path, f"entry {name!r}", kind, "is not a named array.", WRONG_FILE_FIX).problems
    raise_any(problems)
    return {name: values for name, values in arrays.items() if not name.endswith("_momentum")}
