import pytest
from PIL import Image, ImageDraw

from maskperf.machine.sources import Answer
from maskperf.pictures import fonts
from maskperf.pictures.fonts import (
    ABSENT,
    OWN,
    FontFile,
    draw_text,
    drawable,
    font_notices,
    fonts_of_folders,
    missing_letters,
    parse_fc_list,
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
    forget()
    yield
    forget()


def forget():
    for function in (fonts._font_of_all, fonts._font_of_letter, system_fonts):
        function.cache_clear()


@pytest.fixture
def no_fonts(monkeypatch):
    monkeypatch.setattr(fonts, "run_program", lambda words: Answer(output=""))


def picture(text):
    canvas = Image.new("L", (200, 40))
    draw_text(ImageDraw.Draw(canvas), (4, 20), text, size_px=20, fill="white")
    return canvas.tobytes()


def box_of_pillow():
    """Return what Pillow draws in the place of a letter that its font lacks."""
    canvas = Image.new("L", (200, 40))
    ascent, descent = fonts._load(OWN, 20).getmetrics()
    ImageDraw.Draw(canvas).text(
        (4, 20 + (ascent - descent) / 2), ABSENT, fill="white", font=fonts._load(OWN, 20), anchor="ls"
    )
    return canvas.tobytes()


def test_plain_text_needs_no_font_of_the_system(monkeypatch):
    monkeypatch.setattr(fonts, "run_program", None)
    text = "".join(map(chr, range(32, 127)))
    assert drawable(text) == text
    assert font_notices([text, ""]) == []
    assert picture("abc") != picture("abd") != picture("")
    assert text_width("abcabc", 14) > 1.5 * text_width("abc", 14) > 0


@pytest.mark.parametrize("name", NAMES)
def test_without_fonts_letters_become_question_marks_and_a_notice_says_what_to_install(no_fonts, name):
    foreign = [letter for letter in name if not letter.isascii()]
    assert missing_letters([name, name]) == list(dict.fromkeys(foreign))
    assert drawable(f"{name} 1") == "".join("?" if letter in foreign else letter for letter in name) + " 1"
    (notice,) = font_notices([name, "car", name])
    assert f"{foreign[0]} (U+{ord(foreign[0]):04X})" in notice
    assert f"Fix: install a font, for example {NAMES[name]} (Debian" in notice


def test_one_notice_tells_of_all_names_and_stays_short(no_fonts):
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
    drawn = [picture(letter) for letter in letters]
    assert len(set(drawn)) == len(letters)
    assert not {box_of_pillow(), picture("?"), picture("")} & set(drawn)
    assert 0 < text_width(name, 14) < 200


def test_accents_that_stand_alone_are_joined_with_their_letters(no_fonts):
    assert missing_letters(["e\u0301"]) == ["\u00e9"]
    assert drawable("e\u0301") == "?"


def test_text_of_two_scripts_is_drawn_in_parts_where_no_font_has_both(monkeypatch):
    letters_of_font = {"latin": "ab\u00f6", "han": "\u7bb1\u5b50"}
    files = {name: FontFile(name) for name in letters_of_font}
    monkeypatch.setattr(fonts, "_fonts", lambda: iter([OWN, *files.values()]))
    monkeypatch.setattr(
        fonts, "_has", lambda font, letter: letter.isascii() if font is OWN else letter in letters_of_font[font.path]
    )
    latin, han = files.values()
    assert list(fonts._parts("ab 1")) == [(OWN, "ab 1")]
    assert list(fonts._parts("\u00f6b")) == [(latin, "\u00f6b")]
    parts = [(OWN, "a"), (latin, "\u00f6 "), (han, "\u7bb1 \u5b50"), (OWN, "1")]
    assert list(fonts._parts("a\u00f6 \u7bb1 \u5b501")) == parts
    assert missing_letters(["\u00f6\u7bb1\u043a"]) == ["\u043a"]


def test_lines_of_fontconfig_are_read_and_other_kinds_of_files_left_out():
    text = (
        "/f/NotoSansCJK-Regular.ttc\t0\t20-7e a0 4e00-9fff\n"
        "/f/Some.pcf.gz\t0\t20-7e\n"
        "/f/Variable.TTF\t65537\t20-7e\n"
        "odd line\n"
    )
    first, second = parse_fc_list(text)
    assert (first.path, first.index) == ("/f/NotoSansCJK-Regular.ttc", 0)
    assert first.ranges == ((0x20, 0x7E), (0xA0, 0xA0), (0x4E00, 0x9FFF))
    assert (second.path, second.index) == ("/f/Variable.TTF", 1)


def test_plain_faces_come_first(monkeypatch):
    names = ["ASansMono.ttf", "BSerif-Bold.ttf", "CSans-Bold.ttf", "ZSans-Regular.ttf"]
    listed = "".join(f"/f/{name}\t0\t20-7e\n" for name in reversed(names))
    monkeypatch.setattr(fonts, "run_program", lambda words: Answer(output=listed))
    assert [font.path for font in system_fonts()] == [f"/f/{names[place]}" for place in (3, 0, 2, 1)]


def test_without_fontconfig_the_folders_are_searched(monkeypatch, tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("a.ttf", "deep/b.OTF", "deep/er/c.ttc", "deep/notes.txt"):
        (tmp_path / name).write_bytes(b"no font at all")
    monkeypatch.setattr(fonts, "run_program", lambda words: Answer())
    monkeypatch.setitem(fonts.FOLDERS, fonts.sys.platform, (str(tmp_path), str(tmp_path / "none")))
    assert sorted(font.path.rpartition("/")[2] for font in system_fonts()) == ["a.ttf", "b.OTF", "c.ttc"]
    assert missing_letters(["\u7bb1a"]) == ["\u7bb1"]  # files that are no fonts have no letters
    assert fonts_of_folders([]) == []


def test_a_font_that_fontconfig_tells_of_is_believed_only_where_its_glyphs_are_seen(monkeypatch, tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"no font at all")
    gone = tmp_path / "gone.ttf"
    listed = f"{tmp_path / 'broken.ttf'}\t0\t20-ffff\n{gone}\t0\t20-ffff\n"
    monkeypatch.setattr(fonts, "run_program", lambda words: Answer(output=listed))
    assert missing_letters(["\u7bb1"]) == ["\u7bb1"]
