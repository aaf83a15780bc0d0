"""From the small mask of a detection to the pixels of the whole image."""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

MASK_THRESHOLD = 0.5
# Rounding moves a pixel of about one half by less than this: products up to 1/2, 2**-26 each; sums up to 1, 2**-25
# each; resized along x twice (here and by torch), then along y, with shares of which the sum is one up to 2**-25.
ROUNDING = 2.0**-22


def expand_boxes(boxes: Float[Tensor, "detections 4"], mask_size: int) -> Int[Tensor, "detections 4"]:
    """Return the pixels (x1, y1, x2, y2), both corners inclusive, that each mask padded with zeros is pasted on.

    The box grows about its centre by (mask_size + 2) / mask_size, because a mask is padded by one pixel on each side;
    the "+1" of the pixel convention is not applied to the half sides. Corners are truncated towards zero.
    An expanded box may lie partly or wholly outside the image.
    Source: the reference's mask head inference, `expand_boxes` and `paste_mask_in_image`.
    """
    growth = (mask_size + 2) / mask_size
    centres = (boxes[:, :2] + boxes[:, 2:]) * 0.5
    half_sides = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * growth
    return torch.cat([centres - half_sides, centres + half_sides], dim=1).to(torch.int64)


def paste_edges(
    mask_probs: Float[Tensor, "detections mask mask"],
    boxes: Float[Tensor, "detections 4"],
    size_hw: tuple[int, int],
) -> tuple[Int[np.ndarray, " edges"], Int[np.ndarray, " edges"]]:
    """Return where the masks of `paste_masks` begin and end, and the detection of each such edge.

    An edge is a place in the image read column by column (column * height + row). Each detection has an even number
    of edges, rising: its mask begins at the first, has ended before the second, begins again at the third.
    Down a column a resized mask is a chain of straight lines from row to row of the small mask, so an edge is where a
    line crosses one half, and no pixel is drawn. Where rounding could decide a pixel, the detection is drawn after all.
    Cost: grows with the widths of the boxes, not with their areas.
    """
    probs, boxes = mask_probs.detach().cpu().float(), boxes.detach().cpu().float()
    usable = ((probs >= 0) & (probs <= 1)).flatten(1).all(dim=1)  # false for NaN as well
    edges, owners, doubtful = _crossings(torch.where(usable[:, None, None], probs, 0.0), boxes, size_hw)
    drawn = np.flatnonzero(doubtful | ~usable.numpy())
    if drawn.size:
        sure = ~np.isin(owners, drawn)
        drawn_edges, places = edges_of_masks(paste_masks(probs[drawn], boxes[drawn], size_hw))
        owners = np.concatenate([owners[sure], drawn[places]])
        order = np.argsort(owners, kind="stable")
        edges, owners = np.concatenate([edges[sure], drawn_edges])[order], owners[order]
    return edges, owners


def edges_of_masks(
    masks: Bool[Tensor, "masks height width"],
) -> tuple[Int[np.ndarray, " edges"], Int[np.ndarray, " edges"]]:
    """Return the edges of drawn masks and the mask of each, as `paste_edges` does."""
    columns = masks.transpose(1, 2).flatten(1).numpy()  # pixels column by column
    edges = [np.flatnonzero(np.diff(pixels, prepend=False, append=False)) for pixels in columns]
    owners = np.repeat(np.arange(len(edges)), [len(places) for places in edges])
    return np.concatenate([np.zeros(0, dtype=np.int64), *edges]), owners


@lru_cache(maxsize=4096)
def sample_positions(source_size: int, size: int) -> Float[np.ndarray, " positions"]:
    """Return where each of `size` pixels samples a row of `source_size` values, between minus and plus infinity.

    Read off from what torch makes of a unit matrix: its rounding of these positions is the one that counts.
    """
    units = torch.eye(source_size)[None, None]
    resized = F.interpolate(units, size=(source_size, size), mode="bilinear", align_corners=False)
    weights = resized[0, 0].numpy()  # row k: the share of value k in each pixel, which has a part of two at most
    first = (weights != 0).argmax(axis=0)
    second = np.minimum(first + 1, source_size - 1)
    share = np.where(second > first, weights[second, np.arange(size)], 0)
    return np.concatenate([[-np.inf], first + share, [np.inf]]).astype(np.float32)


