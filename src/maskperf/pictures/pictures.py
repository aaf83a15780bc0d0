"""Draws a page of pictures, each twice: with its ground truth, and with what the model found."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw
from pycocotools import mask as coco_masks

from maskperf.data.coco.document import AnnotationRow, Document, ImageRow, outline_of
from maskperf.data.images.decode import decode_image
from maskperf.errors import StorageError
from maskperf.pictures.fonts import draw_text, drawable, text_width
from maskperf.pictures.panels import (
    Colour,
    Number,
    Overlay,
    category_colours,
    draw_panel,
    drawable_names,
    font_of,
    printable_line,
    printable_name,
)

CARD_PADDING_PX = 10
MARGIN_PX = 16
SMALLEST_SLOT_PX = 200
CAPTION_PX = 24
HEADER_PX = 38
LEGEND_LINE_PX = 28
LEGEND_PX = 16
MOST_LEGEND_NAMES = 40

PAGE_COLOUR = (232, 235, 240)
CARD_COLOUR = (255, 255, 255)
CARD_EDGE_COLOUR = (206, 211, 219)
SLOT_COLOUR = (244, 245, 247)
TEXT_COLOUR = (40, 44, 52)
FAINT_TEXT_COLOUR = (120, 126, 138)


@dataclass(frozen=True, kw_only=True)
class GridItem:
    """One picture, what is in it and what was found; boxes are [x, y, width, height] in its pixels."""

    pixels: UInt8[np.ndarray, "height width 3"]
    truth_boxes: Sequence[Sequence[Number]]
    truth_masks: Sequence[Bool[np.ndarray, "height width"]]
    truth_names: Sequence[str]
    predicted_boxes: Sequence[Sequence[Number]]
    predicted_masks: Sequence[Bool[np.ndarray, "height width"]]
    predicted_names: Sequence[str]
    scores: Sequence[Number]
    truth_is_crowd: Sequence[bool] = ()  # empty: none is
    caption: str = ""


def grid_from_results(
    document: Document,
    image_folder: Path,
    box_results: Sequence[dict],
    mask_results: Sequence[dict],
    *,
    num_images: int,
    min_score: Number = 0.5,
    path: Path,
) -> None:
    """Write the page for `num_images` pictures spread over the split, one with a crowd among them if there is one.

    `document` is in COCO's form, as `read_annotations` returns it.
    Results are entries of COCO's result format; entry k of both lists describes the same detection.
    Errors: ValueError for results that do not belong together; DataError for a picture that cannot be read.
    """
    if [entry["image_id"] for entry in box_results] != [entry["image_id"] for entry in mask_results]:
        raise ValueError("box_results and mask_results do not describe the same detections in the same order")
    names = drawable_names({row.id: str(row.name) for row in document.categories})
    chosen = choose_images(document, num_images)
    annotations: dict[int, list[AnnotationRow]] = {row.id: [] for row in chosen}
    for annotation in document.annotations:
        if annotation.image_id in annotations:
            annotations[annotation.image_id].append(annotation)
    found: dict[int, list[tuple[dict, dict]]] = {row.id: [] for row in chosen}
    for box_result, mask_result in zip(box_results, mask_results, strict=True):
        if box_result["image_id"] in found and box_result["score"] >= min_score:
            found[box_result["image_id"]].append((box_result, mask_result))
    items = [_grid_item(row, image_folder, annotations[row.id], found[row.id], names) for row in chosen]
    prediction_grid(items, list(names.values()), path)


def choose_images(document: Document, num_images: int) -> list[ImageRow]:
    """Return that many images at equal distances in the order of their ids, one with a crowd if there is one.

    Images without objects are taken only where there are no others.
    """
    filled = {row.image_id for row in document.annotations if not row.iscrowd}
    crowded = {row.image_id for row in document.annotations if row.iscrowd}
    ordered = sorted(document.images, key=lambda row: row.id)
    shown = [row for row in ordered if row.id in filled] or ordered
    count = min(num_images, len(shown))
    chosen = [shown[(2 * place + 1) * len(shown) // (2 * count)] for place in range(count)]
    with_crowd = [row for row in ordered if row.id in crowded]
    if chosen and with_crowd and not any(row.id in crowded for row in chosen):
        chosen[-1] = with_crowd[len(with_crowd) // 2]
    return sorted(chosen, key=lambda row: row.id)


def decode_outline(outline: list | dict, size_hw: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Return the mask of polygons, or of run lengths, packed or not, as COCO's own tool draws them."""
    if isinstance(outline, list):
        packed = coco_masks.merge(coco_masks.frPyObjects(outline, *size_hw))
    elif isinstance(outline["counts"], list):
        packed = coco_masks.frPyObjects(outline, *size_hw)
    else:
        packed = outline
    return coco_masks.decode(packed).astype(bool)


