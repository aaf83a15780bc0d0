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


def block_mask(height, width, top, left, side):
    mask = np.zeros((height, width), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def grey(height, width):
    return np.full((height, width, 3), 128, dtype=np.uint8)


@pytest.mark.parametrize("size_hw", [(96, 128), (480, 640), (640, 427), (3000, 40), (1, 1), (20, 2000)])
def test_a_panel_keeps_the_shape_of_the_image_and_fits_its_slot(size_hw):
    panel = draw_panel(grey(*size_hw), [], "")
    assert panel.width <= LARGEST_PANEL_PX[0] and panel.height <= LARGEST_PANEL_PX[1]
    zoom = min(LARGEST_PANEL_PX[0] / size_hw[1], LARGEST_PANEL_PX[1] / size_hw[0], 3)
    assert abs(panel.width - size_hw[1] * zoom) <= 1 and abs(panel.height - size_hw[0] * zoom) <= 1


def test_a_mask_is_tinted_where_it_is_and_nowhere_else():
    overlay = Overlay([20, 40, 30, 30], block_mask(100, 100, 40, 20, 30), "thing", RED)
    panel = np.asarray(draw_panel(grey(100, 100), [overlay], "none")).astype(int)  # zoom 3
    assert panel[165, 105].tolist() == [128 + round(0.4 * 102), 77, 77]
    assert panel[45, 105].tolist() == [128, 128, 128] and panel[250, 250].tolist() == [128, 128, 128]
    assert panel[120, 105].tolist() == list(RED)  # the box


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_every_overlay_shows_its_own_colour_in_any_order(order):
    colours, sides, corners = [(250, 0, 0), (0, 250, 0), (0, 0, 250)], (60, 30, 8), (10, 20, 25)
    overlays = [
        Overlay([corner, corner, side, side], block_mask(90, 90, corner, corner, side), "x", colour)
        for corner, side, colour in zip(corners, sides, colours, strict=True)
    ]
    panel = np.asarray(draw_panel(grey(90, 90), [overlays[index] for index in order], "none"))
    assert all((panel == colour).all(axis=-1).sum() > 30 for colour in colours)


def test_labels_of_equal_boxes_do_not_cover_each_other():
    mask = block_mask(100, 100, 30, 30, 40)
    overlays = [Overlay([30, 30, 40, 40], mask, "same", colour) for colour in ((250, 0, 0), (0, 0, 250))]
    panel = np.asarray(draw_panel(grey(100, 100), overlays, "none"))
    red, blue = ((panel == colour).all(axis=-1) for colour in ((250, 0, 0), (0, 0, 250)))
    assert red.sum() > 300 and blue.sum() > 300  # a tag is about 18 by 40


def test_boxes_and_labels_beyond_the_border_are_drawn_inside_and_without_any_the_note_is():
    overlays = [
        Overlay([-50, -20, 400, 300], block_mask(60, 60, 0, 0, 60), "over all borders", RED),
        Overlay([58, 58, 0, 0], block_mask(60, 60, 59, 59, 1), "in the corner", RED),
        Overlay([500, 500, 10, 10], block_mask(60, 60, 0, 0, 0), "outside", RED),
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


def pair(height=90, width=120, name="cat"):
    mask = block_mask(height, width, 10, 20, 30)
    overlays = [Overlay([20, 10, 30, 30], mask, short_name(name), colour) for colour in ((230, 57, 70), (251, 120, 20))]
    return draw_pair(*(draw_panel(grey(height, width), [overlay], "none") for overlay in overlays))


def page_of(path, pairs, names=("cat", "dog"), caption="000000000001.jpg"):
    write_page([(caption, entry) for entry in pairs], category_colours(names), path)
    with Image.open(path) as page:
        assert page.format == "PNG"
        return np.asarray(page.convert("RGB"))


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_image_adds_to_a_page_of_bounded_width(count, tmp_path):
    page = page_of(tmp_path / "page.png", [pair(480, 640)] * count)
    columns = 1 if count <= 2 else 2
    assert page.shape[1] == 944 * columns + 16
    assert page.shape[0] > -(-count // columns) * 345


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
    mask = block_mask(700, 700, 200, 200, 300)
    drawn = draw_image(pixels, [Overlay([200, 200, 300, 300], mask, "x", (230, 57, 70))])
    edge = np.asarray(drawn).astype(float)[340:360, 194:208]  # across the left edge
    assert np.linalg.norm(edge - np.array(shade), axis=-1).max() > 120
    assert edge.mean(axis=2).max() - edge.mean(axis=2).min() > 60  # light beside dark


def test_a_tiny_object_stays_as_it_is_inside_its_box():
    pixels = grey(700, 700)
    pixels[300:304, 300:304] = (10, 200, 30)
    mask = block_mask(700, 700, 300, 300, 4)
    drawn = np.asarray(draw_image(pixels, [Overlay([300, 300, 4, 4], mask, "x", RED)]))
    assert (drawn[300:304, 300:304] == (10, 200, 30)).all()
    assert ((drawn == RED).all(axis=-1)).sum() > 20


def test_of_many_objects_no_label_covers_another():
    colours = [(5 * index, 255 - 5 * index, 100) for index in range(40)]
    overlays = [
        Overlay([300, 300, 60, 60], block_mask(700, 700, 300, 300, 60), f"name {index:02d}", colour)
        for index, colour in enumerate(colours)
    ]
    few, many = draw_image(grey(700, 700), overlays[:10]), draw_image(grey(700, 700), overlays)
    assert few.size == many.size
    shown = sum(((np.asarray(many) == colour).all(axis=-1).sum() > 300) for colour in colours)
    assert 3 <= shown < 40
