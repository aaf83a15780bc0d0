"""Processes started by torchrun, and the few collectives a run needs."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from maskperf.errors import ConfigError

T = TypeVar("T")
TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Topology:
    """This process among all of them."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def init_topology(device_choice: str) -> Topology:
    """Return this process's topology from torchrun's variables; join the process group if there are several.

    Errors: ConfigError where a GPU is asked for, and there is none for this process.
    """
    rank = int(os.environ.get("RANK", "0"))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    device = claim_device(device_choice, int(os.environ.get("LOCAL_RANK", "0")))
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    return Topology(rank=rank, world=world, device=device)


def claim_device(choice: str, index: int = 0) -> torch.device:
    """Return the device that "auto", "cpu" or "cuda" means for a process with this index on its machine.

    Errors: ConfigError where a GPU is asked for, and there is none for this process.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if choice == "cpu" or (choice == "auto" and not count):
        return torch.device("cpu")
    if index >= count:
        wanted = f"GPU {index} is wanted, and PyTorch finds {count or 'none'}"
        fix = "run on fewer processes, or set system.device=cpu; maskperf doctor shows what is here"
        raise ConfigError(f"system.device: {wanted}. Fix: {fix}.")
    return claim_gpu(torch.device("cuda", index))


def claim_gpu(device: torch.device) -> torch.device:
    """Make this GPU the process's own, without TF32, which would round the inputs of float32 products to 10 bits.

    Return it with its index.
    """
    device = torch.device("cuda", device.index or 0)
    torch.cuda.set_device(device)  # Trap: takes no device without an index
    # Trap: cuDNN's convolutions are TF32 by default
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # missing in PyTorch's stubs
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    return device


def close_topology() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def sum_tensor(value: Tensor, topology: Topology) -> Tensor:
    """Replace `value` by its sum over the processes."""
    if topology.world > 1:
        dist.all_reduce(value)
    return value


def _average(tensors: list[Tensor], topology: Topology) -> None:
    """Replace every tensor by its mean over the processes, in one exchange."""
    if topology.world == 1 or not tensors:
        return
    flat = sum_tensor(torch.cat([tensor.flatten() for tensor in tensors]), topology).div_(topology.world)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def average_gradients(model: nn.Module, topology: Topology) -> None:
    """Replace every gradient by its mean over the processes. A missing gradient counts as zero."""
    if topology.world == 1:
        return
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    _average([parameter.grad for parameter in parameters if parameter.grad is not None], topology)


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers in which processes differ within an epoch, under the names of the state dict.

    Those of frozen batch norms are equal everywhere, and must not be touched: even a mean of equals would round them.
    """
    layers = {path: module for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    buffers = {f"{path}.{name}": value for path, layer in layers.items() for name, value in layer.named_buffers()}
    return {name: value for name, value in buffers.items() if value.is_floating_point()}  # without counters


def average_buffers(model: nn.Module, topology: Topology) -> None:
    """Make the running statistics of trainable batch norms the same everywhere: their mean."""
    _average(list(running_statistics(model).values()), topology)


def wait_for_all(topology: Topology) -> None:
    """Return when every process has come here, and this one's device has done all its work."""
    sum_tensor(torch.zeros(1, device=topology.device), topology).item()


def share_from_first(value: T, topology: Topology) -> T:
    """Return the first process's `value` (any picklable object) in every process."""
    if topology.world == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=topology.device)
    return box[0]


def all_true(value: bool, topology: Topology) -> bool:
    """Return in every process whether `value` is true in all of them; waits for the device."""
    return not largest_of_all(int(not value), topology)


def largest_of_all(value: int, topology: Topology) -> int:
    """Return in every process the largest value of all processes; waits for the device."""
    if topology.world == 1:
        return value
    largest = torch.tensor(value, device=topology.device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def gather_to_first(value: T, topology: Topology) -> list[T]:
    """Return the values of all processes, in the order of ranks, in the first one; an empty list in the others."""
    if topology.world == 1:
        return [value]
    values: list[Any] | None = [None] * topology.world if topology.is_first else None
    dist.gather_object(value, values, dst=0)
    return values or []


def broadcast_tensors(tensors: Iterable[Tensor], topology: Topology) -> None:
    """Give every process the first one's numbers, in place."""
    if topology.world > 1:
        with torch.no_grad():
            for value in tensors:
                dist.broadcast(value, src=0)
