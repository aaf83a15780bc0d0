"""MLPerf Training Mask R-CNN (R50-FPN) benchmark in modern PyTorch.

Each public name is imported at its first use: `import maskperf` alone loads neither torch nor numpy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskperf.cli.train_data import train as train
    from maskperf.config import RunConfig as RunConfig
    from maskperf.engine.build import build_model as build_model
    from maskperf.engine.forward import training_losses as training_losses
    from maskperf.evaluation.detect import detect as detect
    from maskperf.model.mask_rcnn import MaskRcnn as MaskRcnn
    from maskperf.overrides import with_overrides as with_overrides
    from maskperf.predict.model import load as load
    from maskperf.predict.validation import evaluate as evaluate
    from maskperf.recipes import RECIPES as RECIPES
    from maskperf.run.loop import run_benchmark as run_benchmark

_MODULES = {
    "RECIPES": "recipes",
    "RunConfig": "config",
    "with_overrides": "overrides",
    "MaskRcnn": "model.mask_rcnn",
    "build_model": "engine.build",
    "training_losses": "engine.forward",
    "detect": "evaluation.detect",
    "run_benchmark": "run.loop",
    "train": "cli.train_data",
    "load": "predict.model",
    "evaluate": "predict.validation",
}
__all__ = [*_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = importlib.import_module("importlib.metadata").version("maskperf")
    elif name in _MODULES:
        value = getattr(importlib.import_module(f"maskperf.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module 'maskperf' has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