def _grid_item(
    row: ImageRow,
    image_folder: Path,
    annotations: list[AnnotationRow],
    found: list[tuple[dict, dict]],
    names: dict[int, str],
) -> GridItem:
    size_hw = (row.height, row.width)
    path, pixels = image_folder / row.file_name, row.height * row.width
    return GridItem(
        pixels=decode_image(path, image_id=row.id, expected_size_hw=size_hw, max_pixels=pixels),
        truth_boxes=[annotation.bbox for annotation in annotations],
        truth_masks=[decode_outline(outline_of(annotation), size_hw) for annotation in annotations],
        truth_names=[names[annotation.category_id] for annotation in annotations],
        truth_is_crowd=[bool(annotation.iscrowd) for annotation in annotations],
        predicted_boxes=[box_result["bbox"] for box_result, _ in found],
        predicted_masks=[decode_outline(mask_result["segmentation"], size_hw) for _, mask_result in found],
        predicted_names=[names[box_result["category_id"]] for box_result, _ in found],
        scores=[box_result["score"] for box_result, _ in found],
        caption=row.file_name,
    )


def prediction_grid(images: list[GridItem], category_names: Sequence[str], path: Path) -> None:
    """Write one PNG: per picture a card with the ground truth on its left and the predictions on its right.

    `category_names` fixes the colours; the legend shows those of them that occur.
    Errors: ValueError for no images or lists of unequal length; StorageError when `path` cannot be written.
    """
    if not images:
        raise ValueError("prediction_grid needs at least one image")
    occurring = dict.fromkeys(name for item in images for name in (*item.truth_names, *item.predicted_names))
    colours = category_colours([*category_names, *occurring])
    pairs = [_draw_pair(item, colours) for item in images]
    columns = 1 if len(pairs) <= 2 else 2
    rows = [pairs[first : first + columns] for first in range(0, len(pairs), columns)]
    slot_width = max(SMALLEST_SLOT_PX, max(pair.truth.width for pair in pairs))
    card_width = 2 * slot_width + 3 * CARD_PADDING_PX
    page_width = columns * (card_width + MARGIN_PX) + MARGIN_PX
    legend = _draw_legend({name: colour for name, colour in colours.items() if name in occurring}, page_width)
    slot_heights = [max(pair.truth.height for pair in row) for row in rows]
    page_height = HEADER_PX + sum(slot_heights) + len(rows) * (CARD_PADDING_PX + CAPTION_PX + MARGIN_PX)
    page = Image.new("RGB", (page_width, page_height + legend.height), PAGE_COLOUR)
    top = HEADER_PX
    for row, slot_height in zip(rows, slot_heights, strict=True):
        for column, pair in enumerate(row):
            left = MARGIN_PX + column * (card_width + MARGIN_PX)
            _draw_card(page, pair, (left, top), (slot_width, slot_height))
            if top == HEADER_PX:
                _draw_header(page, left, slot_width)
        top += CARD_PADDING_PX + slot_height + CAPTION_PX + MARGIN_PX
    page.paste(legend, (0, page_height))
    try:
        page.save(path, format="PNG")
    except OSError as error:
        raise StorageError(f"{path}: cannot write the picture page: {error}. Free some space.") from error


