import pytest
from PIL import Image, ImageDraw

from maskperf.machine.sources import Answer
from maskperf.pictures import fonts
from maskperf.pictures.fonts import (
    ABSENT,
    OWN,
    draw_text,
    drawable,
    font_notices,
    missing_letters,
    system_fonts,
    text_width,
)

NAMES = {  # a word in each script, and what Debian has for it
    "Gr\u00f6\u00dfe": "fonts-dejavu-core",
    "\u017c\u00f3\u0142ty": "fonts-dejavu-core",
    "\u0395\u03bb\u03bb\u03ac\u03b4\u03b1": "fonts-dejavu-core",
    "\u043a\u043e\u043d\u0443\u0441": "fonts-dejavu-core",
    "\u0642\u0637\u0629": "fonts-dejavu-core",
    "\u7bb1\u5b50": "fonts-noto-cjk",
    "\u3072\u3089\u304c\u306a": "fonts-noto-cjk",
    "\uace0\uc591\uc774": "fonts-noto-cjk",
    "\u0e41\u0e21\u0e27": "fonts-noto-core",
    "\U0001f697": "fonts-noto-core",
}


@pytest.fixture(autouse=True)
def look_for_fonts_anew():
    fonts._font_of.cache_clear()
    yield
    fonts._font_of.cache_clear()


@pytest.fixture
def no_fonts(monkeypatch):
    monkeypatch.setattr(fonts, "run_program", lambda words: Answer(output=""))


def drawing_of(text):
    image = Image.new("L", (200, 40))
    draw_text(ImageDraw.Draw(image), (4, 20), text, size_px=20, fill="white")
    return image.tobytes()


def box_of_pillow():
    """Return what Pillow draws for a letter that its font lacks."""
    image, font = Image.new("L", (200, 40)), fonts._load(OWN, 20)
    ascent, descent = font.getmetrics()
    ImageDraw.Draw(image).text((4, 20 + (ascent - descent) / 2), ABSENT, fill="white", font=font, anchor="ls")
    return image.tobytes()


def test_plain_text_needs_no_font_of_the_system(monkeypatch):
    monkeypatch.setattr(fonts, "run_program", None)
    text = "".join(map(chr, range(32, 127)))
    assert drawable(text) == text
    assert font_notices([text, ""]) == []
    assert drawing_of("abc") != drawing_of("abd") != drawing_of("")
    assert text_width("abcabc", 14) > 1.5 * text_width("abc", 14) > 0


@pytest.mark.parametrize("name", NAMES)
def test_without_fonts_letters_become_question_marks_and_a_notice_says_what_to_install(no_fonts, name):
    foreign = [letter for letter in name if not letter.isascii()]
    assert missing_letters([name, name]) == list(dict.fromkeys(foreign))
    assert drawable(f"{name} 1") == "".join("?" if letter in foreign else letter for letter in name) + " 1"
    (notice,) = font_notices([name, "car", name])
    assert f"{foreign[0]} (U+{ord(foreign[0]):04X})" in notice
    assert f"Fix: install a font, for example {NAMES[name]} (Debian" in notice


def test_one_notice_has_all_names_and_stays_short(no_fonts):
    (notice,) = font_notices(list(NAMES))
    count = len({letter for name in NAMES for letter in name if not letter.isascii()})
    assert f" and {count - 5} more;" in notice
    assert "fonts-dejavu-core and fonts-noto-cjk and fonts-noto-core" in notice
    assert len(notice) < 320


@pytest.mark.parametrize("name", NAMES)
def test_what_this_machine_has_a_font_for_is_drawn_and_no_box_stands_for_it(name):
    if missing_letters([name]):
        pytest.skip("this machine has no font for it")
    assert drawable(name) == name
    assert font_notices([name]) == []
    letters = [letter for letter in dict.fromkeys(name) if not letter.isascii()]
    drawn = [drawing_of(letter) for letter in letters]
    assert len(set(drawn)) == len(letters)
    assert not {box_of_pillow(), drawing_of("?"), drawing_of("")} & set(drawn)
    assert 0 < text_width(name, 14) < 200


def test_accents_are_joined_with_their_letters_and_signs_without_a_shape_left_out(no_fonts):
    assert missing_letters(["e\u0301"]) == ["\u00e9"]
    assert drawable("e\u0301") == "?"
    for sign in "\u200d\u200b\u200f\ufe0f\u00ad\u2066":
        assert drawable(f"a{sign}b") == "ab"


def test_text_of_two_scripts_is_drawn_in_parts_where_no_font_has_both(monkeypatch):
    letters_of_font = {("latin", 0): "ab\u00f6", ("han", 0): "\u7bb1\u5b50"}
    monkeypatch.setattr(fonts, "system_fonts", lambda letters: list(letters_of_font))
    monkeypatch.setattr(fonts, "_has", lambda font, letter: letter in letters_of_font.get(font, "ab1"))
    latin, han = letters_of_font
    assert list(fonts._parts("ab 1")) == [(OWN, "ab 1")]
    assert list(fonts._parts("\u00f6 b")) == [(latin, "\u00f6 b")]
    parts = [(OWN, "a"), (latin, "\u00f6"), (OWN, " "), (han, "\u7bb1\u5b50"), (OWN, "1")]
    assert list(fonts._parts("a\u00f6 \u7bb1\u5b501")) == parts
    assert missing_letters(["\u00f6\u7bb1\u043a"]) == ["\u043a"]


def test_plain_faces_of_fontconfig_come_first_and_other_kinds_of_files_are_left_out(monkeypatch):
    names = ["ZSans-Regular.ttf", "ASansMono.ttf", "CSans-Bold.ttf", "BSerif-Bold.ttf"]
    listed = "".join(f"/f/{name}\t0\n" for name in reversed(names))
    listed += "/f/AVariable.TTF\t65537\n/f/Some.pcf.gz\t0\nodd line\n"
    asked = []
    monkeypatch.setattr(fonts, "run_program", lambda words: asked.append(words) or Answer(output=listed))
    found = system_fonts("\u7bb1a")
    assert found == [("/f/AVariable.TTF", 1), *((f"/f/{name}", 0) for name in names)]
    assert asked[0][-1] == ":charset=61 7bb1"


def test_without_fontconfig_the_folders_are_searched(monkeypatch, tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("a.ttf", "deep/b.OTF", "deep/er/c.ttc", "deep/notes.txt"):
        (tmp_path / name).write_bytes(b"no font at all")
    monkeypatch.setattr(fonts, "run_program", lambda words: Answer())
    monkeypatch.setitem(fonts.FOLDERS, fonts.sys.platform, (str(tmp_path), str(tmp_path / "none")))
    assert sorted(font[0].rpartition("/")[2] for font in system_fonts("a")) == ["a.ttf", "b.OTF", "c.ttc"]
    assert missing_letters(["\u7bb1a"]) == ["\u7bb1"]  # files that are no fonts have no letters
