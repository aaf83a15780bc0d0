"""Decoded images on their way to the device: one buffer a batch, used again once it was copied."""

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from maskperf.ops.preprocess import to_images
from maskperf.ops.resize import resize_table
from maskperf.structures import Batch, EvaluationBatch, Images, RawImage, RawImages, to_device

AnyBatch = TypeVar("AnyBatch", Batch, EvaluationBatch)
NUMBER_BYTES = 4  # images begin at multiples of it, as the tables before them must


class UploadBuffers:
    """Byte buffers for loader threads; one comes back when its batch was copied to the device.

    At most `max_waiting` buffers wait here, the largest, so memory is bounded by them and by the batches that someone
    holds. A batch that is thrown away unused takes its buffer with it.
    """

    def __init__(self, *, max_waiting: int, pin_memory: bool):
        self.max_waiting = max_waiting
        self.pin_memory = pin_memory
        self._waiting: list[tuple[Tensor, Callable[[], bool] | None]] = []  # by rising size
        self._lock = threading.Lock()

    def take(self, num_bytes: int) -> tuple[UInt8[Tensor, " bytes"], Callable[[Callable[[], bool] | None], None]]:
        """Return a buffer of at least so many bytes, of any content, and what gives it back: once, or RuntimeError.

        That takes a function which says whether the copy from the buffer is done; None: it is.
        """
        with self._lock:
            for position, (buffer, is_copied) in enumerate(self._waiting):
                if buffer.numel() >= num_bytes and (is_copied is None or is_copied()):
                    del self._waiting[position]
                    return buffer, partial(self._give_back, [buffer])
        size = 1 << max(num_bytes - 1, 1).bit_length()  # few sizes, so that most buffers fit most batches
        buffer = torch.empty(size, dtype=torch.uint8, pin_memory=self.pin_memory)
        return buffer, partial(self._give_back, [buffer])

    def _give_back(self, lent: list[Tensor], is_copied: Callable[[], bool] | None) -> None:
        if not lent:
            raise RuntimeError("These images were prepared before; their memory may hold others by now.")
        with self._lock:
            self._waiting.append((lent.pop(), is_copied))
            self._waiting.sort(key=lambda entry: entry[0].numel())
            del self._waiting[: -self.max_waiting]


def pack_images(
    images: list[UInt8[np.ndarray, "_ _ 3"]],
    new_sizes_hw: list[tuple[int, int]],
    are_mirrored: list[bool],
    *,
    padded_hw: tuple[int, int],
    means_bgr: tuple[float, float, float],
    buffers: UploadBuffers,
) -> RawImages:
    """Return the images and the tables of their resize in one of the buffers."""
    entries, parts, end = [], [], 0
    for image, new_hw, is_mirrored in zip(images, new_sizes_hw, are_mirrored, strict=True):
        rows, columns = (resize_table(old, new) for old, new in zip(image.shape[:2], new_hw, strict=True))
        first_byte = end + rows.nbytes + columns.nbytes
        entry = RawImage(
            first_byte=first_byte,
            height=image.shape[0],
            width=image.shape[1],
            new_height=new_hw[0],
            new_width=new_hw[1],
            is_mirrored=is_mirrored,
            row_table=end // NUMBER_BYTES,
            row_taps=len(rows) - 1,
            column_table=(end + rows.nbytes) // NUMBER_BYTES,
            column_taps=len(columns) - 1,
        )
        entries.append(entry)
        padding = np.zeros(-image.size % NUMBER_BYTES, np.uint8)
        parts += [*(table.reshape(-1).view(np.uint8) for table in (rows, columns)), image.reshape(-1), padding]
        end = first_byte + image.size + len(padding)
    buffer, release = buffers.take(end)
    np.concatenate(parts, out=buffer.numpy()[:end])  # not torch: loader threads must not each start its threads
    return RawImages(
        content=buffer[:end],
        entries=tuple(entries),
        sizes_hw=torch.tensor(new_sizes_hw, dtype=torch.int64),
        padded_hw=padded_hw,
        means_bgr=torch.tensor(means_bgr, dtype=torch.float32),
        release=release,
    )


def prepare_images(batch: AnyBatch, device: torch.device, *, dtype: torch.dtype = torch.float32) -> AnyBatch:
    """Return the batch on the device, with its images ready for the network; otherwise as `images_on_device`."""
    return to_device(replace(batch, images=images_on_device(batch.images, device, dtype=dtype)), device)


def images_on_device(images: Images | RawImages, device: torch.device, *, dtype: torch.dtype) -> Images:
    """Return the images ready for the network, in `dtype` where they come raw; nothing else of their batch is moved.

    Does not wait for the device. The memory of raw images goes back to their buffers.
    Errors: RuntimeError when raw images come a second time.
    """
    moved = to_device(images, device)
    if isinstance(moved, Images):
        return moved
    is_copied = None
    if device.type == "cuda":
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(device))
        is_copied = copied.query
    made = to_images(moved, dtype=dtype)
    moved.release(is_copied)  # not before: on a CPU nothing is copied, and the buffer itself was read
    return made
