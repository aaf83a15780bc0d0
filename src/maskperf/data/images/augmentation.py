"""Multi-scale, colour, large-scale jitter and copy-paste: what is drawn for an image, and in which order it is done.

All of it happens on the host, before an image is handed over, so that every way of preparing images has the same
pixels. The horizontal flip comes last and is not drawn here.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance

from maskperf.config import DataConfig
from maskperf.data.images.objects import AnnotatedImage, cropped, pasted, resized
from maskperf.data.images.transforms import SizeHw, target_size_hw

NO_JITTER = (1.0, 1.0)
PASTED_SHARE = 0.5  # of the objects of the other image, on average; one at least

Draw = Callable[..., float]  # of a purpose and perhaps a number: uniform from 0 to below 1, always the same


def is_augmented(data: DataConfig) -> bool:
    """Return whether training images are changed by more than resize and flip."""
    return bool(data.short_sides or data.color or data.copy_paste or data.scale_jitter != NO_JITTER)


def augmented(
    read: Callable[[int], AnnotatedImage], position: int, *, num_images: int, data: DataConfig, draw: Draw
) -> tuple[AnnotatedImage, SizeHw]:
    """Return the image at this position as it is to be trained on, and the size to resize it to.

    Sources: He et al. 2017, section 3.1 of the appendix (multi-scale); Ghiasi et al. 2021 (jitter, copy-paste).
    """
    image, size_hw = _drawn_view(read(position), data, draw)
    if draw("paste") >= data.copy_paste:
        return image, size_hw
    other = (position + 1 + int(draw("pasted image") * (num_images - 1))) % num_images

    def draw_of_other(purpose: str) -> float:
        return draw(f"pasted {purpose}")

    source, source_hw = _drawn_view(read(other), data, draw_of_other)
    common_hw = min(image.size_hw, size_hw)  # fewer pixels, and one resize of a large image
    scales = [common / full for common, full in zip(common_hw, size_hw, strict=True)]
    height, width = (max(1, round(side * scale)) for side, scale in zip(source_hw, scales, strict=True))
    source = resized(source, (height, width))
    count = len(source.objects)
    chosen = [number for number in range(count) if draw("pasted object", number) < PASTED_SHARE]
    image = pasted(
        resized(image, common_hw),
        source,
        chosen or [int(draw("only pasted object") * count)][:count],
        is_mirrored=draw_of_other("flip") < data.flip_probability,
        place=(draw("pasted y"), draw("pasted x")),
    )
    return image, size_hw


def _drawn_view(image: AnnotatedImage, data: DataConfig, draw: Draw) -> tuple[AnnotatedImage, SizeHw]:
    """Return the part of the image that is seen, in its colours, and the size to resize it to.

    A scale above 1 shows a part, which fills the size of the whole image; one below 1 makes the image smaller.
    """
    sides = data.short_sides or (data.short_side,)
    size_hw = target_size_hw(image.size_hw, sides[int(draw("short side") * len(sides))], data.long_side, data.resize)
    low, high = data.scale_jitter
    scale = low + (high - low) * draw("scale")
    if scale > 1:
        height, width = (max(1, round(side / scale)) for side in image.size_hw)
        top, left = (
            int(draw("top") * (image.size_hw[0] - height + 1)),
            int(draw("left") * (image.size_hw[1] - width + 1)),
        )
        image = cropped(image, top=top, left=left, size_hw=(height, width))
    elif scale < 1:
        size_hw = max(1, round(size_hw[0] * scale)), max(1, round(size_hw[1] * scale))
    if data.color:
        brightness, contrast, saturation = (
            1 + data.color * (2 * draw(purpose) - 1) for purpose in ("brightness", "contrast", "saturation")
        )
        bgr = recoloured(image.bgr, brightness=brightness, contrast=contrast, saturation=saturation)
        image = AnnotatedImage(bgr, image.objects)
    return image, size_hw


def recoloured(
    bgr: UInt8[np.ndarray, "height width 3"], *, brightness: float, contrast: float, saturation: float
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the image times `brightness`, then away from its mean gray by `contrast`, then from its own gray.

    A factor of 1 changes nothing. Each step is cut to whole numbers from 0 to 255. Source: Pillow's ImageEnhance.
    """
    image = Image.fromarray(np.ascontiguousarray(bgr[:, :, ::-1]))
    image = ImageEnhance.Brightness(image).enhance(brightness)
    image = ImageEnhance.Contrast(image).enhance(contrast)
    image = ImageEnhance.Color(image).enhance(saturation)
    return np.ascontiguousarray(np.asarray(image)[:, :, ::-1])
