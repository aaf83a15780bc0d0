"""File names of images as other programs write them: with backslashes, percent-encoded, as URLs, from other folders."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, product
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

from maskperf.data.coco.document import shown
from maskperf.data.coco.index import CocoIndex
from maskperf.errors import DataError, Problem

MAX_FILES = 1_000_000  # looked at below the image folder when a name is not found
MAX_READINGS = 20  # tried in full, the best first
FIX_NAME = "Put the file there, correct its name in the JSON, or go on without such images: data.skip_bad=true."
DRIVE = re.compile(r"^[A-Za-z]:")


def resolve_file_names(index: CocoIndex) -> tuple[CocoIndex, tuple[str, ...], list[tuple[int, Problem]]]:
    """Return the index with names of files that are there, notices, and the problems of the others by position.

    Names that are not found as written are read in other ways, all of them in the one way that finds the most files.
    It must not give one file to two images. No file outside of the image folder is ever looked at.
    Errors: DataError for an image folder that cannot be listed.
    """
    names, folder = index.file_names, index.image_folder
    try:
        present = set(os.listdir(folder))
    except OSError as error:
        where, fix = "the folder of images", "Allow this user to read it, or name another folder."
        value, message = str(error.strerror), "The folder cannot be listed."
        problem = Problem(file=str(folder), where=where, field="folder", value=value, message=message, fix=fix)
        raise DataError([problem]) from error
    missing = {at: name for at, name in enumerate(names) if not _is_there(folder, name, present)}
    if not missing:
        return index, (), []
    files = list_files(folder)
    ends = (_by_end(files, str), _by_end(files, _folded))
    claimed = {os.path.normpath(name) for at, name in enumerate(names) if at not in missing}
    found, reading = _best_reading(sorted(set(missing.values())), ends, claimed)
    problems = [(at, _problem(index, at, files, ends[1])) for at, name in missing.items() if name not in found]
    if reading is None:
        return index, (), problems
    renamed = tuple(found.get(name, name) if at in missing else name for at, name in enumerate(names))
    first = next(name for name in missing.values() if name in found)
    notice = (
        f"{len(missing) - len(problems)} of {len(missing)} file names that do not exist as written were found "
        f"{reading.description()}: {shown(first)} -> {shown(found[first])}"
    )
    return replace(index, file_names=renamed), (notice,), problems


def _is_there(folder: Path, name: str, present: set[str]) -> bool:
    stays_inside = not name.startswith("/") and ".." not in name.split("/")
    return name in present or (os.sep in name and stays_inside and os.path.isfile(folder / name))


def list_files(folder: Path) -> list[str]:
    """Return the paths of all files below a folder, relative to it; not more than a million."""
    files: list[str] = []
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):  # passes over what this user may not read
        state = os.stat(parent)
        if (state.st_dev, state.st_ino) in seen:  # a link that leads in circles
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        prefix = Path(parent).relative_to(folder)
        files += [str(prefix / name) for name in names]
        if len(files) >= MAX_FILES:
            break
    return sorted(files[:MAX_FILES])


def _with_slashes(name: str) -> str:
    return name.replace("\\", "/")


def _decoded(name: str) -> str:
    try:
        return unquote(name, errors="strict")
    except UnicodeDecodeError:
        return name


def _path_of_url(name: str) -> str:
    try:
        return _decoded(urlsplit(name).path) if "://" in name else name
    except ValueError:
        return name


# In the order in which they are preferred.
SPELLINGS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("as written", str),
    ("with / for each backslash", _with_slashes),
    ("percent-decoded", _decoded),
    ("percent-decoded and with / for each backslash", lambda name: _with_slashes(_decoded(name))),
    ("as the path of a URL", _path_of_url),
    ("percent-encoded", quote),
    ("with a backslash for each /", lambda name: name.replace("/", "\\")),
)


class PathReading(NamedTuple):
    """One way to make the path of a file from a name: spelled anew, leading folders dropped, a folder put in front."""

    spelling: int  # position in SPELLINGS
    dropped: int | None  # leading folders; None: as many as it takes
    prefix: str | None  # folder with "/" at its end; None: any folder, where only one fits
    ignores_case: bool

    def simplicity(self) -> tuple:
        """Return what is less for the simpler of two readings."""
        changes = (self.spelling > 0) + self.ignores_case
        changes += {0: 0, None: 2}.get(self.dropped, 1) + {"": 0, None: 2}.get(self.prefix, 1)
        return changes, self.spelling, self.prefix is None, self.prefix or "", self.dropped or 0

    def description(self) -> str:
        """Return the reading as the end of "found ..."."""
        parts = (
            (self.spelling, SPELLINGS[self.spelling][0]),
            (self.dropped is None, "without the leading folders"),
            (self.dropped, f"without the first {self.dropped} of their folders"),
            (self.prefix is None, "in a subfolder"),
            (self.prefix, f"in the subfolder {self.prefix}"),
            (self.ignores_case, "in other letter case or Unicode form"),
        )
        return ", ".join(text for applies, text in parts if applies) or "below the image folder"


def _best_reading(
    names: list[str], ends: tuple[dict[str, list[str]], ...], claimed: set[str]
) -> tuple[dict[str, str], PathReading | None]:
    """Return the file of each name that the best reading finds, and this reading; none where no reading fits.

    `ends` are the files by the ends of their paths, as they are and folded.
    """
    effects = {tuple(map(spell, names)): number for number, (_, spell) in reversed(list(enumerate(SPELLINGS)))}
    spellings = sorted(effects.values())  # the first of those that do the same to these names
    counts = Counter(chain.from_iterable(_fits(name, spellings, ends) for name in names))
    for reading in sorted(counts, key=lambda one: (-counts[one], one.simplicity()))[:MAX_READINGS]:
        files = {name: _fits(name, spellings, ends).get(reading) for name in names}  # all at once are too large
        found = {name: file for name, file in files.items() if file is not None}
        if len(set(found.values())) == len(found) and claimed.isdisjoint(found.values()):
            return found, reading
    return {}, None


def _by_end(files: list[str], fold: Callable[[str], str]) -> dict[str, list[str]]:
    """Return the files by each end of their paths that starts with the name of a folder or of the file."""
    ends: dict[str, list[str]] = {}
    for file in files:
        end = fold(file)
        while end:
            ends.setdefault(end, []).append(file)
            end = end.partition("/")[2]
    return ends


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _fits(name: str, spellings: list[int], ends: tuple[dict[str, list[str]], ...]) -> dict[PathReading, str]:
    """Return the file of each reading that makes one of this name."""
    found = {}
    for spelling, ignores_case in product(spellings, (False, True)):
        spelled = DRIVE.sub("", SPELLINGS[spelling][1](name))
        path = _folded(spelled) if ignores_case else spelled
        dropped, length, files = _longest_end(path, ends[ignores_case])
        # What stands before the path of a URL is no folder; and of several files, as in images/ and masks/, nobody
        # knows which is meant.
        if "://" in spelled or len(files) != 1:
            continue
        folders = "".join(f"{folder}/" for folder in files[0].split("/")[:-length])
        for prefix, folders_dropped in product((folders, None), (dropped, None)):
            found[PathReading(spelling, folders_dropped, prefix, ignores_case)] = files[0]
    return found


def _longest_end(path: str, ends: dict[str, list[str]]) -> tuple[int, int, list[str]]:
    """Return how many leading folders have to go until files end like the rest; the length of the rest; the files."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    for dropped in range(len(parts)):
        if files := ends.get("/".join(parts[dropped:])):
            return dropped, len(parts) - dropped, files
    return len(parts), 0, []


