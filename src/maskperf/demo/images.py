"""Draws the demo images: a textured background, instances with soft shadows, and the visible part of each."""

import colorsys
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from maskperf.demo.outlines import Polygon, polygon_area, tight_box, trace_outline
from maskperf.demo.shapes import CATEGORIES, Category
from maskperf.seeds import derive_seed

WINDOW_MARGIN_PX = 6  # room around an instance for its soft edge and its shadow
SHADOW_SHIFT_PX = 2
SHADOW_SOFTNESS_PX = 5.0
SHADOW_STRENGTH = 0.42
SIZES_HW = ((120, 160), (160, 120), (144, 144), (112, 176), (176, 112), (96, 128), (128, 96), (128, 192), (192, 128))
CROWD_EVERY = 25  # one image in so many holds a crowd, by its index in the split, so that small sets have one too
CROWD_INDEX = 7
EMPTY_EVERY = 33
EMPTY_INDEX = 16
PLACEMENT_ATTEMPTS = 25
SMALLEST_VISIBLE_SHARE = 0.25
SMALLEST_AREA_PX = 40
SMALLEST_SIDE_PX = 5
SMALLEST_PIECE_PX = 10  # no crumbs of an instance between two others
SMALLEST_CROWD_AREA_PX = 250


@dataclass(frozen=True)
class Figure:
    """A category's shape at its position: a window of the image that may reach over the border."""

    category: Category
    top: int
    left: int
    u: Float32[np.ndarray, "height width"]
    v: Float32[np.ndarray, "height width"]
    distance_px: Float32[np.ndarray, "height width"]

    def inside(self) -> Bool[np.ndarray, "height width"]:
        """Return the pixels of the window whose centre belongs to the instance."""
        return self.distance_px <= 0

    def mask(self, size_hw: tuple[int, int]) -> Bool[np.ndarray, "image_height image_width"]:
        """Return the same pixels in an image of that size, as if nothing were in front."""
        mask = np.zeros(size_hw, dtype=bool)
        in_image, in_window = overlap(self, size_hw)
        mask[in_image] = self.inside()[in_window]
        return mask


@dataclass(frozen=True)
class Instance:
    """What one annotation describes; a crowd has several figures and no outline."""

    category: Category
    figures: list[Figure]
    visible: Bool[np.ndarray, "height width"]
    outline: list[Polygon]


@dataclass(frozen=True)
class DemoImage:
    """One image and its instances, from the front to the back."""

    pixels: UInt8[np.ndarray, "height width 3"]
    instances: list[Instance]


def image_id_of(split_index: int, index: int) -> int:
    """Return the id of a split's image: odd in train2017, even in val2017, so that no two are the same."""
    return 2 * index + split_index + 1


def draw_image(split_index: int, index: int, seed: int) -> DemoImage:
    """Return the image at `index` of a split; it depends on the arguments and on no other image."""
    key = derive_seed(seed, "demo picture", split_index, image_id_of(split_index, index))
    generator = np.random.default_rng(key)
    size_hw = SIZES_HW[generator.integers(len(SIZES_HW))]
    empty = index % EMPTY_EVERY == EMPTY_INDEX
    crowded = index % CROWD_EVERY == CROWD_INDEX and not empty
    count = 0 if empty else int(generator.integers(1, 4 if crowded else 7))
    instances = _place_instances(size_hw, count, crowded, generator)
    pixels = draw_background(size_hw, generator)
    for instance in reversed(instances):
        for figure in instance.figures:
            paint(pixels, figure, generator)
    pixels = np.clip(np.rint(add_grain(pixels, generator)), 0, 255).astype(np.uint8)
    return DemoImage(pixels, instances)


def _place_instances(
    size_hw: tuple[int, int], count: int, crowded: bool, generator: np.random.Generator
) -> list[Instance]:
    """Return up to `count` instances and perhaps a crowd, from the front to the back: later ones show less."""
    taken = np.zeros(size_hw, dtype=bool)
    instances = []
    for is_crowd in [False] * count + [True] * crowded:
        category = CATEGORIES[generator.integers(len(CATEGORIES))]  # once, or retries would make thin ones rare
        for _ in range(PLACEMENT_ATTEMPTS):
            instance = (_try_crowd if is_crowd else _try_instance)(category, taken, count, generator)
            if instance is not None:
                instances.append(instance)
                taken |= instance.visible
                break
    return instances


