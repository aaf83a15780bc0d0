"""Drawing of images with boxes, masks and labels: panels, pairs of truth and predictions, and the page of pairs."""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from maskperf.files import printable, replace_file
from maskperf.pictures.fonts import Colour, Number, draw_text, drawable, missing_letters, text_width

LARGEST_PANEL_PX = (460, 400)  # width, height; four panels and their margins stay under 2000 px
LARGEST_ZOOM = 3.0
MASK_OPACITY = 0.4
CASING_OPACITY = 0.55
LONGEST_NAME = 18  # characters
LABEL_PX = 14
ERROR_PX, DASH_PX = 3, 6
LARGEST_LABEL_PX = 60
READABLE_PX = 640  # longer side up to which `draw_image` enlarges an image
MOST_ENLARGED = 4
TINY_STROKES = 5  # a box with a side below so many widths of a line is tiny
MOST_FORCED_LABELS = 12  # objects of an image up to which each gets its label, wherever it is
SIMILAR_COLOURS = 110  # distance in red, green and blue below which an object hides its overlay
# Far apart for most eyes; more categories than this get hues a golden section apart.
FIRST_COLOURS = ((230, 57, 70), (251, 120, 20), (29, 122, 230), (255, 190, 11), (0, 180, 190), (157, 78, 221),
                 (239, 71, 155), (42, 168, 96), (140, 100, 60), (130, 190, 30))  # fmt: skip
MARGIN_PX = 16
SMALLEST_PAIR_PX = 400
CAPTION_PX = 24
HEADER_PX = 26
GAP_PX = 8
LEGEND_LINE_PX = 28
LEGEND_PX = 16
MOST_LEGEND_NAMES = 40

PAGE_COLOUR = (232, 235, 240)
PAIR_COLOUR, PAIR_TEXT_COLOUR = (58, 64, 75), (226, 230, 236)  # on light and dark pages
TEXT_COLOUR = (40, 44, 52)
FAINT_TEXT_COLOUR = (120, 126, 138)
NOTE_COLOUR = (90, 96, 108)
LIGHT, DARK = (255, 255, 255), (20, 20, 20)
MIDDLE_LUMINANCE = 145  # above it dark text is read better

Rectangle = tuple[Number, Number, Number, Number]  # left, top, right, bottom


@dataclass(frozen=True)
class Overlay:
    """One object to draw over an image."""

    box: Sequence[Number]  # x, y, width, height
    mask: Bool[np.ndarray, "height width"]
    label: str
    colour: Colour
    is_error: bool = False  # a missed object or a wrong detection, with dashes around its box


def category_colours(names: Sequence[str]) -> dict[str, Colour]:
    """Return a colour for each different name; it depends on the position of the name only."""
    distinct = list(dict.fromkeys(names))
    colours = list(FIRST_COLOURS)
    for index in range(len(distinct) - len(FIRST_COLOURS)):
        channels = colorsys.hsv_to_rgb((0.1 + index * 0.618034) % 1, (0.85, 0.6)[index % 2], (0.7, 0.95)[index % 2])
        red, green, blue = (round(255 * channel) for channel in channels)
        colours.append((red, green, blue))
    return dict(zip(distinct, colours, strict=False))


def short_name(name: str) -> str:
    """Return the name as one short line."""
    line = printable(name).strip() or "(no name)"
    return line if len(line) <= LONGEST_NAME else line[: LONGEST_NAME - 3].rstrip() + "..."


def drawable_names(names: Mapping[int, str]) -> dict[int, str]:
    """Return the names of categories by their ids; one with letters that no font has is preceded by its id."""
    found = {}
    for identity, name in names.items():
        line = drawable(name)
        numbered = f"{identity}: {line}" if any(map(str.isalnum, line)) else f"category {identity}"
        found[identity] = numbered if missing_letters([name]) else name
    return found


