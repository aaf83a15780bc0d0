"""An image as decoded with the objects on it, and what becomes of both when it is cropped, resized or pasted on."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from pycocotools import mask as coco_masks

from maskperf.data.images.transforms import SizeHw, move_boxes, move_points, resize_and_mirror


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of one image as flat arrays, in pixels of the image."""

    boxes: Float32[np.ndarray, "objects 4"]
    labels: Int64[np.ndarray, " objects"]
    polygon_offsets: Int64[np.ndarray, " objects_plus_1"]  # of object o: polygon_offsets[o]:polygon_offsets[o + 1]
    point_offsets: Int64[np.ndarray, " polygons_plus_1"]
    points: Float32[np.ndarray, "points 2"]
    run_offsets: Int64[np.ndarray, " objects_plus_1"] | None = None  # None: no mask of the data set has runs
    run_ends: Int64[np.ndarray, " runs"] | None = None


@dataclass(frozen=True, eq=False)
class OneObject:
    """One object; its outline is made of polygons, or run-length encoded."""

    box: Float32[np.ndarray, "4"]
    label: int
    polygons: tuple[Float32[np.ndarray, "_ 2"], ...]
    run_ends: Int64[np.ndarray, " runs"]  # empty where there are polygons

    def mask(self, size_hw: SizeHw) -> Bool[np.ndarray, "height width"]:
        """Return its pixels on an image of this size. Source: COCO's rasteriser and run-length encoding."""
        if self.polygons:
            codes = coco_masks.frPyObjects([polygon.reshape(-1).tolist() for polygon in self.polygons], *size_hw)
            return coco_masks.decode(coco_masks.merge(codes)).astype(bool)
        flat = np.zeros(size_hw[0] * size_hw[1], bool)
        runs = np.repeat(np.arange(len(self.run_ends)) % 2 == 1, np.diff(self.run_ends, prepend=0))
        flat[: len(runs)] = runs
        return flat.reshape(size_hw, order="F")

    def left_with(self, mask: Bool[np.ndarray, "height width"]) -> "OneObject | None":
        """Return the object with these pixels alone and their box; None where they are no box, as in `selection`."""
        ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(xs) or xs[0] == xs[-1] or ys[0] == ys[-1]:
            return None
        box = np.array([xs[0], ys[0], xs[-1], ys[-1]], np.float32)
        run_ends = run_ends_of(mask[:, xs[0] : xs[-1] + 1]) + xs[0] * len(mask)
        return replace(self, box=box, polygons=(), run_ends=run_ends)


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """An image and its objects, in pixels of the image."""

    bgr: UInt8[np.ndarray, "height width 3"]
    objects: tuple[OneObject, ...]

    @property
    def size_hw(self) -> SizeHw:
        return self.bgr.shape[0], self.bgr.shape[1]


def run_ends_of(mask: Bool[np.ndarray, "height width"]) -> Int64[np.ndarray, " runs"]:
    """Return the first pixel after each run, down the columns, background first; without the last background."""
    return np.flatnonzero(np.diff(mask.flatten(order="F"), prepend=False, append=False))


def unpacked(objects: Objects) -> tuple[OneObject, ...]:
    """Return the objects one by one."""
    polygons = np.split(objects.points, objects.point_offsets[1:-1])
    runs = [np.zeros(0, np.int64)] * len(objects.labels)
    if objects.run_ends is not None and objects.run_offsets is not None:
        runs = np.split(objects.run_ends, objects.run_offsets[1:-1])
    bounds = zip(objects.polygon_offsets[:-1], objects.polygon_offsets[1:], strict=True)
    return tuple(
        OneObject(box=box, label=int(label), polygons=tuple(polygons[first:last]), run_ends=run_ends)
        for box, label, (first, last), run_ends in zip(objects.boxes, objects.labels, bounds, runs, strict=False)
    )


def packed(objects: Iterable[OneObject], *, with_runs: bool) -> Objects:
    """Return the objects as flat arrays; `with_runs` where any image of the data set may have runs."""
    objects = list(objects)
    polygons = [polygon for entry in objects for polygon in entry.polygons]
    return Objects(
        boxes=np.array([entry.box for entry in objects], np.float32).reshape(-1, 4),
        labels=np.array([entry.label for entry in objects], np.int64),
        polygon_offsets=_offsets(len(entry.polygons) for entry in objects),
        point_offsets=_offsets(map(len, polygons)),
        points=np.concatenate([np.zeros((0, 2), np.float32), *polygons]),
        run_offsets=_offsets(len(entry.run_ends) for entry in objects) if with_runs else None,
        run_ends=np.concatenate([np.zeros(0, np.int64), *(entry.run_ends for entry in objects)]) if with_runs else None,
    )


def _offsets(counts: Iterable[int]) -> Int64[np.ndarray, " owners_plus_1"]:
    return np.cumsum([0, *counts], dtype=np.int64)


