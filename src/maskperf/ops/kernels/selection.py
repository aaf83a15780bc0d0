"""Whether the kernels can be used on a device. Triton itself is imported with a kernel, at its first use.

The public functions of the operators that have kernels ask here. No kernel of this package has run on a GPU yet; all
are tested in Triton's interpreter.
"""

import functools
import importlib
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

import torch

from maskperf.techniques import active

LEAST_CAPABILITY = (8, 0)  # the first with bfloat16
OPERATORS = "RoIAlign, ranking, NMS, matching, samples, patches of the RPN, mask targets, weight casts and mask logits"

Operator = TypeVar("Operator", bound=Callable[..., Any])


def uses_kernels(device: torch.device) -> bool:
    """Return whether the operators call the kernels on this device. Never waits for it."""
    return active().triton_kernels and missing_part(device) == ""


@functools.cache
def missing_part(device: torch.device) -> str:
    """Return what the kernels lack on this device, as a sentence; empty where nothing is missing."""
    if device.type != "cuda" or torch.version.cuda is None:
        return f"The kernels are for NVIDIA GPUs; the device is {device.type}."
    if importlib.util.find_spec("triton") is None:
        return "The Python package triton is not installed. Fix: pip install triton"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        return f"The GPU has compute capability {capability}; the kernels need {LEAST_CAPABILITY} or more."
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    if not any(map(shutil.which, compilers)):
        return "Triton needs a C compiler for the start of a kernel. Fix: install gcc, or set CC."
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.exists():
        return f"Triton needs {header} for the start of a kernel. Fix: install python3-dev, Python's headers."
    return ""


def describe(device: torch.device) -> str:
    """Return one line about which code runs the operators that have kernels, and if PyTorch's, why."""
    if device.type == "cpu":
        return "kernels: those of PyTorch (our own are for NVIDIA GPUs)"
    if not active().triton_kernels:
        return "kernels: those of PyTorch (triton_kernels is off, see speed.without)"
    if missing := missing_part(device):
        return f"kernels: those of PyTorch, although triton_kernels is on. {missing}"
    return f"kernels: our own, in Triton, for {OPERATORS}"


def load(name: str) -> ModuleType:
    """Return the module `name` of this package. Not imported before: Triton may be missing, and takes its time."""
    return importlib.import_module(f"maskperf.ops.kernels.{name}")


def has_kernel(module: str) -> Callable[[Operator], Operator]:
    """Make an operator call the function of its name in `module` of this package where the kernels can be used.

    What is decorated is the plain form: it gives the same result on any device.
    """

    def decorate(plain: Operator) -> Operator:
        @functools.wraps(plain)
        def operator(*arguments: Any, **options: Any) -> Any:
            device = next(argument.device for argument in arguments if isinstance(argument, torch.Tensor))
            chosen = getattr(load(module), plain.__name__) if uses_kernels(device) else plain
            return chosen(*arguments, **options)

        return cast(Operator, operator)

    return decorate