def draw_panel(pixels: UInt8[np.ndarray, "height width 3"], overlays: list[Overlay], note: str) -> Image.Image:
    """Return the image at its zoom with its overlays, large ones below small ones; the note if there are none."""
    height, width = pixels.shape[:2]
    zoom = min(LARGEST_PANEL_PX[0] / width, LARGEST_PANEL_PX[1] / height, LARGEST_ZOOM)
    panel = _drawn(pixels, overlays, (max(1, round(width * zoom)), max(1, round(height * zoom))))
    if not overlays:
        _draw_tag(ImageDraw.Draw(panel), _tag_at((6, 6), note, LABEL_PX), note, NOTE_COLOUR, LABEL_PX)
    return panel


def _draw_dashes(draw: ImageDraw.ImageDraw, box: Rectangle) -> None:
    """Draw black and white dashes along the box: seen on any object, whatever its colour and that of its category."""
    left, top, right, bottom = box
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    for (x, y), (to_x, to_y) in pairwise(corners):
        draw.line((x, y, to_x, to_y), fill="black", width=ERROR_PX)
        length = max(abs(to_x - x), abs(to_y - y))
        step_x, step_y = np.sign(to_x - x), np.sign(to_y - y)
        for start in np.arange(0, length, 2 * DASH_PX).tolist():
            end = min(start + DASH_PX, length)
            dash = (x + step_x * start, y + step_y * start, x + step_x * end, y + step_y * end)
            draw.line(dash, fill="white", width=ERROR_PX)