def cropped(image: AnnotatedImage, *, top: int, left: int, size_hw: SizeHw) -> AnnotatedImage:
    """Return the window of the image.

    An object that is cut gets the box of the pixels it keeps, others keep their annotated box. What has no box left
    is dropped. Polygons are moved, not cut: no pixel outside of the image is ever a target.
    """
    if size_hw == image.size_hw:
        return image
    height, width = size_hw
    window = (slice(top, top + height), slice(left, left + width))
    shift = np.array([left, top], np.float32)
    objects = []
    for entry in image.objects:
        polygons = tuple(polygon - shift for polygon in entry.polygons)
        points = np.concatenate([np.zeros((0, 2), np.float32), *polygons])
        box = np.clip(entry.box - np.tile(shift, 2), 0, np.tile([width - 1, height - 1], 2)).astype(np.float32)
        run_ends = entry.run_ends
        if not polygons or (points < 0).any() or (points > (width, height)).any():
            whole = entry.mask(image.size_hw)
            part = whole[window]
            if part.sum() < whole.sum():
                left_over = entry.left_with(part)
                if left_over is None:
                    continue
                box = left_over.box
            run_ends = run_ends if polygons else run_ends_of(part)
        if box[2] > box[0] and box[3] > box[1]:
            objects.append(replace(entry, box=box, polygons=polygons, run_ends=run_ends))
    return AnnotatedImage(np.ascontiguousarray(image.bgr[window]), tuple(objects))


def resized(image: AnnotatedImage, size_hw: SizeHw) -> AnnotatedImage:
    """Return the image at another size: pixels as ever, masks of runs by the pixel under the center of each new one."""
    old_hw = image.size_hw
    if size_hw == old_hw:
        return image
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64) for old, new in zip(old_hw, size_hw, strict=True)
    )
    objects = tuple(
        OneObject(
            box=move_boxes(entry.box[None], old_hw, size_hw, is_mirrored=False)[0],
            label=entry.label,
            polygons=tuple(move_points(polygon, old_hw, size_hw, is_mirrored=False) for polygon in entry.polygons),
            run_ends=entry.run_ends if entry.polygons else run_ends_of(entry.mask(old_hw)[rows][:, columns]),
        )
        for entry in image.objects
    )
    return AnnotatedImage(resize_and_mirror(image.bgr, size_hw, is_mirrored=False), objects)


def pasted(
    image: AnnotatedImage,
    source: AnnotatedImage,
    chosen: Iterable[int],
    *,
    is_mirrored: bool,
    place: tuple[float, float],
) -> AnnotatedImage:
    """Return the image with these objects of `source`, perhaps mirrored, above all that was there.

    They keep their places to each other. `place` says where they go together: from 0, at the top (left), to 1, at the
    bottom (right), so that they are inside as far as they fit. Objects below lose the pixels that are covered, and get
    the box of those that are left; what has no box left is dropped. New and covered objects have run lengths.
    """
    bgr = source.bgr[:, ::-1] if is_mirrored else source.bgr
    entries = [source.objects[number] for number in chosen]
    masks = [entry.mask(source.size_hw)[:, :: -1 if is_mirrored else 1] for entry in entries]
    covered = np.logical_or.reduce([np.zeros(source.size_hw, bool), *masks])
    if not covered.any():
        return image
    old, new = zip(
        *(_shifted(np.flatnonzero(covered.any(axis=1 - axis)), image.size_hw[axis], place[axis]) for axis in range(2)),
        strict=True,
    )

    def moved(mask: np.ndarray) -> np.ndarray:
        shifted = np.zeros(image.size_hw, bool)
        shifted[new] = mask[old]
        return shifted

    covered = moved(covered)
    pixels = image.bgr.copy()
    np.copyto(pixels[new], bgr[old], where=covered[new][:, :, None])
    below = (_covered(entry, covered) for entry in image.objects)
    above = (entry.left_with(moved(mask)) for entry, mask in zip(entries, masks, strict=True))
    return AnnotatedImage(pixels, tuple(entry for entry in (*below, *above) if entry is not None))


def _shifted(used: Int64[np.ndarray, " used"], length: int, place: float) -> tuple[slice, slice]:
    """Return which pixels of an axis are moved, and where to on one of this length."""
    first, last = int(used[0]), int(used[-1])
    ends = sorted((-first, length - 1 - last))
    shift = ends[0] + min(int(place * (ends[1] - ends[0] + 1)), ends[1] - ends[0])
    low, high = max(first, -shift), min(last + 1, length - shift)
    return slice(low, high), slice(low + shift, high + shift)


def _covered(entry: OneObject, covered: Bool[np.ndarray, "height width"]) -> OneObject | None:
    """Return the object without these pixels, and untouched where it had none of them."""
    if entry.polygons:  # drawing them takes long, and most are elsewhere
        points = np.concatenate(entry.polygons)
        (left, top), (right, bottom) = np.maximum(points.min(axis=0) - 1, 0), np.maximum(points.max(axis=0) + 2, 0)
        if not covered[int(top) : int(bottom), int(left) : int(right)].any():
            return entry
    height, width = covered.shape
    mask = entry.mask((height, width))
    return entry.left_with(mask & ~covered) if (mask & covered).any() else entry