def _crossings(
    probs: Tensor, boxes: Tensor, size_hw: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, Bool[np.ndarray, " detections"]]:
    """Return edges, the detection of each, and the detections of which rounding could move an edge."""
    height, width = size_hw
    padded_size = probs.shape[1] + 2
    doubtful = np.zeros(len(boxes), dtype=bool)
    x1, y1, x2, y2 = expand_boxes(boxes, probs.shape[1]).numpy().T
    left, right = np.maximum(x1, 0), np.minimum(x2 + 1, width)
    top, bottom = np.maximum(y1, 0), np.minimum(y2 + 1, height)
    shown = np.flatnonzero((right > left) & (bottom > top))

    # Each column of an expanded box that is inside the image, at every row of the padded mask.
    sizes, firsts, counts = (x2 - x1 + 1)[shown], (left - x1)[shown], (right - left)[shown]
    samples = [
        sample_positions(padded_size, size)[first + 1 : first + 1 + count]
        for size, first, count in zip(sizes.tolist(), firsts.tolist(), counts.tolist(), strict=True)
    ]
    owner_of_column = np.repeat(shown, counts)
    image_column = np.arange(counts.sum()) + np.repeat(left[shown] - (np.cumsum(counts) - counts), counts)
    nodes = _columns(probs, np.concatenate([np.zeros(0, dtype=np.float32), *samples]), owner_of_column)
    above, clear = nodes > MASK_THRESHOLD - ROUNDING, nodes > MASK_THRESHOLD + ROUNDING
    if np.count_nonzero(above) != np.count_nonzero(clear):
        doubtful[owner_of_column[(above != clear).any(axis=1)]] = True

    # The padding is zero, so a change from one node to the next is never one from column to column.
    above, nodes = above.ravel(), nodes.ravel()
    before = np.flatnonzero(above[1:] != above[:-1])
    column = before // padded_size
    owners = owner_of_column[column]
    value = nodes[before].astype(np.float64)
    slope = nodes[before + 1] - value
    position = before - column * padded_size + (MASK_THRESHOLD - value) / slope
    row, gap = _first_samples(position, owners, np.where(y2 >= y1, y2 - y1 + 1, 0), padded_size)
    doubtful[owners[gap * np.abs(slope) <= ROUNDING]] = True
    image_row = np.clip(row + y1[owners], top[owners], bottom[owners])
    return *_without_pairs(image_column[column] * height + image_row, owners), doubtful


def _columns(probs: Tensor, positions: np.ndarray, owners: np.ndarray) -> Float[np.ndarray, "columns padded"]:
    """Return columns of the padded masks of `owners`, each between its two nearest at a position along x."""
    padded_size = probs.shape[1] + 2
    padded = F.pad(probs.transpose(1, 2), (1, 1, 1, 1)).reshape(-1, padded_size).numpy()  # detection and x, y
    left = positions.astype(np.int64)
    share = positions - left.astype(np.float32)
    rows = owners * padded_size + left
    nodes = padded.take(rows, axis=0)
    nodes *= (1 - share)[:, None]
    following = padded.take(np.minimum(rows + 1, len(padded) - 1), axis=0)  # after the last one, its share is zero
    following *= share[:, None]
    nodes += following
    return nodes