def draw_image(
    pixels: UInt8[np.ndarray, "height width 3"], overlays: list[Overlay], *, scale: int | None = None
) -> Image.Image:
    """Return the image with its overlays at `scale` times its size, with lines and labels that fit that size.

    Without `scale` a small image is enlarged by the smallest whole number that makes its longer side 640 pixels.
    """
    height, width = pixels.shape[:2]
    scale = scale or min(max(1, -(-READABLE_PX // max(height, width))), MOST_ENLARGED)
    longer = scale * max(height, width)
    stroke, label_px = max(2, round(longer / 640)), min(max(LABEL_PX, round(longer / 70)), LARGEST_LABEL_PX)
    return _drawn(pixels, overlays, (scale * width, scale * height), stroke, label_px)


def _drawn(
    pixels: np.ndarray, overlays: list[Overlay], size: tuple[int, int], stroke: int = 2, label_px: int = LABEL_PX
) -> Image.Image:
    height, width = pixels.shape[:2]
    zoom_x, zoom_y = size[0] / width, size[1] / height
    zoomed = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    overlays = sorted(overlays, key=lambda overlay: -int(overlay.mask.sum()))
    overlays = [replace(overlay, colour=_visible(overlay, pixels)) for overlay in overlays]
    boxes: list[Rectangle] = []
    for overlay in overlays:
        x, y, box_width, box_height = (np.array(overlay.box, np.float64) * ((zoom_x, zoom_y) * 2)).tolist()
        left, top = min(max(x, 0), size[0] - 1), min(max(y, 0), size[1] - 1)
        right, bottom = max(x + box_width - 1, left), max(y + box_height - 1, top)
        is_tiny = min(box_width, box_height) < TINY_STROKES * stroke
        if is_tiny:  # the box keeps off the object, which is left as it is
            gap = 2 * stroke
            left, top, right, bottom = max(left - gap, 0), max(top - gap, 0), right + gap, bottom + gap
        else:
            _tint(zoomed, overlay, stroke)
        boxes.append((left, top, min(right, size[0] - 1), min(bottom, size[1] - 1)))
    panel = Image.fromarray(np.clip(np.rint(zoomed), 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(panel)
    for overlay, (left, top, right, bottom) in zip(overlays, boxes, strict=True):
        casing = _contrast(overlay.colour)
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=casing)
        draw.rectangle((left, top, right, bottom), outline=overlay.colour, width=stroke)
        if overlay.is_error:
            _draw_dashes(draw, (left, top, right, bottom))
    labels: list[Rectangle] = []
    for overlay, box in zip(overlays, boxes, strict=True):
        _draw_label(draw, overlay, box, labels, label_px, is_forced=len(overlays) <= MOST_FORCED_LABELS)
    return panel


def _contrast(colour: Sequence[Number] | np.ndarray) -> Colour:
    """Return dark on a light colour and light on a dark one."""
    return DARK if np.dot(colour, (0.299, 0.587, 0.114)) >= MIDDLE_LUMINANCE else LIGHT


def _visible(overlay: Overlay, pixels: np.ndarray) -> Colour:
    """Return the overlay's colour, lighter or darker where the object itself has nearly that colour."""
    rows, columns = np.nonzero(overlay.mask)
    if not len(rows):
        return overlay.colour
    step = max(1, len(rows) // 1000)  # a sample is enough for a mean
    mean = pixels[rows[::step], columns[::step]].astype(np.float64).mean(axis=0)
    if np.linalg.norm(mean - overlay.colour) >= SIMILAR_COLOURS:
        return overlay.colour
    red, green, blue = np.rint(np.array(_contrast(mean)) * 0.65 + np.array(overlay.colour) * 0.35).astype(int).tolist()
    return red, green, blue


def _tint(zoomed: np.ndarray, overlay: Overlay, stroke: int) -> None:
    """Colour the mask's pixels of the zoomed image in place, and draw its edge between light and dark."""
    rows, columns = (np.flatnonzero(overlay.mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return
    (height, width), (full_height, full_width) = overlay.mask.shape, zoomed.shape[:2]
    zoom_y, zoom_x = full_height / height, full_width / width
    margin = 2 * stroke + 2
    top, bottom = max(int(rows[0] * zoom_y) - margin, 0), min(int((rows[-1] + 1) * zoom_y) + margin, full_height)
    left, right = max(int(columns[0] * zoom_x) - margin, 0), min(int((columns[-1] + 1) * zoom_x) + margin, full_width)
    # Zoomed softly and cut at one half, so that a mask of few pixels gets a round edge instead of steps.
    soft = Image.fromarray(overlay.mask.astype(np.uint8) * 255).resize(
        (right - left, bottom - top),
        Image.Resampling.BILINEAR,
        box=(left / zoom_x, top / zoom_y, min(right / zoom_x, width), min(bottom / zoom_y, height)),
    )
    inside = soft.point([255 * (level >= 128) for level in range(256)])
    outer, inner = (stroke + 1) // 2, stroke // 2
    is_inside = np.asarray(inside) > 0
    wider = np.asarray(inside.filter(ImageFilter.MaxFilter(2 * outer + 1))) > 0
    widest = np.asarray(inside.filter(ImageFilter.MaxFilter(2 * (outer + inner) + 1))) > 0
    is_edge = wider & (np.asarray(inside.filter(ImageFilter.MinFilter(2 * inner + 1))) == 0)
    is_casing = widest & ~wider
    part = zoomed[top:bottom, left:right]
    colour = np.array(overlay.colour, dtype=np.float32)
    # Around the edge, for objects in front of the overlay's own colour.
    casing = np.array(_contrast(overlay.colour), np.float32)
    part[is_inside] += (colour - part[is_inside]) * MASK_OPACITY
    part[is_edge] = colour
    part[is_casing] += (casing - part[is_casing]) * CASING_OPACITY


def _draw_label(
    draw: ImageDraw.ImageDraw,
    overlay: Overlay,
    box: Rectangle,
    taken: list[Rectangle],
    label_px: int,
    *,
    is_forced: bool,
) -> None:
    """Draw the label near its box where it covers no other label; elsewhere only if it is forced."""
    left, top, right, bottom = box
    width, height = _tag_at((0, 0), overlay.label, label_px)[2:]
    limit_x, limit_y = draw.im.size[0] - width, draw.im.size[1] - height
    corners = [(left, top - height), (left, bottom + 1), (left, top), (right - width, bottom - height),
               (right - width, top - height), (right - width, bottom + 1),
               (right + 1, top), (left - width, top)]  # fmt: skip
    tags = [_tag_at((max(0, min(x, limit_x)), max(0, min(y, limit_y))), overlay.label, label_px) for x, y in corners]
    free = (tag for tag in tags if not any(_overlap(tag, other) for other in taken))
    chosen = next(free, tags[0] if is_forced else None)
    if chosen is not None:
        _draw_tag(draw, chosen, overlay.label, overlay.colour, label_px)
        taken.append(chosen)


def _overlap(first: Rectangle, second: Rectangle) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _tag_at(corner: tuple[Number, Number], text: str, label_px: int) -> Rectangle:
    return *corner, corner[0] + round(text_width(text, label_px)) + 8, corner[1] + label_px + 4


def _draw_tag(draw: ImageDraw.ImageDraw, tag: Rectangle, text: str, colour: Colour, label_px: int) -> None:
    draw.rounded_rectangle(tag, radius=3, fill=colour)
    middle = (tag[0] + 4, (tag[1] + tag[3]) / 2)
    draw_text(draw, middle, text, size_px=label_px, fill=_contrast(colour))


def draw_pair(truth: Image.Image, found: Image.Image) -> Image.Image:
    """Return two equally large panels side by side under their headings."""
    width, height = truth.size
    pair = Image.new("RGB", (2 * width + GAP_PX, height + HEADER_PX), PAIR_COLOUR)
    draw, font = ImageDraw.Draw(pair), ImageFont.load_default(15)
    for left, panel, text in ((0, truth, "truth"), (width + GAP_PX, found, "found")):
        pair.paste(panel, (left, HEADER_PX))
        draw.text((left + width / 2, HEADER_PX / 2), text, fill=PAIR_TEXT_COLOUR, font=font, anchor="mm")
    return pair


def write_page(pairs: Sequence[tuple[str, Image.Image]], legend: Mapping[str, Colour], path: Path) -> None:
    """Write one PNG with every pair above its caption, and the legend at the bottom.

    Errors: StorageError where `path` cannot be written.
    """
    columns = 1 if len(pairs) <= 2 else 2
    rows = [pairs[first : first + columns] for first in range(0, len(pairs), columns)]
    slot_width = max(SMALLEST_PAIR_PX, *(pair.width for _, pair in pairs))
    slot_heights = [max(pair.height for _, pair in row) + CAPTION_PX + MARGIN_PX for row in rows]
    strip = _draw_legend(legend, columns * (slot_width + MARGIN_PX) + MARGIN_PX)
    page = Image.new("RGB", (strip.width, MARGIN_PX + sum(slot_heights) + strip.height), PAGE_COLOUR)
    draw, top = ImageDraw.Draw(page), MARGIN_PX
    for row, slot_height in zip(rows, slot_heights, strict=True):
        for column, (caption, pair) in enumerate(row):
            left = MARGIN_PX + column * (slot_width + MARGIN_PX) + (slot_width - pair.width) // 2
            page.paste(pair, (left, top))
            line = drawable(printable(caption))
            draw_text(draw, (left, top + pair.height + CAPTION_PX / 2), line, size_px=13, fill=FAINT_TEXT_COLOUR)
        top += slot_height
    page.paste(strip, (0, top))
    replace_file(path, lambda temporary: page.save(temporary, format="PNG"))


def _draw_legend(colours: Mapping[str, Colour], page_width: int) -> Image.Image:
    """Return a strip with a square and a name for each colour, on as many lines as it needs."""
    entries: list[tuple[str, Colour]] = [(short_name(name), colour) for name, colour in colours.items()]
    if len(entries) > MOST_LEGEND_NAMES:
        entries[MOST_LEGEND_NAMES:] = [(f"and {len(entries) - MOST_LEGEND_NAMES} more", PAGE_COLOUR)]
    corners, x, line = [], MARGIN_PX, 0
    for text, _ in entries:
        width = round(text_width(text, LEGEND_PX)) + 46
        if x > MARGIN_PX and x + width > page_width:
            x, line = MARGIN_PX, line + 1
        corners.append((x, line * LEGEND_LINE_PX))
        x += width
    legend = Image.new("RGB", (page_width, (line + 1) * LEGEND_LINE_PX + 8), PAGE_COLOUR)
    draw = ImageDraw.Draw(legend)
    for (text, colour), (left, top) in zip(entries, corners, strict=True):
        draw.rounded_rectangle((left, top + 4, left + 16, top + 20), radius=4, fill=colour)
        draw_text(draw, (left + 24, top + 12), text, size_px=LEGEND_PX, fill=TEXT_COLOUR)
    return legend
