"""File names of images as other programs write them: with backslashes, percent-encoded, as URLs, from other folders."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
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
    names = index.file_names
    try:
        present = set(os.listdir(index.image_folder))
    except OSError as error:
        problem = Problem(
            file=str(index.image_folder),
            where="the folder of images",
            field="folder",
            value=str(error.strerror),
            message="The folder cannot be listed.",
            fix="Allow this user to read it, or name another folder.",
        )
        raise DataError([problem]) from error
    missing = [position for position, name in enumerate(names) if not _is_there(index.image_folder, name, present)]
    if not missing:
        return index, (), []
    files = list_files(index.image_folder)
    ends = (_by_end(files, str), _by_end(files, _folded))
    absent = set(missing)
    claimed = {os.path.normpath(name) for position, name in enumerate(names) if position not in absent}
    found, reading = _best_reading(sorted({names[position] for position in missing}), ends, claimed)
    problems = [(at, _problem(index, at, files, ends[True])) for at in missing if names[at] not in found]
    if reading is None:
        return index, (), problems
    renamed = tuple(found.get(name, name) if at in absent else name for at, name in enumerate(names))
    first = next(position for position in missing if names[position] in found)
    notice = (
        f"{len(missing) - len(problems)} of {len(missing)} file names that do not exist as written were found "
        f"{reading.description()}: {shown(names[first])} -> {shown(renamed[first])}"
    )
    return replace(index, file_names=renamed), (notice,), problems


def _is_there(folder: Path, name: str, present: set[str]) -> bool:
    if name in present:
        return True
    stays_inside = not name.startswith("/") and ".." not in name.split("/")
    return os.sep in name and stays_inside and os.path.isfile(folder / name)


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
    for spelling in spellings:
        spelled = DRIVE.sub("", SPELLINGS[spelling][1](name))
        if "://" in spelled:  # what stands before the path of a URL is no folder
            continue
        for ignores_case in (False, True):
            dropped, length, files = _longest_end(spelled, ends[ignores_case], _folded if ignores_case else str)
            if len(files) != 1:  # none, or nobody knows which: the same names may be in images/ and in masks/
                continue
            folders = "/".join(files[0].split("/")[:-length])
            for prefix in (f"{folders}/" if folders else "", None):
                for folders_dropped in (dropped, None):
                    found[PathReading(spelling, folders_dropped, prefix, ignores_case)] = files[0]
    return found


def _longest_end(spelled: str, ends: dict[str, list[str]], fold: Callable[[str], str]) -> tuple[int, int, list[str]]:
    """Return how many leading folders have to go until files end like the rest; the length of the rest; the files."""
    parts = [fold(part) for part in spelled.split("/") if part not in ("", ".")]
    for dropped in range(len(parts)):
        files = ends.get("/".join(parts[dropped:]))
        if files:
            return dropped, len(parts) - dropped, files
    return len(parts), 0, []


def _problem(index: CocoIndex, position: int, files: list[str], ends: dict[str, list[str]]) -> Problem:
    """Return the problem of a name without a file, with what was tried."""
    name = index.file_names[position]
    spelled = {spell(name) for _, spell in SPELLINGS}
    doubtful = sorted({tuple(alike) for text in spelled if len(alike := _longest_end(text, ends, _folded)[2]) > 1})
    tried = [description for description, spell in SPELLINGS[1:] if spell(name) != name]
    if len([part for part in _with_slashes(name).split("/") if part]) > 1:
        tried.append("without leading folders")
    if any("/" in file for file in files):
        tried.append("in the subfolders" + (f" (the first {MAX_FILES:,} files)" if len(files) == MAX_FILES else ""))
    tried.append("in other letter case and Unicode form")
    return Problem(
        file=str(index.json_path),
        where=f"image id {index.shown_id(position)}",
        field="file_name",
        value=shown(name) + "".join(f" ({alike[0]} or {alike[1]}?)" for alike in doubtful[:1]),
        message=f"There is no such file in {index.image_folder}. Looked for as well: {', '.join(tried)}."
        + " Several files fit, so none is used." * bool(doubtful),
        fix=FIX_NAME,
    )
