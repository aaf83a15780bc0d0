import numpy as np
import pytest
from PIL import Image

from maskperf.errors import StorageError
from maskperf.pictures import fonts
from maskperf.pictures.drawing import (
    LARGEST_PANEL_PX,
    LEGEND_LINE_PX,
    LONGEST_NAME,
    Overlay,
    category_colours,
    draw_image,
    draw_pair,
    draw_panel,
    drawable_names,
    short_name,
    write_page,
)

RED = (230, 0, 0)


def grey(height, width):
    return np.full((height, width, 3), 128, dtype=np.uint8)


def square(x, y, side, *, size, label="x", colour=RED, box=None):
    """Return an overlay over an image of `size` by `size` pixels; its box may be another one than that of its mask."""
    mask = np.zeros((size, size), dtype=bool)
    mask[y : y + side, x : x + side] = True
    return Overlay(box or [x, y, side, side], mask, label, colour)


def pixels_of(picture, colour):
    return (np.asarray(picture) == colour).all(axis=-1).sum()


@pytest.mark.parametrize("size_hw", [(96, 128), (480, 640), (640, 427), (3000, 40), (1, 1), (20, 2000)])
def test_a_panel_keeps_the_shape_of_the_image_and_fits_its_slot(size_hw):
    panel = draw_panel(grey(*size_hw), [], "")
    assert panel.width <= LARGEST_PANEL_PX[0] and panel.height <= LARGEST_PANEL_PX[1]
    zoom = min(LARGEST_PANEL_PX[0] / size_hw[1], LARGEST_PANEL_PX[1] / size_hw[0], 3)
    assert abs(panel.width - size_hw[1] * zoom) <= 1 and abs(panel.height - size_hw[0] * zoom) <= 1


def test_a_mask_is_tinted_where_it_is_and_nowhere_else():
    panel = np.asarray(draw_panel(grey(100, 100), [square(20, 40, 30, size=100)], "none")).astype(int)  # zoom 3
    assert panel[165, 105].tolist() == [128 + round(0.4 * 102), 77, 77]
    assert panel[45, 105].tolist() == [128, 128, 128] and panel[250, 250].tolist() == [128, 128, 128]
    assert panel[120, 105].tolist() == list(RED)  # the box


@pytest.mark.parametrize("order", [1, -1])
def test_every_overlay_shows_its_own_colour_in_any_order(order):
    overlays = [
        square(corner, corner, side, size=90, colour=colour)
        for corner, side, colour in ((10, 60, (250, 0, 0)), (20, 30, (0, 250, 0)), (25, 8, (0, 0, 250)))
    ]
    panel = draw_panel(grey(90, 90), overlays[::order], "none")
    assert all(pixels_of(panel, overlay.colour) > 30 for overlay in overlays)


@pytest.mark.parametrize(("count", "fewest", "most"), [(2, 2, 2), (40, 3, 39)])
def test_no_label_covers_another_and_of_few_all_are_shown(count, fewest, most):
    colours = [(5 * index, 255 - 5 * index, 100) for index in range(count)]
    overlays = [square(300, 300, 60, size=700, label=f"name {n:02d}", colour=c) for n, c in enumerate(colours)]
    drawn = draw_image(grey(700, 700), overlays)
    assert fewest <= sum(pixels_of(drawn, colour) > 300 for colour in colours) <= most  # a tag is about 18 by 60


def test_boxes_and_labels_beyond_the_border_are_drawn_inside_and_without_any_the_note_is():
    overlays = [
        square(0, 0, 60, size=60, label="over all borders", box=[-50, -20, 400, 300]),
        square(59, 59, 1, size=60, label="in the corner", box=[58, 58, 0, 0]),
        square(0, 0, 0, size=60, label="outside", box=[500, 500, 10, 10]),
    ]
    assert draw_panel(grey(60, 60), overlays, "none").size == (180, 180)
    assert (np.asarray(draw_panel(grey(60, 60), [], "nothing found")) != 128).any()


def test_colours_depend_on_the_position_of_the_name_and_differ():
    names = [f"kind {index}" for index in range(80)]
    colours = category_colours(names)
    assert list(colours) == names and len(set(colours.values())) == 80
    assert category_colours(names[:3]) == {name: colours[name] for name in names[:3]}
    assert category_colours(["a", "b", "a"]).keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat", "cat"),
        ("two\nlines\there", "two lines here"),
        ("", "(no name)"),
        (" \n ", "(no name)"),
        ("bell\x07", "bell\ufffd"),
        ("half \ud800", "half \ufffd"),
        ("stra\u00dfe", "stra\u00dfe"),
        ("a" * 18, "a" * 18),
        ("a" * 19, "a" * 15 + "..."),
    ],
)
def test_names_become_one_short_line(name, shown):
    assert short_name(name) == shown and len(shown) <= LONGEST_NAME


