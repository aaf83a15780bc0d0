"""The files test_*_kernel.py run the kernels: compiled where there is a GPU, else by Triton's interpreter.

The interpreter must be chosen before Triton is imported, by TRITON_INTERPRET=1 in the environment, so without a GPU
test_kernels_interpreted.py runs those files in a Python of its own. By hand:

    TRITON_INTERPRET=1 python -m pytest tests/ops/kernels
"""

import importlib.util
import types

import pytest
import torch
from kernel_device import IS_INTERPRETED

HAS_TRITON = importlib.util.find_spec("triton") is not None
IS_COMPILED = HAS_TRITON and not IS_INTERPRETED and torch.cuda.is_available()

collect_ignore_glob = [] if HAS_TRITON and (IS_INTERPRETED or IS_COMPILED) else ["test_*_kernel.py"]
if IS_INTERPRETED:
    collect_ignore_glob.append("test_kernels_*.py")


def pytest_collection_modifyitems(items):
    for item in items:
        if IS_COMPILED and item.path.match("ops/kernels/test_*_kernel.py"):
            item.add_marker(pytest.mark.gpu)


if HAS_TRITON and IS_INTERPRETED:
    import triton.language as tl
    from triton.runtime import interpreter

    class Patched:
        def restore(self):
            pass

    # The interpreter exchanges the language's functions anew at every call inside a kernel, which is most of its
    # time. In this process nothing else uses them, so once is enough.
    interpreter._patch_lang(types.SimpleNamespace(__globals__={"language": tl, "core": tl.core}))
    interpreter._patch_lang = lambda function: Patched()
