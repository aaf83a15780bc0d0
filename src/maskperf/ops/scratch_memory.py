"""Memory for what lies between the steps of one operation."""

import threading

import torch
from torch import Tensor


class Scratch(threading.local):
    """Memory that is kept between calls, one set for each thread: fresh pages cost more than the work done in them."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        """Return an uninitialized tensor; it is valid until the same name is taken again."""
        count = 1
        for side in shape:
            count *= side
        held = self.buffers.get((name, dtype))
        if held is None or held.numel() < count:
            with torch.inference_mode(False):
                held = torch.empty(count, dtype=dtype)
            self.buffers[name, dtype] = held
        return held[:count].view(shape)
