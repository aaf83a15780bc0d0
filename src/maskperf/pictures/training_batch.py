"""A batch of training images as the network sees them: resized, mirrored and padded, with their targets drawn."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image

from maskperf.losses.mask import mask_targets
from maskperf.pictures import drawing
from maskperf.pictures.choice import picture_entry
from maskperf.schema import PictureEntry
from maskperf.structures import Batch, Images, SampledRois

MOST_IMAGES = 8
MASK_SIDE = 112  # cells of a mask target inside its box; the mask head's have 28


def batch_entries(
    batch: Batch, names: Sequence[str], titles: Sequence[str], means_bgr: tuple[float, float, float]
) -> Iterator[PictureEntry]:
    """Yield the first images of a batch on the CPU with boxes, categories and mask targets.

    `names` are those of the labels 1 and up, `titles` those of the images. The masks come from the function that makes
    the targets of the mask loss, on a finer grid.
    """
    assert isinstance(batch.images, Images), "the images are not prepared"
    shown = drawing.drawable_names(dict(enumerate(names, start=1)))
    colours = drawing.category_colours(list(shown.values()))
    masks = _masks(batch)
    for index, title in enumerate(titles[:MOST_IMAGES]):
        height, width = batch.images.sizes_hw[index].tolist()
        bgr = batch.images.pixels[index].float().permute(1, 2, 0)[:height, :width] + torch.tensor(means_bgr)
        pixels = bgr.flip(-1).round().clamp(0, 255).to(torch.uint8).numpy()
        overlays = []
        for slot in torch.nonzero(batch.targets.valid[index]).flatten().tolist():
            box = batch.targets.boxes[index, slot].tolist()
            name = shown[int(batch.targets.labels[index, slot])]
            xywh = (box[0], box[1], box[2] - box[0] + 1, box[3] - box[1] + 1)
            mask = _pasted(masks[index, slot].numpy(), box, (height, width))
            overlays.append(drawing.Overlay(xywh, mask, drawing.short_name(name), colours[name]))
        caption = f"{width} x {height} pixels, {len(overlays)} object{'s' if len(overlays) != 1 else ''}"
        yield picture_entry("batch", title, caption, drawing.draw_panel(pixels, overlays, "no objects"))


def _masks(batch: Batch) -> torch.Tensor:
    """Return the mask of each slot inside its box."""
    targets = batch.targets
    slots = torch.arange(targets.valid.shape[1]).expand_as(targets.valid)
    own = SampledRois(boxes=targets.boxes, labels=targets.labels, matched_slots=slots, valid=targets.valid)
    return mask_targets(own, targets, MASK_SIDE)


def _pasted(mask: np.ndarray, box: Sequence[float], size_hw: tuple[int, int]) -> np.ndarray:
    """Return a mask of the whole image."""
    left, top, right, bottom = (round(side) for side in box)
    side_hw = max(1, bottom - top), max(1, right - left)
    inside = Image.fromarray(mask.astype(np.uint8) * 255).resize(side_hw[::-1], Image.Resampling.BILINEAR)
    whole = Image.new("L", size_hw[::-1])
    whole.paste(inside, (left, top))
    return np.asarray(whole) >= 128
