import numpy as np
import pytest

from maskperf.pictures import fonts
from maskperf.pictures.panels import (
    LARGEST_PANEL_PX,
    LONGEST_NAME,
    Overlay,
    category_colours,
    draw_panel,
    drawable_names,
    printable_line,
    printable_name,
)

RED = (230, 0, 0)


def block_mask(height: int, width: int, top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, dtype=np.uint8)


@pytest.mark.parametrize("size_hw", [(96, 128), (480, 640), (640, 427), (3000, 40), (1, 1), (20, 2000)])
def test_a_panel_keeps_the_pictures_shape_and_fits_its_place(size_hw):
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


def test_every_overlay_shows_its_own_colour_however_they_lie():
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    masks = [block_mask(90, 90, 10, 10, 60), block_mask(90, 90, 20, 20, 30), block_mask(90, 90, 25, 25, 8)]
    boxes = [[10, 10, 60, 60], [20, 20, 30, 30], [25, 25, 8, 8]]
    overlays = [Overlay(box, mask, "x", colour) for box, mask, colour in zip(boxes, masks, colours, strict=True)]
    for order in ([0, 1, 2], [2, 1, 0]):
        panel = np.asarray(draw_panel(grey(90, 90), [overlays[index] for index in order], "none"))
        for colour in colours:
            assert (panel == colour).all(axis=-1).sum() > 30


def test_labels_of_equal_boxes_do_not_cover_each_other():
    mask = block_mask(100, 100, 30, 30, 40)
    overlays = [Overlay([30, 30, 40, 40], mask, "same", colour) for colour in ((250, 0, 0), (0, 0, 250))]
    panel = np.asarray(draw_panel(grey(100, 100), overlays, "none"))
    red, blue = ((panel == colour).all(axis=-1) for colour in ((250, 0, 0), (0, 0, 250)))
    assert red.sum() > 300 and blue.sum() > 300  # a tag is about 18 by 40


def test_boxes_and_labels_beyond_the_border_are_drawn_inside():
    overlays = [
        Overlay([-50, -20, 400, 300], block_mask(60, 60, 0, 0, 60), "over all borders", RED),
        Overlay([58, 58, 0, 0], block_mask(60, 60, 59, 59, 1), "in the corner", RED),
        Overlay([500, 500, 10, 10], block_mask(60, 60, 0, 0, 0), "outside", RED),
    ]
    assert draw_panel(grey(60, 60), overlays, "none").size == (180, 180)


def test_a_picture_without_overlays_carries_the_note():
    assert (np.asarray(draw_panel(grey(60, 60), [], "nothing found")) != 128).any()


def test_colours_depend_on_the_place_of_the_name_and_differ():
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
        ("bell\x07", "bell?"),
        ("half \ud800", "half ?"),
        ("stra\u00dfe", "stra\u00dfe"),
        ("a" * 18, "a" * 18),
        ("a" * 19, "a" * 15 + "..."),
    ],
)
def test_names_become_one_short_line(name, shown):
    assert printable_name(name) == shown and len(shown) <= LONGEST_NAME


def test_a_caption_keeps_its_length():
    assert printable_line("x" * 50 + "\ny") == "x" * 50 + " y"


@pytest.fixture
def no_fonts(monkeypatch):
    monkeypatch.setattr(fonts, "_fonts", lambda: iter([fonts.OWN]))
    for function in (fonts._font_of_all, fonts._font_of_letter):
        function.cache_clear()
    yield
    for function in (fonts._font_of_all, fonts._font_of_letter):
        function.cache_clear()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("traffic light", "traffic light"),
        ("Gr\u00f6\u00dfe", "7: Gr??e"),
        ("\u7bb1\u5b50", "category 7"),
        ("\u043a\u043e\u043d\u0443\u0441", "category 7"),
        ("\u0642\u0637\u0629", "category 7"),
        ("\U0001f697 car", "7: ? car"),
        ("\u7bb1 2", "7: ? 2"),
        ("x\u200dy", "x\u200dy"),
        ("", ""),
    ],
)
def test_a_name_that_no_font_has_is_told_by_its_id(no_fonts, name, expected):
    assert drawable_names({7: name}) == {7: expected}


def test_names_that_no_font_has_stay_different(no_fonts):
    names = drawable_names(dict(enumerate(["\u7bb1", "\u5b50", "a \u7bb1", "a \u5b50", "\u00f6", "\u00e4"])))
    assert len(set(names.values())) == 6


def test_without_fonts_a_label_of_another_script_is_drawn_as_its_readable_text_and_no_box(no_fonts):
    (name,) = drawable_names({7: "\u7bb1\u5b50"}).values()
    panels = [
        draw_panel(grey(60, 60), [Overlay([5, 30, 40, 20], block_mask(60, 60, 30, 5, 20), label, RED)], "")
        for label in (printable_name(name), "category 7")
    ]
    assert panels[0].tobytes() == panels[1].tobytes()


@pytest.mark.parametrize("sign", ["\u200d", "\u200b", "\u200f", "\ufe0f", "\u00ad", "\u2066"])
def test_signs_without_a_shape_are_left_out(sign):
    assert printable_line(f"a{sign}b") == "ab"
