"""Draws boxes, masks and labels over one picture."""

import colorsys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from maskperf.pictures.fonts import draw_text, drawable, missing_letters, text_width

LARGEST_PANEL_PX = (460, 400)  # width, height; four panels and their margins stay under 2000 px
LARGEST_ZOOM = 3.0
MASK_OPACITY = 0.4
RIM_OPACITY = 0.55
LONGEST_NAME = 18  # characters
LABEL_PX = 14
VARIATION_SELECTORS = frozenset(map(chr, range(0xFE00, 0xFE10)))  # emoji or plain: fonts decide
# Far apart for most eyes; more categories than this get hues a golden section apart.
FIRST_COLOURS = ((230, 57, 70), (251, 120, 20), (29, 122, 230), (255, 190, 11), (0, 180, 190), (157, 78, 221),
                 (239, 71, 155), (42, 168, 96), (140, 100, 60), (130, 190, 30))  # fmt: skip

Colour = tuple[int, int, int]
Number = int | float
Rectangle = tuple[Number, Number, Number, Number]  # left, top, right, bottom


@dataclass(frozen=True)
class Overlay:
    """One thing to draw over a picture."""

    box: Sequence[Number]  # x, y, width, height
    mask: Bool[np.ndarray, "height width"]
    label: str
    colour: Colour


def category_colours(names: Sequence[str]) -> dict[str, Colour]:
    """Return a colour for each different name; it depends on the name's place only."""
    distinct = list(dict.fromkeys(names))
    colours = list(FIRST_COLOURS)
    for index in range(len(distinct) - len(FIRST_COLOURS)):
        hue = (0.1 + index * 0.618034) % 1
        red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.6)[index % 2], (0.7, 0.95)[index % 2])
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return dict(zip(distinct, colours, strict=False))


def printable_name(name: str) -> str:
    """Return the name as one short line."""
    line = printable_line(name) or "(no name)"
    return line if len(line) <= LONGEST_NAME else line[: LONGEST_NAME - 3].rstrip() + "..."


def printable_line(text: str) -> str:
    """Return the text on one line, with a question mark for what is no letter; signs without a shape are left out."""
    shown = (letter for letter in text if unicodedata.category(letter) != "Cf" and letter not in VARIATION_SELECTORS)
    return " ".join("".join(letter if letter.isprintable() or letter.isspace() else "?" for letter in shown).split())


def drawable_names(names: Mapping[int, str]) -> dict[int, str]:
    """Return the names of categories by their ids; one with letters that no font has is told by its id as well."""
    found = {}
    for identity, name in names.items():
        line = drawable(printable_line(name))
        is_readable = any(letter.isalnum() for letter in line)
        told = f"{identity}: {line}" if is_readable else f"category {identity}"
        found[identity] = told if missing_letters([printable_line(name)]) else name
    return found


def draw_panel(pixels: UInt8[np.ndarray, "height width 3"], overlays: list[Overlay], note: str) -> Image.Image:
    """Return the picture at its zoom with its overlays, large ones below small ones; the note if there are none."""
    height, width = pixels.shape[:2]
    zoom = min(LARGEST_PANEL_PX[0] / width, LARGEST_PANEL_PX[1] / height, LARGEST_ZOOM)
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    canvas = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    overlays = sorted(overlays, key=lambda overlay: -int(overlay.mask.sum()))
    for overlay in overlays:
        _tint(canvas, overlay, size)
    panel = Image.fromarray(np.clip(np.rint(canvas), 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(panel)
    boxes = []
    for overlay in overlays:
        x, y, box_width, box_height = (float(value) * zoom for value in overlay.box)
        left, top = min(max(x, 0), size[0] - 1), min(max(y, 0), size[1] - 1)
        boxes.append((left, top, min(max(x + box_width - 1, left), size[0] - 1),
                      min(max(y + box_height - 1, top), size[1] - 1)))  # fmt: skip
        draw.rectangle(boxes[-1], outline=overlay.colour, width=2)
    labels: list[Rectangle] = []
    for overlay, box in zip(overlays, boxes, strict=True):
        labels.append(_draw_label(draw, overlay, box, labels))
    if not overlays:
        _draw_tag(draw, (6, 6), note, (90, 96, 108))
    return panel


def _tint(canvas: np.ndarray, overlay: Overlay, size: tuple[int, int]) -> None:
    """Colours the mask's pixels of the zoomed picture in place, and draws its edge."""
    # Zoomed softly and cut at one half, so that a mask of few pixels gets a round edge instead of steps.
    soft = Image.fromarray(overlay.mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    inside = soft.point([255 * (level >= 128) for level in range(256)])
    is_inside = np.asarray(inside) > 0
    wider = np.asarray(inside.filter(ImageFilter.MaxFilter(3))) > 0
    widest = np.asarray(inside.filter(ImageFilter.MaxFilter(5))) > 0
    is_edge = wider & (np.asarray(inside.filter(ImageFilter.MinFilter(3))) == 0)
    colour = np.array(overlay.colour, dtype=np.float32)
    canvas[is_inside] += (colour - canvas[is_inside]) * MASK_OPACITY
    canvas[is_edge] = colour
    is_rim = widest & ~wider  # white around the edge, for things of the overlay's own colour
    canvas[is_rim] += (255 - canvas[is_rim]) * RIM_OPACITY


def _draw_label(draw: ImageDraw.ImageDraw, overlay: Overlay, box: Rectangle, taken: list[Rectangle]) -> Rectangle:
    """Draw the label near its box, where it covers no other label if it can; returns where it lies."""
    width, height = _tag_size(overlay.label)
    limit_x, limit_y = draw.im.size[0] - width, draw.im.size[1] - height
    left, top, right, bottom = box
    corners = [(left, top - height), (left, bottom + 1), (left, top), (right - width, bottom - height),
               (right - width, top - height), (right - width, bottom + 1)]  # fmt: skip
    free = None
    for x, y in corners:
        x, y = max(0, min(x, limit_x)), max(0, min(y, limit_y))
        place = (x, y, x + width, y + height)
        free = place if free is None else free
        if not any(_overlap(place, other) for other in taken):
            free = place
            break
    _draw_tag(draw, free[:2], overlay.label, overlay.colour)
    return free


def _overlap(first: Rectangle, second: Rectangle) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _tag_size(text: str) -> tuple[int, int]:
    return round(text_width(text, LABEL_PX)) + 8, 18


def _draw_tag(draw: ImageDraw.ImageDraw, corner: tuple[Number, Number], text: str, colour: Colour) -> None:
    width, height = _tag_size(text)
    left, top = corner
    draw.rounded_rectangle((left, top, left + width, top + height), radius=3, fill=colour)
    red, green, blue = colour
    is_light = 0.3 * red + 0.59 * green + 0.11 * blue > 150
    fill = (20, 20, 20) if is_light else "white"
    draw_text(draw, (left + 4, top + height / 2), text, size_px=LABEL_PX, fill=fill)


def font_of(size_px: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font, for headings: they are the same on every machine."""
    return ImageFont.load_default(size_px)
