"""Everything that is needed to run one step again: weights, optimizer, batches of all processes, and what was seen."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from maskperf.config import RunConfig
from maskperf.engine.optimizer import optimizer_tensors
from maskperf.errors import ConfigError
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.model.weights import write_tensor_file
from maskperf.overrides import from_json_text, to_json_text
from maskperf.schema import CONFIG_FILE, file_error
from maskperf.structures import Batch, Images, Polygons, RunLengths, Targets

FACTS_FILE = "facts.json"
WEIGHTS_FILE = "weights.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
BATCHES_FILE = "batches.safetensors"
FIX = "Name a folder black_box that a run left behind, complete and unchanged."


class Facts(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What was known when a run was stopped."""

    event: str  # "non-finite" or "collapse"
    text: str
    update: int
    epoch: int
    processes: int
    accumulation_steps: int
    image_ids: list[list[int]]  # of each micro-batch, those of the first process first
    polygon_limits: list[tuple[int, int]]  # most points and polygons of an object, of each micro-batch
    weights_are_from_before_the_step: bool


@dataclass(frozen=True)
class BlackBox:
    """A black box in memory."""

    facts: Facts
    config: RunConfig
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]  # see `optimizer_tensors`
    micro_batches: list[Batch]


def save_black_box(
    folder: Path,
    model: MaskRcnn,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    *,
    facts: Facts,
    config: RunConfig,
) -> None:
    """Write the black box; `batches` are the micro-batches of all processes, on the CPU.

    Errors: StorageError or OSError where it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{number}.{name}": value for number, batch in enumerate(batches) for name, value in _tensors_of(batch).items()
    }
    of_optimizer = optimizer_tensors(model, optimizer)
    for name, content in ((WEIGHTS_FILE, model.state_dict()), (OPTIMIZER_FILE, of_optimizer), (BATCHES_FILE, tensors)):
        write_tensor_file(content, folder / name, {})
    (folder / CONFIG_FILE).write_text(to_json_text(config), encoding="utf-8")
    (folder / FACTS_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(facts)))  # last: the box is complete


def load_black_box(folder: Path) -> BlackBox:
    """Return the black box of this folder.

    Errors: ConfigError where the folder is none; DataError for a file that cannot be read.
    """
    if not (folder / FACTS_FILE).is_file():
        raise ConfigError(f"{folder}: holds no {FACTS_FILE}, so it is no black box. Fix: {FIX}")
    path = folder / FACTS_FILE
    try:
        facts = msgspec.json.decode(path.read_bytes(), type=Facts)
        path = folder / CONFIG_FILE
        config = from_json_text(path.read_text(encoding="utf-8"))
        loaded = []
        for name in (WEIGHTS_FILE, OPTIMIZER_FILE, BATCHES_FILE):
            path = folder / name
            loaded.append(load_file(path))
        batches = [_batch_of(loaded[2], number, limits) for number, limits in enumerate(facts.polygon_limits)]
    except (OSError, msgspec.DecodeError, SafetensorError, KeyError) as error:
        raise file_error(path, f"The file cannot be read: {error}.", fix=FIX) from error
    return BlackBox(facts=facts, config=config, weights=loaded[0], optimizer=loaded[1], micro_batches=batches)


def polygon_limits(batch: Batch) -> tuple[int, int]:
    """Return the two numbers of a batch that are not tensors."""
    return batch.targets.polygons.max_points, batch.targets.polygons.max_polygons


def _tensors_of(value: Any) -> dict[str, Tensor]:
    """Return every tensor inside nested dataclasses under its dotted name."""
    found = {}
    for entry in fields(value):
        inner = getattr(value, entry.name)
        if isinstance(inner, Tensor):
            found[entry.name] = inner
        elif is_dataclass(inner):
            found.update({f"{entry.name}.{name}": tensor for name, tensor in _tensors_of(inner).items()})
    return found


def _batch_of(tensors: dict[str, Tensor], number: int, limits: tuple[int, int]) -> Batch:
    def part(kind: type, prefix: str, **more: Any) -> Any:
        names = [entry.name for entry in fields(kind) if entry.name not in more]
        return kind(**{name: tensors[f"{number}.{prefix}{name}"] for name in names}, **more)

    polygons = part(Polygons, "targets.polygons.", max_points=limits[0], max_polygons=limits[1])
    has_runs = any(name.startswith(f"{number}.targets.run_lengths.") for name in tensors)
    run_lengths = part(RunLengths, "targets.run_lengths.") if has_runs else None
    targets = part(Targets, "targets.", polygons=polygons, run_lengths=run_lengths)
    return part(Batch, "", images=part(Images, "images."), targets=targets)
