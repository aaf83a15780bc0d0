import itertools

import pytest
import torch

from maskperf.ops.anchors import anchor_visibility, cell_anchors, level_anchors, pyramid_anchors

CPU = torch.device("cpu")
STRIDES = (4, 8, 16, 32, 64)
SIZES = (32, 64, 128, 256, 512)
RATIOS = (0.5, 1.0, 2.0)

# stride: corners for the ratios 0.5, 1 and 2, and their width and height in pixels. Half sides are rounded to even:
# at stride 32 and ratio 0.5 the base box is 45 x 22.5, which becomes 22 and a height of 176, not 184.
TABLE = {
    4: (((-22, -10, 25, 13), (48, 24)), ((-14, -14, 17, 17), (32, 32)), ((-10, -22, 13, 25), (24, 48))),
    8: (((-40, -20, 47, 27), (88, 48)), ((-28, -28, 35, 35), (64, 64)), ((-20, -44, 27, 51), (48, 96))),
    16: (((-84, -40, 99, 55), (184, 96)), ((-56, -56, 71, 71), (128, 128)), ((-36, -80, 51, 95), (88, 176))),
    32: (
        *(((-164, -72, 195, 103), (360, 176)), ((-112, -112, 143, 143), (256, 256))),
        ((-76, -168, 107, 199), (184, 368)),
    ),
    64: (
        *(((-332, -152, 395, 215), (728, 368)), ((-224, -224, 287, 287), (512, 512))),
        ((-148, -328, 211, 391), (360, 720)),
    ),
}


def padded_level_sizes(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """Return the sizes of the feature maps of a padded image; odd sizes round up on the way to P6."""
    return tuple((-(-height // stride), -(-width // stride)) for stride in STRIDES)


@pytest.mark.parametrize(("stride", "size"), list(zip(STRIDES, SIZES, strict=True)))
def test_first_cell_has_the_known_anchors(stride, size):
    cell = cell_anchors(stride, size, RATIOS)
    assert cell.dtype == torch.float32
    assert cell.tolist() == [list(map(float, corners)) for corners, _ in TABLE[stride]]
    sides = (cell[:, 2:] - cell[:, :2] + 1).int().tolist()
    assert sides == [list(sides) for _, sides in TABLE[stride]]


def test_an_image_of_800_x_1344_has_268569_anchors():
    sizes = padded_level_sizes(800, 1344)
    assert sizes == ((200, 336), (100, 168), (50, 84), (25, 42), (13, 21))
    anchors = pyramid_anchors(sizes, STRIDES, SIZES, RATIOS, CPU)
    assert anchors.shape == (268_569, 4)
    assert anchors[0].tolist() == [-22, -10, 25, 13]
    # The last one is ratio 2 of P6 in row 12, column 20.
    assert anchors[-1].tolist() == [-148 + 20 * 64, -328 + 12 * 64, 211 + 20 * 64, 391 + 12 * 64]


def test_anchors_run_over_levels_then_rows_then_columns_then_ratios():
    expected = [
        [x1 + column * stride, y1 + row * stride, x2 + column * stride, y2 + row * stride]
        for stride, (height, width) in ((4, (3, 4)), (8, (2, 2)))
        for row, column in itertools.product(range(height), range(width))
        for (x1, y1, x2, y2), _ in TABLE[stride]
    ]
    assert pyramid_anchors(((3, 4), (2, 2)), (4, 8), (32, 64), RATIOS, CPU).tolist() == expected


def test_a_level_without_cells_has_no_anchors():
    assert level_anchors(cell_anchors(4, 32, RATIOS), 4, (0, 7)).shape == (0, 4)


def test_the_same_sizes_give_the_same_tensor_without_new_work():
    arguments = (((2, 3),), (4,), (32,), RATIOS, CPU)
    assert pyramid_anchors(*arguments) is pyramid_anchors(*arguments)


@pytest.mark.parametrize(
    ("corners", "visible"),
    [
        ((0.0, 0.0, 99.0, 49.0), True),  # touches all four borders
        ((-0.5, 0.0, 50.0, 20.0), False),
        ((0.0, -0.5, 50.0, 20.0), False),
        ((10.0, 10.0, 100.0, 20.0), False),  # x2 == width
        ((10.0, 10.0, 99.5, 20.0), True),
        ((10.0, 10.0, 20.0, 50.0), False),  # y2 == height
        ((10.0, 10.0, 20.0, 49.5), True),
    ],
)
def test_an_anchor_is_visible_only_strictly_before_width_and_height(corners, visible):
    assert anchor_visibility(torch.tensor([corners]), torch.tensor([[50, 100]])).tolist() == [[visible]]


def test_visibility_follows_the_true_size_not_the_padded_one():
    sizes = padded_level_sizes(96, 128)
    anchors = pyramid_anchors(sizes, STRIDES, SIZES, RATIOS, CPU)
    true_sizes = torch.tensor([[96, 128], [70, 97], [90, 90]])
    found = anchor_visibility(anchors, true_sizes)
    for image, (height, width) in enumerate(true_sizes.tolist()):
        expected = [x1 >= 0 and y1 >= 0 and x2 < width and y2 < height for x1, y1, x2, y2 in anchors.tolist()]
        assert found[image].tolist() == expected
    assert found[0].sum() > found[1].sum() > 0