@pytest.fixture
def no_fonts(monkeypatch):
    monkeypatch.setattr(fonts, "system_fonts", lambda letters: [])
    fonts._font_of.cache_clear()
    yield
    fonts._font_of.cache_clear()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("traffic light", "traffic light"),
        ("Gr\u00f6\u00dfe", "7: Gr??e"),
        ("\u7bb1\u5b50", "category 7"),
        ("\U0001f697 car", "7: ? car"),
        ("x\u200dy", "x\u200dy"),
        ("", ""),
    ],
)
def test_a_name_that_no_font_has_is_shown_by_its_id(no_fonts, name, expected):
    assert drawable_names({7: name}) == {7: expected}


def pair(size=90, name="cat"):
    colours = (230, 57, 70), (251, 120, 20)
    overlays = (square(20, 10, 30, size=size, label=short_name(name), colour=colour) for colour in colours)
    return draw_pair(*(draw_panel(grey(size, size), [overlay], "none") for overlay in overlays))


def page_of(path, pairs, names=("cat", "dog"), caption="000000000001.jpg"):
    write_page([(caption, entry) for entry in pairs], category_colours(names), path)
    with Image.open(path) as page:
        assert page.format == "PNG"
        return np.asarray(page.convert("RGB"))


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_image_adds_to_a_page_of_bounded_width(count, tmp_path):
    page = page_of(tmp_path / "page.png", [pair(400)] * count)
    columns = 1 if count <= 2 else 2
    assert page.shape[1] == (2 * 400 + 8 + 16) * columns + 16
    assert page.shape[0] > -(-count // columns) * 400


def test_a_page_is_always_the_same(tmp_path):
    for name in ("page.png", "again.png"):
        page_of(tmp_path / name, [pair()])
    assert (tmp_path / "page.png").read_bytes() == (tmp_path / "again.png").read_bytes()


def test_the_legend_wraps_and_ends_with_a_count(tmp_path):
    heights = [
        page_of(tmp_path / "page.png", [pair()], [f"category number {index}" for index in range(count)]).shape[0]
        for count in (1, 30, 60, 600)
    ]
    added = heights[1] - heights[0]
    assert added >= 3 * LEGEND_LINE_PX and added % LEGEND_LINE_PX == 0
    assert heights[2] == heights[3] > heights[1]


@pytest.mark.parametrize("name", ["", "\n", "x" * 5000, "\u732b", "\U0001f408", "\ud83d", "a\x00b", "\u0641\u0644"])
def test_odd_names_are_drawn(name, tmp_path):
    assert page_of(tmp_path / "page.png", [pair(name=name)], [name], caption=name).shape[1] < 2000


def test_a_page_that_cannot_be_written_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="no_such_folder"):
        write_page([("a.jpg", pair())], {}, tmp_path / "no_such_folder" / "page.png")


def test_a_small_image_is_enlarged_and_a_large_one_keeps_its_size():
    assert draw_image(grey(90, 120), []).size == (480, 360)
    assert draw_image(grey(300, 400), []).size == (800, 600)
    assert draw_image(grey(1000, 1500), []).size == (1500, 1000)
    assert draw_image(grey(90, 120), [], scale=1).size == (120, 90)


@pytest.mark.parametrize("shade", [(230, 57, 70), (255, 255, 255), (0, 0, 0), (128, 128, 128)])
def test_an_outline_differs_from_its_object_and_its_surroundings(shade):
    pixels = np.full((700, 700, 3), shade, np.uint8)  # object and background of one colour, also of the overlay's
    drawn = draw_image(pixels, [square(200, 200, 300, size=700, colour=(230, 57, 70))])
    edge = np.asarray(drawn).astype(float)[340:360, 194:208]  # across the left edge
    assert np.linalg.norm(edge - np.array(shade), axis=-1).max() > 120
    assert edge.mean(axis=2).max() - edge.mean(axis=2).min() > 60  # light beside dark


def test_a_tiny_object_stays_as_it_is_inside_its_box():
    pixels = grey(700, 700)
    pixels[300:304, 300:304] = (10, 200, 30)
    drawn = np.asarray(draw_image(pixels, [square(300, 300, 4, size=700)]))
    assert (drawn[300:304, 300:304] == (10, 200, 30)).all()
    assert pixels_of(drawn, RED) > 20
