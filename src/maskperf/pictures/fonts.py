"""Text in any script that this machine has a font for: Pillow's own font first, then those of the system."""

import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import ImageDraw, ImageFont

from maskperf.machine.sources import run_program

PROBE_PX = 40  # large enough for two glyphs that differ to differ in some pixel
ABSENT = "\U0010ffff"  # no font has a glyph for this one, so that each draws its box for missing ones
FONT_ENDINGS = (".ttf", ".otf", ".ttc", ".otc")
FOLDERS = {
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


@dataclass(frozen=True, eq=False)
class FontFile:
    """One face of a font file."""

    path: str  # empty: Pillow's own
    index: int = 0
    ranges: tuple[tuple[int, int], ...] | None = None  # first and last code points it may have; None: nobody says


OWN = FontFile("")


def text_width(text: str, size_px: int) -> float:
    """Return the pixels that `draw_text` needs from left to right."""
    return sum((_load(font, size_px).getlength(part) for font, part in _parts(text)), 0.0)


def draw_text(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int | float, int | float],
    text: str,
    *,
    size_px: int,
    fill: str | tuple[int, int, int],
) -> None:
    """Draw a line of text whose left end and middle height are at `corner`."""
    ascent, descent = _load(OWN, size_px).getmetrics()
    x, baseline = corner[0], corner[1] + (ascent - descent) / 2
    for font, part in _parts(text):
        loaded = _load(font, size_px)
        draw.text((x, baseline), part, fill=fill, font=loaded, anchor="ls")
        x += loaded.getlength(part)


def drawable(text: str) -> str:
    """Return the text with a question mark for each letter that no font has."""
    missing = missing_letters([text])
    return "".join("?" if letter in missing else letter for letter in _composed(text))


def missing_letters(texts: Iterable[str]) -> list[str]:
    """Return the letters that no font of this machine has, each once, in the order of the texts."""
    letters = dict.fromkeys(letter for text in texts for letter in _composed(text) if letter.isprintable())
    return [letter for letter in letters if not letter.isspace() and _font_of_letter(letter) is None]


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


def _composed(text: str) -> str:
    """Return the text with letters and their accents as one, as more fonts have them."""
    return unicodedata.normalize("NFC", text)


def _parts(text: str) -> Iterator[tuple[FontFile, str]]:
    """Yield the text in parts that one font has: the whole of it if any font does."""
    text = _composed(text)
    whole = _font_of_all(frozenset(letter for letter in text if not letter.isspace()))
    if whole is not None:
        yield whole, text
        return
    font, part = OWN, ""
    for letter in text:
        fits = letter.isspace() or _has(font, letter)
        chosen = font if fits else _font_of_letter(letter) or OWN
        if chosen is not font and part:
            yield font, part
            part = ""
        font, part = chosen, part + letter
    if part:
        yield font, part


@cache
def _font_of_all(letters: frozenset[str]) -> FontFile | None:
    return next((font for font in _fonts() if all(_has(font, letter) for letter in letters)), None)


@cache
def _font_of_letter(letter: str) -> FontFile | None:
    return next((font for font in _fonts() if _has(font, letter)), None)


@cache
def _has(font: FontFile, letter: str) -> bool:
    """Return whether the font draws something of its own for a letter."""
    code = ord(letter)
    if font.ranges is not None and not any(first <= code <= last for first, last in font.ranges):
        return False
    try:
        glyph, absent = (_load(font, PROBE_PX, ImageFont.Layout.BASIC).getmask(text) for text in (letter, ABSENT))
    except (OSError, ValueError):  # not a font that Pillow can scale, such as one of coloured images
        return False
    return (glyph.size, bytes(glyph)) != (absent.size, bytes(absent))


@cache
def _load(font: FontFile, size_px: int, layout: ImageFont.Layout | None = None) -> ImageFont.FreeTypeFont:
    if not font.path:
        own = ImageFont.load_default(size_px)
        assert isinstance(own, ImageFont.FreeTypeFont)
        return own
    return ImageFont.truetype(font.path, size_px, index=font.index, layout_engine=layout)


def _fonts() -> Iterator[FontFile]:
    """Yield Pillow's own font, then those of the system, which nobody looks for before they are needed."""
    yield OWN
    yield from system_fonts()


@cache
def system_fonts() -> tuple[FontFile, ...]:
    """Return the fonts of this machine, plain ones first."""
    listed = run_program(["fc-list", "--format", "%{file}\t%{index}\t%{charset}\n"]).output
    fonts = parse_fc_list(listed) if listed is not None else fonts_of_folders(FOLDERS.get(sys.platform, ()))
    return tuple(
        sorted(fonts, key=lambda font: (len(SPECIAL_FACES.findall(Path(font.path).name)), font.path, font.index))
    )


def parse_fc_list(text: str) -> list[FontFile]:
    """Return the faces in lines of file, index and code points in hexadecimal, such as "20-7e a0"."""
    fonts = []
    for line in text.splitlines():
        path, _, rest = line.partition("\t")
        index, _, charset = rest.partition("\t")
        if path.lower().endswith(FONT_ENDINGS) and index.isdecimal():
            pairs = [word.partition("-") for word in charset.split()]
            ranges = tuple((int(first, 16), int(last or first, 16)) for first, _, last in pairs)
            fonts.append(FontFile(path, int(index) & 0xFFFF, ranges))  # above: instances of a variable font
    return fonts


def fonts_of_folders(folders: Iterable[str]) -> list[FontFile]:
    """Return the first face of every font file below some folders; those that are not there have none."""
    paths = [path for folder in folders for path in Path(folder).expanduser().rglob("*")]
    return [FontFile(str(path)) for path in paths if path.suffix.lower() in FONT_ENDINGS]
