"""Whether numbers are finite, found on the device that holds them, without waiting for it."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils import get_total_norm

BAD_PARTS = ("loss", "gradient", "weight")


def any_not_finite(tensors: Iterable[Tensor], device: torch.device) -> Float[Tensor, ""]:
    """Return 1 on the device where one of the numbers is infinite or not a number, else 0, in one pass over memory."""
    filled = [tensor.detach() for tensor in tensors if tensor.numel()]
    if not filled:
        return torch.zeros((), device=device)
    largest = smallest_and_largest(filled) if device.type == "cpu" else largest_magnitude(filled)
    return 1 - torch.isfinite(largest).all().float()


def smallest_and_largest(tensors: list[Tensor]) -> Float[Tensor, " ends"]:
    """Return two numbers a tensor, finite if and only if all of it is. On a CPU 15 times as fast as the other way."""
    return torch.stack([end.float() for tensor in tensors for end in torch.aminmax(tensor)])


def largest_magnitude(tensors: list[Tensor]) -> Float[Tensor, ""]:
    """Return one number, finite if and only if all are. On a GPU a launch or two for all tensors, not two for each."""
    return get_total_norm([tensor.float() for tensor in tensors], norm_type=float("inf"))