@dataclass(frozen=True)
class _Pair:
    """Both panels of one picture, equally large, and the line under them."""

    truth: Image.Image
    predicted: Image.Image
    caption: str


def _draw_pair(item: GridItem, colours: dict[str, Colour]) -> _Pair:
    crowds = item.truth_is_crowd or [False] * len(item.truth_names)
    truth = [
        Overlay(box, mask, printable_name(name) + (", crowd" if is_crowd else ""), colours[name])
        for box, mask, name, is_crowd in zip(item.truth_boxes, item.truth_masks, item.truth_names, crowds, strict=True)
    ]
    found = zip(item.predicted_boxes, item.predicted_masks, item.predicted_names, item.scores, strict=True)
    predicted = [
        Overlay(box, mask, f"{printable_name(name)} {score:.2f}", colours[name]) for box, mask, name, score in found
    ]
    return _Pair(
        draw_panel(item.pixels, truth, "no objects"),
        draw_panel(item.pixels, predicted, "nothing found"),
        drawable(printable_line(item.caption)),
    )


def _draw_card(page: Image.Image, pair: _Pair, corner: tuple[int, int], slot_size: tuple[int, int]) -> None:
    """Draw both panels side by side, each in the middle of its slot, with the caption under them."""
    draw = ImageDraw.Draw(page)
    left, top = corner
    width, height = slot_size
    right = left + 2 * width + 3 * CARD_PADDING_PX
    bottom = top + CARD_PADDING_PX + height + CAPTION_PX
    draw.rounded_rectangle((left, top, right, bottom), radius=8, fill=CARD_COLOUR, outline=CARD_EDGE_COLOUR)
    top += CARD_PADDING_PX
    for panel in (pair.truth, pair.predicted):
        left += CARD_PADDING_PX
        draw.rectangle((left, top, left + width - 1, top + height - 1), fill=SLOT_COLOUR)
        page.paste(panel, (left + (width - panel.width) // 2, top + (height - panel.height) // 2))
        left += width
    line = (corner[0] + CARD_PADDING_PX, top + height + CAPTION_PX / 2)
    draw_text(draw, line, pair.caption, size_px=13, fill=FAINT_TEXT_COLOUR)


def _draw_header(page: Image.Image, left: int, slot_width: int) -> None:
    draw = ImageDraw.Draw(page)
    for place, text in enumerate(("ground truth", "predictions")):
        middle = left + CARD_PADDING_PX + place * (slot_width + CARD_PADDING_PX) + slot_width / 2
        draw.text((middle, HEADER_PX / 2 + 2), text, fill=TEXT_COLOUR, font=font_of(20), anchor="mm")


def _draw_legend(colours: dict[str, Colour], page_width: int) -> Image.Image:
    """Return a strip with a square and a name for each colour, on as many lines as it needs."""
    shown = list(colours.items())[:MOST_LEGEND_NAMES]
    entries: list[tuple[str, Colour | None]] = [(printable_name(name), colour) for name, colour in shown]
    if len(colours) > len(shown):
        entries.append((f"and {len(colours) - len(shown)} more", None))
    places, x, line = [], MARGIN_PX, 0
    for text, _ in entries:
        width = round(text_width(text, LEGEND_PX)) + 46
        if x > MARGIN_PX and x + width > page_width:
            x, line = MARGIN_PX, line + 1
        places.append((x, line * LEGEND_LINE_PX))
        x += width
    legend = Image.new("RGB", (page_width, (line + 1) * LEGEND_LINE_PX + 8), PAGE_COLOUR)
    draw = ImageDraw.Draw(legend)
    for (text, colour), (left, top) in zip(entries, places, strict=True):
        if colour is not None:
            draw.rounded_rectangle((left, top + 4, left + 16, top + 20), radius=4, fill=colour)
        draw_text(draw, (left + 24, top + 12), text, size_px=LEGEND_PX, fill=TEXT_COLOUR)
    return legend