def _try_instance(category: Category, taken: np.ndarray, count: int, generator: np.random.Generator) -> Instance | None:
    """Return an instance behind the pixels `taken`, or None where too little of it, or only crumbs, would show."""
    height, width = taken.shape
    largest_px = min(46 if count < 3 else 38 if count < 5 else 30, 0.4 * min(height, width))
    radius_px = largest_px * (12 / largest_px) ** (generator.random() ** 1.6)  # from 12 px, more of the larger ones
    cut_by_border = generator.random() < 0.2
    reach_px = 0.2 * radius_px if cut_by_border else radius_px
    centre_xy = (generator.uniform(reach_px, width - reach_px), generator.uniform(reach_px, height - reach_px))
    figure = make_figure(category, centre_xy, radius_px, generator)
    visible = figure.mask(taken.shape) & ~taken
    share = visible.sum() / figure.inside().sum()
    wanted_share = SMALLEST_VISIBLE_SHARE if cut_by_border or generator.random() < 0.35 else 0.75
    if share < wanted_share or visible.sum() < SMALLEST_AREA_PX or min(tight_box(visible)[2:]) < SMALLEST_SIDE_PX:
        return None
    outline = trace_outline(visible)
    if min(polygon_area(polygon) for polygon in outline) < SMALLEST_PIECE_PX:  # a crumb or a hole
        return None
    return Instance(category, [figure], visible, outline)


def _try_crowd(category: Category, taken: np.ndarray, _: int, generator: np.random.Generator) -> Instance | None:
    """Return a heap of small instances of that category behind the pixels `taken`, or None where too little shows."""
    height, width = taken.shape
    middle = (generator.uniform(0.25, 0.75) * width, generator.uniform(0.25, 0.75) * height)
    figures = []
    visible = np.zeros_like(taken)
    for _ in range(generator.integers(14, 26)):
        centre_xy = (middle[0] + generator.normal(0, 0.17 * width), middle[1] + generator.normal(0, 0.17 * height))
        figures.append(make_figure(category, centre_xy, generator.uniform(5, 8), generator))
        visible |= figures[-1].mask(taken.shape)
    visible &= ~taken
    return Instance(category, figures, visible, []) if visible.sum() >= SMALLEST_CROWD_AREA_PX else None


