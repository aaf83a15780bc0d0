import pytest
import torch

from maskperf.ops.roi_align_samples import assign_levels


def square(side_px: float) -> list[float]:
    return [0.0, 0.0, side_px - 1.0, side_px - 1.0]


@pytest.mark.parametrize(
    ("side_px", "level"),
    [(1, 2), (16, 2), (111, 2), (112, 3), (223, 3), (224, 4), (447, 4), (448, 5), (895, 5), (1344, 5)],
)
def test_level_of_a_square_counts_both_corner_pixels(side_px, level):
    assert assign_levels(torch.tensor([square(side_px)]), 4).tolist() == [level - 2]


@pytest.mark.parametrize(("ratio", "level"), [(0.5 - 8e-7, 3), (2 - 0.8e-6, 5), (2 - 1.2e-6, 4), (1 - 1.2e-6, 3)])
def test_the_epsilon_is_added_inside_the_logarithm(ratio, level):
    # Added to the result, it would give 2, 5, 5 and 3.
    box = torch.tensor([square(224 * ratio)], dtype=torch.float64)
    assert assign_levels(box, 4).tolist() == [level - 2]


def test_level_depends_on_the_area_alone():
    wide, tall, degenerate = [5.0, 5.0, 452.0, 60.0], [5.0, 5.0, 60.0, 452.0], [5.0, 5.0, 3.0, 9.0]
    # 448 x 56 = 158.4 squared: P3. A box of negative area counts as empty: P2.
    assert assign_levels(torch.tensor([[wide, tall], [degenerate, square(448)]]), 4).tolist() == [[1, 1], [0, 3]]
