"""The techniques that make a step faster for the same numbers: chosen once, read by the operators where they are."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace

from maskperf.config import SpeedConfig


@dataclass(frozen=True, kw_only=True)
class Techniques:
    """Which techniques are on. Each gives the numbers of the plain way, up to float32 rounding."""

    # On a CPU: Winograd for 3x3, matrix products for 1x1. On a GPU in bfloat16: bias, sum, ReLU inside cuDNN calls.
    fast_convolutions: bool = True
    folded_batch_norm: bool = True  # frozen batch norm inside the weights; frozen stages save nothing for a backward
    grouped_roi_align: bool = True  # on a CPU: RoIAlign of neighbouring RoIs together, backward without a scatter
    sparse_rpn_backward: bool = True  # only the sampled anchors have a gradient
    class_selected_outputs: bool = True  # mask logits of the one class that is used
    packed_positives: bool = True  # RoI heads on the slots in use alone; on a GPU: mask head on as many as usual
    sparse_mask_targets: bool = True  # on a CPU: polygons meet only the columns they cross
    keep_freed_memory: bool = True  # on a CPU with glibc: freed memory stays with the process for the next step
    aspect_buckets: bool = True  # batches of images that have nearly the same padded size
    captured_steps: bool = True  # on a GPU: the step replayed as a CUDA graph
    triton_kernels: bool = True  # on a GPU with Triton: own kernels for the operators
    device_preprocessing: bool = True  # on a GPU: images travel as bytes and are resized there

    def without(self, *names: str) -> "Techniques":
        """Return the same with these techniques off."""
        return replace(self, **dict.fromkeys(names, False))


TECHNIQUE_NAMES = tuple(entry.name for entry in fields(Techniques))


def plain() -> Techniques:
    """Return all techniques off: the slow way that each is compared with."""
    return Techniques().without(*TECHNIQUE_NAMES)


def chosen_techniques(speed: SpeedConfig) -> Techniques:
    """Return the techniques of a configuration."""
    return plain() if "all" in speed.without else Techniques().without(*speed.without)


_ALL = Techniques()
_ACTIVE: ContextVar[Techniques] = ContextVar("techniques", default=_ALL)


def active() -> Techniques:
    """Return the techniques of this thread; a thread starts with all.

    A backward may run in a thread of autograd: what it needs to know, its forward stores in `ctx`.
    """
    return _ACTIVE.get()


@contextmanager
def using(techniques: Techniques) -> Iterator[None]:
    """Make `techniques` the active ones of this thread inside the `with` block."""
    token = _ACTIVE.set(techniques)
    try:
        yield
    finally:
        _ACTIVE.reset(token)