def _first_samples(
    positions: np.ndarray, owners: np.ndarray, sizes: np.ndarray, source_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first row of the box that samples at or beyond each position, and how near the nearest sample is.

    A distance below zero: the row is wrong by one, because its sample was rounded.
    """
    seen = np.bincount(owners, minlength=len(sizes)) > 0
    tables = [sample_positions(source_size, size) for size in sizes[seen].tolist()]
    table = np.concatenate([np.zeros(0, dtype=np.float32), *tables])
    lengths = np.where(seen, sizes + 2, 0)
    size = sizes[owners]
    rows = np.clip(np.ceil((positions + 0.5) * (size / source_size) - 0.5).astype(np.int64), 0, size)
    index = (np.cumsum(lengths) - lengths)[owners] + rows
    return rows, np.minimum(table[index + 1] - positions, positions - table[index])


def _without_pairs(edges: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges without those that cancel: two at one place are a mask of no pixel, or a gap of none."""
    same = (edges[1:] == edges[:-1]) & (owners[1:] == owners[:-1])
    if not same.any():
        return edges, owners
    begins = np.flatnonzero(np.concatenate([[True], ~same]))
    lengths = np.diff(begins, append=len(edges))
    kept = begins[lengths % 2 == 1]
    return edges[kept], owners[kept]


def paste_masks(
    mask_probs: Float[Tensor, "detections mask mask"],
    boxes: Float[Tensor, "detections 4"],
    size_hw: tuple[int, int],
) -> Bool[Tensor, "detections height width"]:
    """Return each detection's mask on the whole image, true where the resized probability is above one half.

    `boxes` are at the scale of the image of `size_hw`. Works on the CPU, wherever the inputs are, as the reference
    does: the last bit of a resize decides pixels at one half.
    The result is stored column by column, so that a run-length encoder takes it without another copy.
    """
    height, width = size_hw
    count, mask_size = mask_probs.shape[:2]
    pasted = np.zeros((count, width, height), dtype=bool)  # numpy copies small turned regions much faster than torch
    padded = F.pad(mask_probs.detach().cpu().float(), (1, 1, 1, 1))[:, None, None]  # detections 1 1 mask+2 mask+2
    expanded = expand_boxes(boxes.detach().cpu().float(), mask_size)
    for index, (x1, y1, x2, y2) in enumerate(expanded.tolist()):
        left, right = max(x1, 0), min(x2 + 1, width)
        top, bottom = max(y1, 0), min(y2 + 1, height)
        if right <= left or bottom <= top:
            continue
        size = (y2 - y1 + 1, x2 - x1 + 1)
        resized = F.interpolate(padded[index], size=size, mode="bilinear", align_corners=False)[0, 0]
        visible = resized.numpy()[top - y1 : bottom - y1, left - x1 : right - x1]
        pasted[index, left:right, top:bottom] = (visible > MASK_THRESHOLD).T
    return torch.from_numpy(pasted).transpose(1, 2)


def paste_by_grid(
    mask_probs: Float[Tensor, "detections mask mask"],
    boxes: Float[Tensor, "detections 4"],
    size_hw: tuple[int, int],
) -> Bool[Tensor, "detections height width"]:
    """Return each detection's mask on the whole image, true from one half on, as detectron2 pastes it.

    The small mask is sampled, bilinearly and with zeros around it, at the centres of the image's pixels; x2 and y2 of
    `boxes` are their edges.
    """
    height, width = size_hw
    probs, boxes = mask_probs.detach().cpu().float(), boxes.detach().cpu().float()
    pasted = torch.zeros(len(boxes), width, height, dtype=torch.bool)  # as `paste_masks`: column by column
    limits = torch.tensor([width, height, width, height])
    around = torch.cat([boxes[:, :2].floor() - 1, boxes[:, 2:].ceil() + 1], dim=1).nan_to_num().clamp(min=0)
    regions = torch.minimum(around, limits).long().tolist()
    for index, (left, top, right, bottom) in enumerate(regions):
        x1, y1, x2, y2 = boxes[index].tolist()
        columns = _grid_shares(left, right, x1, x2, mask_size=probs.shape[2])
        rows = _grid_shares(top, bottom, y1, y2, mask_size=probs.shape[1])
        pasted[index, left:right, top:bottom] = (rows @ probs[index] @ columns.t() >= MASK_THRESHOLD).t()
    return pasted.transpose(1, 2)


def _grid_shares(
    first: int, last: int, start: float, end: float, *, mask_size: int
) -> Float[Tensor, "pixels mask_size"]:
    """Return what each row of a small mask adds to each of the pixels `first` to `last` of one axis."""
    place = (torch.arange(first, max(first, last)) + 0.5 - start) / max(end - start, 1e-12) * mask_size - 0.5
    return (1 - (place[:, None] - torch.arange(mask_size)).abs()).clamp(min=0)
