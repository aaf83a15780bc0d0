"""What a run needs before anything is made, as far as no data set has to be opened. Nothing heavy is imported."""

from importlib.util import find_spec
from pathlib import Path

from maskperf.config import BACKBONE_MD5, RunConfig
from maskperf.data.coco.paths import locate
from maskperf.errors import ConfigError, DataError, Problem
from maskperf.machine.probe import torch_build

WEIGHT_FILES = {  # field of the section model: what to do where its file is missing
    "backbone_weights": "Set it to Detectron's R-50.pkl (ImageNetPretrained/MSRA of its model zoo, MD5 "
    f"{BACKBONE_MD5}), or to nothing (model.backbone_weights=) to start from random weights.",
    "initial_weights": "Set it to a model.safetensors of a run or weights of another program, or to nothing.",
}


def check_start(config: RunConfig, world: int) -> None:
    """Refuse a run whose batch cannot be split over `world` processes or whose files are missing.

    Synthetic data is yet to be written.
    Errors: ConfigError for the batch, a GPU that PyTorch cannot use, and a tracker that is not installed; DataError
    with each missing file or folder.
    """
    if config.system.device == "cuda" and torch_build() == "cpu":
        raise ConfigError(
            "system.device=cuda: this PyTorch is built without CUDA. Fix: install a CUDA build of PyTorch "
            "(https://pytorch.org/get-started), or set system.device=cpu; maskperf doctor shows what is here."
        )
    missing = [name for name in config.log.packages if find_spec(name) is None]
    if missing:
        keys = ["log.tensorboard=true" if name == "tensorboard" else f"log.trackers={name}" for name in missing]
        fix = f"pip install {' '.join(missing)}, or leave the key out"
        raise ConfigError(f"{' and '.join(keys)}: {', '.join(missing)} is not installed. Fix: {fix}.")
    steps, batch_size = config.optimizer.accumulation_steps, config.optimizer.batch_size
    if batch_size % (world * steps):
        raise ConfigError(
            f"optimizer.batch_size={batch_size} cannot be split over {world} processes with "
            f"optimizer.accumulation_steps={steps}. Fix: make it a multiple of {world * steps}."
        )
    problems = []
    try:
        if not config.data.is_generated:
            locate(config.data)
    except DataError as error:
        problems += error.problems
    for name, fix in WEIGHT_FILES.items():
        value = getattr(config.model, name)
        if value and not Path(value).is_file():
            where = {"file": value, "where": "the file of weights", "field": f"model.{name}", "value": value}
            problems.append(Problem(**where, message="The file does not exist.", fix=fix))
    if problems:
        raise DataError(problems)
