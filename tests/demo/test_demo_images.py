import numpy as np
import pytest

from maskperf.demo import images as demo_images
from maskperf.demo.images import draw_image, make_figure, overlap, paint
from maskperf.demo.outlines import polygon_area
from maskperf.demo.shapes import CATEGORIES


def figure_at(category, x: float, y: float, radius_px: float = 20.0):
    return make_figure(category, (x, y), radius_px, np.random.default_rng(1))


@pytest.fixture(scope="module")
def images():
    return [draw_image(0, index, 3) for index in range(34)]


@pytest.mark.parametrize("category", CATEGORIES, ids=lambda entry: entry.name)
def test_every_shape_fits_its_unit_disc_and_fills_a_good_part_of_it(category):
    figure = figure_at(category, 60.0, 60.0, radius_px=50.0)
    inside = figure.inside()
    assert np.hypot(figure.u, figure.v)[inside].max() < 1.02
    assert 0.2 < inside.sum() / (np.pi * 50**2) < 0.95


def test_a_figure_beyond_the_border_keeps_only_what_is_in_the_image():
    figure = figure_at(CATEGORIES[1], 0.0, 10.0)
    mask = figure.mask((30, 40))
    assert mask[10, 0] and not mask[:, 25:].any()
    assert 0 < mask.sum() < figure.inside().sum()


def test_a_figure_wholly_outside_has_an_empty_overlap():
    in_image, in_window = overlap(figure_at(CATEGORIES[0], -200.0, 500.0), (30, 40))
    assert np.zeros((30, 40))[in_image].size == 0
    assert np.zeros((53, 53))[in_window].size == 0


def test_paint_changes_the_figure_and_leaves_far_pixels_alone():
    pixels = np.full((80, 90, 3), 128, dtype=np.float32)
    figure = figure_at(CATEGORIES[3], 30.0, 30.0)
    paint(pixels, figure, np.random.default_rng(0))
    assert (np.abs(pixels[figure.mask((80, 90))] - 128).max(axis=-1) > 20).mean() > 0.95
    assert (pixels[60:, 60:] == 128).all()


def test_an_image_depends_on_seed_split_and_index():
    first = draw_image(0, 0, 3).pixels
    np.testing.assert_array_equal(draw_image(0, 0, 3).pixels, first)
    for other in (draw_image(0, 0, 4), draw_image(1, 0, 3), draw_image(0, 1, 3)):
        assert other.pixels.shape != first.shape or (other.pixels != first).any()


def test_what_is_in_front_hides_what_is_behind(images):
    hidden = 0
    for image in images:
        for index, instance in enumerate(image.instances):
            whole = np.logical_or.reduce([figure.mask(instance.visible.shape) for figure in instance.figures])
            in_front = np.logical_or.reduce([whole & False, *(other.visible for other in image.instances[:index])])
            np.testing.assert_array_equal(instance.visible, whole & ~in_front)
            hidden += bool((whole & in_front).any())
    assert hidden > 10


def test_every_single_instance_shows_enough_and_has_neither_holes_nor_crumbs(images):
    singles = [instance for image in images for instance in image.instances if instance.outline]
    assert len(singles) > 60
    for instance in singles:
        assert instance.visible.sum() >= demo_images.SMALLEST_VISIBLE_SHARE * instance.figures[0].inside().sum()
        assert min(polygon_area(polygon) for polygon in instance.outline) >= demo_images.SMALLEST_PIECE_PX
        assert sum(polygon_area(polygon) for polygon in instance.outline) == instance.visible.sum()


def test_crowds_and_empty_images_come_at_fixed_positions(images):
    crowds = [index for index, image in enumerate(images) if any(not instance.outline for instance in image.instances)]
    empty = [index for index, image in enumerate(images) if not image.instances]
    assert crowds == [demo_images.CROWD_INDEX, demo_images.CROWD_INDEX + demo_images.CROWD_EVERY]
    assert empty == [demo_images.EMPTY_INDEX]


def test_every_category_and_both_orientations_appear(images):
    assert {instance.category.id for image in images for instance in image.instances} == {1, 2, 4, 7, 8, 11, 13, 16}
    shapes = [image.pixels.shape for image in images]
    assert any(height > width for height, width, _ in shapes)
    assert any(width > height for height, width, _ in shapes)
    assert all(96 <= side <= 192 for shape in shapes for side in shape[:2])
