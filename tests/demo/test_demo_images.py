import numpy as np
import pytest

from maskperf.demo import images as demo_pictures
from maskperf.demo.images import draw_picture, make_figure, overlap, paint
from maskperf.demo.outlines import ring_area
from maskperf.demo.shapes import CATEGORIES


def figure_at(category, x: float, y: float, radius_px: float = 20.0):
    return make_figure(category, centre_xy=(x, y), radius_px=radius_px, turn=0.4, stretch=1.0)


@pytest.fixture(scope="module")
def pictures():
    return [draw_picture(0, place, 3) for place in range(34)]


@pytest.mark.parametrize("category", CATEGORIES, ids=lambda entry: entry.name)
def test_every_shape_fits_its_unit_disc_and_fills_a_good_part_of_it(category):
    figure = figure_at(category, 60.0, 60.0, radius_px=50.0)
    inside = figure.inside()
    assert np.hypot(figure.u, figure.v)[inside].max() < 1.02
    assert 0.2 < inside.sum() / (np.pi * 50**2) < 0.95


def test_a_figure_beyond_the_border_keeps_only_what_is_in_the_picture():
    figure = figure_at(CATEGORIES[1], 0.0, 10.0)
    mask = figure.mask((30, 40))
    assert mask[10, 0] and not mask[:, 25:].any()
    assert 0 < mask.sum() < figure.inside().sum()


def test_a_figure_wholly_outside_has_an_empty_overlap():
    in_picture, in_window = overlap(figure_at(CATEGORIES[0], -200.0, 500.0), (30, 40))
    assert np.zeros((30, 40))[in_picture].size == 0
    assert np.zeros((53, 53))[in_window].size == 0


def test_paint_changes_the_figure_and_leaves_far_pixels_alone():
    pixels = np.full((80, 90, 3), 128, dtype=np.float32)
    figure = figure_at(CATEGORIES[3], 30.0, 30.0)
    paint(pixels, figure, np.random.default_rng(0))
    assert (np.abs(pixels[figure.mask((80, 90))] - 128).max(axis=-1) > 20).mean() > 0.95
    assert (pixels[60:, 60:] == 128).all()


def test_a_picture_depends_on_seed_split_and_place():
    first = draw_picture(0, 0, 3).pixels
    np.testing.assert_array_equal(draw_picture(0, 0, 3).pixels, first)
    for other in (draw_picture(0, 0, 4), draw_picture(1, 0, 3), draw_picture(0, 1, 3)):
        assert other.pixels.shape != first.shape or (other.pixels != first).any()


def test_no_pixel_belongs_to_two_things(pictures):
    for picture in pictures:
        owners = sum((thing.visible.astype(int) for thing in picture.things), np.zeros(picture.pixels.shape[:2], int))
        assert owners.max(initial=0) <= 1


def test_what_is_in_front_hides_what_is_behind(pictures):
    hidden = 0
    for picture in pictures:
        for place, thing in enumerate(picture.things):
            whole = np.logical_or.reduce([figure.mask(thing.visible.shape) for figure in thing.figures])
            in_front = np.logical_or.reduce(
                [np.zeros_like(whole), *(other.visible for other in picture.things[:place])]
            )
            np.testing.assert_array_equal(thing.visible, whole & ~in_front)
            hidden += bool((whole & in_front).any())
    assert hidden > 10


def test_every_single_thing_shows_enough_and_has_neither_holes_nor_crumbs(pictures):
    singles = [thing for picture in pictures for thing in picture.things if thing.outline]
    assert len(singles) > 60
    for thing in singles:
        assert thing.visible.sum() >= demo_pictures.SMALLEST_VISIBLE_SHARE * thing.figures[0].inside().sum()
        assert min(ring_area(ring) for ring in thing.outline) >= demo_pictures.SMALLEST_PIECE_PX
        assert sum(ring_area(ring) for ring in thing.outline) == thing.visible.sum()


def test_crowds_and_empty_pictures_come_at_fixed_places(pictures):
    crowds = [place for place, picture in enumerate(pictures) if any(not thing.outline for thing in picture.things)]
    empty = [place for place, picture in enumerate(pictures) if not picture.things]
    assert crowds == [demo_pictures.CROWD_PLACE, demo_pictures.CROWD_PLACE + demo_pictures.CROWD_EVERY]
    assert empty == [demo_pictures.EMPTY_PLACE]


def test_every_category_and_both_orientations_appear(pictures):
    assert {thing.category.id for picture in pictures for thing in picture.things} == {1, 2, 4, 7, 8, 11, 13, 16}
    shapes = [picture.pixels.shape for picture in pictures]
    assert any(height > width for height, width, _ in shapes)
    assert any(width > height for height, width, _ in shapes)
    assert all(96 <= side <= 192 for shape in shapes for side in shape[:2])