def overlap(figure: Figure, size_hw: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return where the figure's window lies in the image, and that same part inside the window."""
    in_image, in_window = [], []
    for start, length, limit in zip((figure.top, figure.left), figure.u.shape, size_hw, strict=True):
        first = min(max(start, 0), limit)
        last = max(min(start + length, limit), first)
        in_image.append(slice(first, last))
        in_window.append(slice(first - start, last - start))
    return (in_image[0], in_image[1]), (in_window[0], in_window[1])


def make_figure(
    category: Category, centre_xy: tuple[float, float], radius_px: float, generator: np.random.Generator
) -> Figure:
    """Return the category's shape at that position, turned, and made wider or narrower with the same area."""
    turn = generator.uniform(-category.largest_turn, category.largest_turn)
    stretch = generator.uniform(0.9, 1.1)
    reach = math.ceil(radius_px * max(stretch, 1 / stretch)) + WINDOW_MARGIN_PX
    left, top = round(centre_xy[0]) - reach, round(centre_xy[1]) - reach
    offsets = np.arange(2 * reach + 1, dtype=np.float32) + np.float32(0.5)
    x = (offsets + (left - centre_xy[0]))[None, :].astype(np.float32)
    y = (offsets + (top - centre_xy[1]))[:, None].astype(np.float32)
    cosine, sine = math.cos(turn), math.sin(turn)
    u = (x * cosine + y * sine) / np.float32(radius_px * stretch)
    v = (y * cosine - x * sine) / np.float32(radius_px / stretch)
    distance_px = (category.distance(u, v) * radius_px).astype(np.float32)
    return Figure(category, top, left, u.astype(np.float32), v.astype(np.float32), distance_px)


def paint(pixels: Float32[np.ndarray, "height width 3"], figure: Figure, generator: np.random.Generator) -> None:
    """Draw the figure and its shadow over `pixels` (0 to 255), in place."""
    in_image, in_window = overlap(figure, (pixels.shape[0], pixels.shape[1]))
    shifted = np.roll(figure.distance_px, (SHADOW_SHIFT_PX, SHADOW_SHIFT_PX), axis=(0, 1))
    shadow = np.clip(0.5 - shifted / SHADOW_SOFTNESS_PX, 0, 1)[..., None] * SHADOW_STRENGTH
    coverage = np.clip(0.5 - figure.distance_px, 0, 1)[..., None]
    colours = _colours(figure, generator)
    below = pixels[in_image] * (1 - shadow[in_window])
    pixels[in_image] = below + (colours[in_window] - below) * coverage[in_window]


def _colours(figure: Figure, generator: np.random.Generator) -> np.ndarray:
    """Return the instance's own red, green and blue over its whole window."""
    category = figure.category
    hue, saturation, brightness = category.hsv
    hue = (hue + generator.uniform(-0.03, 0.03)) % 1
    saturation *= generator.uniform(0.8, 1.1)
    brightness *= generator.uniform(0.82, 1.08)
    base = 255 * np.array(colorsys.hsv_to_rgb(hue, min(saturation, 1), min(brightness, 1)), dtype=np.float32)
    light = category.pattern(figure.u, figure.v)
    light = light * np.where(figure.distance_px > -1.3, 0.72, 1)  # a dark rim separates instances of similar colour
    light = light * (1 + 0.12 * (smooth_noise(figure.u.shape, 5, generator) - 0.5))
    height, width = figure.u.shape
    slope = np.linspace(0.1, -0.1, height)[:, None] + np.linspace(0.06, -0.06, width)[None, :]
    light = (light * (1 + slope)).astype(np.float32)[..., None]
    return base * np.minimum(light, 1) + (255 - base) * np.clip(light - 1, 0, 1)


def draw_background(size_hw: tuple[int, int], generator: np.random.Generator) -> Float32[np.ndarray, "height width 3"]:
    """Return a muted surface: two near colours mixed by a slope and soft noise, at times striped; 0 to 255."""
    height, width = size_hw
    hue = generator.random()
    ends = []
    for brightness in generator.uniform(0.3, 0.78) + generator.uniform(-0.09, 0.09, size=2):
        hue = (hue + generator.uniform(-0.1, 0.1)) % 1
        ends.append(colorsys.hsv_to_rgb(hue, generator.uniform(0.04, 0.28), brightness))
    near, far = (255 * np.array(end, dtype=np.float32) for end in ends)
    angle = generator.uniform(0, 2 * math.pi)
    along = np.arange(width)[None, :] * math.cos(angle) + np.arange(height)[:, None] * math.sin(angle)
    mix = 0.5 + 0.6 * (along - along.mean()) / max(height, width)
    mix = mix + 0.7 * (smooth_noise(size_hw, 4, generator) - 0.5) + 0.45 * (smooth_noise(size_hw, 14, generator) - 0.5)
    if generator.random() < 0.35:
        mix = mix + generator.uniform(0.15, 0.4) * np.sin(along * (2 * math.pi / generator.uniform(7, 26)))
    mix = np.clip(mix, 0, 1).astype(np.float32)[..., None]
    return near + (far - near) * mix


def smooth_noise(
    size_hw: tuple[int, int], cells: int, generator: np.random.Generator
) -> Float32[np.ndarray, "height width"]:
    """Return soft blobs between about 0 and 1, `cells` of them across and down."""
    coarse = Image.fromarray(generator.random((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((size_hw[1], size_hw[0]), Image.Resampling.BICUBIC))


def add_grain(
    pixels: Float32[np.ndarray, "height width 3"], generator: np.random.Generator
) -> Float32[np.ndarray, "height width 3"]:
    """Return the image with the noise of a camera's sensor: mostly grey, a little coloured."""
    grey = generator.standard_normal((*pixels.shape[:2], 1), dtype=np.float32)
    coloured = generator.standard_normal(pixels.shape, dtype=np.float32)
    return pixels + np.float32(3.5) * grey + np.float32(1.5) * coloured
