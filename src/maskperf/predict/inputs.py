"""Whatever a user has as an image, as rows of B, G, R."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from maskperf.data.images.decode import decode_image
from maskperf.errors import ConfigError
from maskperf.predict.sources import refuse_url

ORDERS = ("RGB", "BGR")
MODES_OF_8_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "La", "RGBa")
STATE_THE_ORDER = 'Fix: add channels="RGB", or channels="BGR" for an image that OpenCV has read.'


def read_bgr(image: Any, *, channels: str | None, max_pixels: int) -> UInt8[np.ndarray, "height width 3"]:
    """Return a path's, Pillow's, numpy's or torch's image as an array with the channels B, G, R.

    Arrays are height x width x 3, tensors 3 x height x width, both uint8; `channels` states their order. EXIF rotation
    is ignored as in training.
    Errors: ConfigError for something else; DataError for a file that cannot be used.
    """
    if channels is not None and channels not in ORDERS:
        raise ConfigError(f"channels={channels!r} is not an order of channels. Fix: give one of {', '.join(ORDERS)}.")
    if isinstance(image, str | Path):
        refuse_url(str(image))
        path = Path(image).expanduser()
        return decode_image(path, expected_size_hw=None, max_pixels=max_pixels, channels="BGR")
    if isinstance(image, Image.Image):
        if image.mode not in MODES_OF_8_BITS:
            raise ConfigError(f"a Pillow image of mode {image.mode}: only images of 8 bits per channel can be used.")
        return np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])
    if isinstance(image, torch.Tensor):
        kind, shape = f"tensor of {image.dtype}, {tuple(image.shape)}", image.shape
        if image.dtype != torch.uint8 or len(shape) != 3 or shape[0] != 3:
            fix = "Fix: give 3 x height x width in torch.uint8; (x * 255).round().to(torch.uint8) for values of 0 to 1."
            raise ConfigError(f"a {kind} is not an image. {fix}")
        image = image.detach().cpu().permute(1, 2, 0).numpy()
    elif isinstance(image, np.ndarray):
        kind, shape = f"array of {image.dtype}, {image.shape}", image.shape
        if image.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
            raise ConfigError(f"an {kind} is not an image. Fix: give height x width x 3 in numpy.uint8.")
    else:
        raise ConfigError(
            f"{type(image).__name__} is not an image. Fix: give a path, or an image of Pillow, numpy, torch."
        )
    if channels is None:
        raise ConfigError(f"{kind}: does not say the order of its channels. {STATE_THE_ORDER}")
    if 0 in image.shape:
        raise ConfigError(f"a {kind} has no pixel.")
    return np.ascontiguousarray(image if channels == "BGR" else image[:, :, ::-1])
