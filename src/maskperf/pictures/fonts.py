"""Text in any script that this machine has a font for: Pillow's own font first, then those of the system."""

import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path

from PIL import ImageDraw, ImageFont

from maskperf.machine.sources import run_program

PROBE_PX = 40  # large enough for two glyphs that differ to differ in some pixel
ABSENT = "\U0010ffff"  # no font has a glyph for this one, so that each draws its box for missing ones
FONT_ENDINGS = (".ttf", ".otf", ".ttc", ".otc")
FOLDERS = {  # searched where there is no fontconfig
    "darwin": ("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"),
    "linux": ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts"),
}
# Upright fonts without serifs come before all others.
SPECIAL_FACES = re.compile("bold|italic|oblique|serif|mono|light|thin|black|condensed|math|emoji|symbol", re.IGNORECASE)
# The first word of a letter's name in Unicode, and the package of Debian that has a font for it.
PACKAGES = {
    **dict.fromkeys(("CJK", "HANGUL", "HIRAGANA", "KATAKANA", "BOPOMOFO", "FULLWIDTH"), "fonts-noto-cjk"),
    **dict.fromkeys(("LATIN", "GREEK", "CYRILLIC", "ARABIC", "HEBREW", "ARMENIAN", "GEORGIAN"), "fonts-dejavu-core"),
}
OTHER_PACKAGE = "fonts-noto-core"
MOST_LETTERS_NAMED = 5
VARIATION_SELECTORS = re.compile("[\ufe00-\ufe0f]")  # emoji or plain: fonts decide


Number = int | float
Colour = tuple[int, int, int]
FontFile = tuple[str, int]  # path and index of the face
OWN: FontFile = ("", 0)  # Pillow's own


def text_width(text: str, size_px: int) -> float:
    """Return the pixels that `draw_text` needs from left to right."""
    return sum((_load(font, size_px).getlength(part) for font, part in _parts(text)), 0.0)


def draw_text(
    draw: ImageDraw.ImageDraw, corner: tuple[Number, Number], text: str, *, size_px: int, fill: str | Colour
) -> None:
    """Draw a line of text whose left end and middle height are at `corner`."""
    ascent, descent = _load(OWN, size_px).getmetrics()
    x, baseline = corner[0], corner[1] + (ascent - descent) / 2
    for font, part in _parts(text):
        loaded = _load(font, size_px)
        draw.text((x, baseline), part, fill=fill, font=loaded, anchor="ls")
        x += loaded.getlength(part)


def drawable(text: str) -> str:
    """Return the text with a question mark for each letter that no font has, without signs that have no shape."""
    missing = missing_letters([text])
    return "".join("?" if letter in missing else letter for letter in _letters(text))


def missing_letters(texts: Iterable[str]) -> list[str]:
    """Return the letters that no font of this machine has, each once, in the order of the texts."""
    letters = [letter for letter in dict.fromkeys(_letters("".join(texts))) if not letter.isspace()]
    if _font_of(frozenset(letters)) is not None:
        return []
    return [letter for letter in letters if _font_of(frozenset(letter)) is None]


def font_notices(texts: Sequence[str]) -> list[str]:
    """Return a notice about letters that cannot be drawn, with what to install; none where all can be."""
    missing = missing_letters(texts)
    if not missing:
        return []
    named = ", ".join(f"{letter} (U+{ord(letter):04X})" for letter in missing[:MOST_LETTERS_NAMED])
    more = f" and {len(missing) - MOST_LETTERS_NAMED} more" if len(missing) > MOST_LETTERS_NAMED else ""
    scripts = (unicodedata.name(letter, "").partition(" ")[0] for letter in missing)
    packages = dict.fromkeys(PACKAGES.get(script, OTHER_PACKAGE) for script in scripts)
    return [
        f"no font on this machine has letters such as {named}{more}; pictures show ? and the category's id instead. "
        f"Fix: install a font, for example {' and '.join(packages)} (Debian, Ubuntu)"
    ]


def system_fonts(letters: Iterable[str]) -> list[FontFile]:
    """Return the fonts of this machine that may have all these letters, plain ones first."""
    charset = " ".join(f"{ord(letter):x}" for letter in sorted(letters))
    listed = run_program(["fc-list", "--format", "%{file}\t%{index}\n", f":charset={charset}"]).output
    if listed is None:
        paths = (path for folder in FOLDERS.get(sys.platform, ()) for path in Path(folder).expanduser().rglob("*"))
        found = {(str(path), 0) for path in paths}
    else:
        lines = (line.rpartition("\t") for line in listed.splitlines())
        # The upper bits of an index are instances of a variable font.
        found = {(path, int(index) & 0xFFFF) for path, _, index in lines if index.isdecimal()}
    fonts = [font for font in found if font[0].lower().endswith(FONT_ENDINGS)]
    return sorted(fonts, key=lambda font: (len(SPECIAL_FACES.findall(Path(font[0]).name)), font))


def _letters(text: str) -> str:
    """Return the text with letters and their accents as one, as more fonts have them, without signs of no shape."""
    visible = "".join(letter for letter in text if letter.isprintable() or letter.isspace())
    return unicodedata.normalize("NFC", VARIATION_SELECTORS.sub("", visible))


def _parts(text: str) -> Iterator[tuple[FontFile, str]]:
    """Yield the text in parts that one font has: the whole of it if any font does."""
    text = _letters(text)
    whole = _font_of(frozenset(text))
    for font, part in groupby(text, key=lambda letter: whole or _font_of(frozenset(letter)) or OWN):
        yield font, "".join(part)


@cache
def _font_of(letters: frozenset[str]) -> FontFile | None:
    """Return the first font that draws something of its own for each of these letters."""
    letters = frozenset(letter for letter in letters if not letter.isspace())
    if all(_has(OWN, letter) for letter in letters):
        return OWN
    return next((font for font in system_fonts(letters) if all(_has(font, letter) for letter in letters)), None)


@cache
def _has(font: FontFile, letter: str) -> bool:
    try:
        glyph, absent = (_load(font, PROBE_PX, ImageFont.Layout.BASIC).getmask(text) for text in (letter, ABSENT))
    except (OSError, ValueError):  # not a font that Pillow can scale, such as one of coloured images
        return False
    return (glyph.size, bytes(glyph)) != (absent.size, bytes(absent))


@cache
def _load(font: FontFile, size_px: int, layout: ImageFont.Layout | None = None) -> ImageFont.FreeTypeFont:
    path, index = font
    if not path:
        own = ImageFont.load_default(size_px)
        assert isinstance(own, ImageFont.FreeTypeFont)
        return own
    return ImageFont.truetype(path, size_px, index=index, layout_engine=layout)
