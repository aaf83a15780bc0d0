"""Whether numbers are finite, found on the device that holds them, without waiting for it."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

FAULTY_PARTS = ("loss", "gradient", "weight")


def any_not_finite(tensors: Iterable[Tensor], device: torch.device) -> Float[Tensor, ""]:
    """Returns 1 on the device where one of the numbers is infinite or not a number, else 0.

    One pass over memory: smallest and largest of a tensor are finite if and only if all of it is.
    """
    ends = [end.float() for tensor in tensors if tensor.numel() for end in torch.aminmax(tensor.detach())]
    if not ends:
        return torch.zeros((), device=device)
    return 1 - torch.isfinite(torch.stack(ends)).all().float()