def _problem(index: CocoIndex, position: int, files: list[str], ends: dict[str, list[str]]) -> Problem:
    """Return the problem of a name without a file, with what was tried."""
    name = index.file_names[position]
    spelled = {_folded(spell(name)) for _, spell in SPELLINGS}
    doubtful = sorted({tuple(alike) for path in spelled if len(alike := _longest_end(path, ends)[2]) > 1})
    first_files = f" (the first {MAX_FILES:,} files)" if len(files) == MAX_FILES else ""
    tried = {
        **{description: spell(name) != name for description, spell in SPELLINGS[1:]},
        "without leading folders": len([part for part in _with_slashes(name).split("/") if part]) > 1,
        f"in the subfolders{first_files}": any("/" in file for file in files),
        "in other letter case and Unicode form": True,
    }
    others = ", ".join(what for what, was_tried in tried.items() if was_tried)
    message = f"There is no such file in {index.image_folder}. Looked for as well: {others}."
    return Problem(
        file=str(index.json_path),
        where=f"image id {index.shown_id(position)}",
        field="file_name",
        value=shown(name) + "".join(f" ({alike[0]} or {alike[1]}?)" for alike in doubtful[:1]),
        message=message + " Several files fit, so none is used." * bool(doubtful),
        fix=FIX_NAME,
    )
