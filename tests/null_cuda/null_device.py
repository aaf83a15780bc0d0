"""What the null CUDA recorded, read by the process that runs on it (see build_null_cuda.environment_on)."""

import ctypes
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, takewhile

WORK = ("kernel", "product", "convolution", "collective", "copy", "set")  # what takes a place in a graph


class _Record(ctypes.Structure):
    """As in sources/device.hpp."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("amount", ctypes.c_ulonglong),
        *((name, ctypes.c_int) for name in ("kind", "thread", "stream", "captured")),
    ]


@dataclass(frozen=True)
class Call:
    """One call; `amount` is bytes of a copy, programs of a kernel, nodes of a graph."""

    kind: str
    name: str
    amount: int
    thread: int
    stream: int
    captured: bool


@dataclass
class Recording:
    """The calls of a time that is over."""

    calls: list[Call] = field(default_factory=list)

    def named(self, kind: str) -> dict[str, int]:
        """Return how often each call of a kind was made, by its name."""
        return dict(Counter(call.name for call in self.calls if call.kind == kind))

    def number(self, *kinds: str) -> int:
        return sum(call.kind in kinds for call in self.calls)

    def launches(self) -> int:
        """Return how much work was put on streams that no capture was watching; a graph counts as none of it."""
        return sum(call.kind in WORK and not call.captured for call in self.calls)

    def graph_nodes(self) -> list[int]:
        """Return the nodes of every graph that was launched."""
        return [call.amount for call in self.calls if call.kind == "graph"]


def _load() -> ctypes.CDLL:
    library = ctypes.CDLL(os.environ["NULL_CUDA_LIBRARY"])
    library.null_cuda_records.restype = ctypes.c_size_t
    library.null_cuda_used.restype = library.null_cuda_peak.restype = ctypes.c_size_t
    library.null_cuda_kind.restype = ctypes.c_char_p
    return library


_library = _load()
_KINDS = [kind.decode() for kind in takewhile(bool, map(_library.null_cuda_kind, count()))]


def _records() -> tuple:
    """Return a pointer to the first record, and how many there are."""
    first = ctypes.POINTER(_Record)()
    return first, _library.null_cuda_records(ctypes.byref(first))


def _call(entry: _Record) -> Call:
    numbers = {name: getattr(entry, name) for name in ("amount", "thread", "stream")}
    return Call(kind=_KINDS[entry.kind], name=entry.name.decode(), captured=bool(entry.captured), **numbers)


@contextmanager
def recording() -> Iterator[Recording]:
    """Record the calls of the block; they are there after it."""
    found = Recording()
    _library.null_cuda_start()
    try:
        yield found
    finally:
        _library.null_cuda_stop()
        first, number = _records()
        found.calls = [_call(entry) for entry in first[:number]]


def calls_so_far() -> int:
    """Return how many calls the recording has that is going on."""
    return _records()[1]


def used_bytes(device: int = 0) -> int:
    """Return the bytes of the device that are allocated."""
    return _library.null_cuda_used(device)


def peak_bytes(device: int = 0) -> int:
    """Return the most bytes of the device that were allocated since `reset_peak`."""
    return _library.null_cuda_peak(device)


def reset_peak() -> None:
    _library.null_cuda_reset_peak()
