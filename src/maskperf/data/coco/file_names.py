"""File names of images as other programs write them: with backslashes, percent-encoded, as URLs, from other folders."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from maskperf.data.coco.document import shown
from maskperf.data.coco.index import CocoIndex
from maskperf.errors import DataError, Problem

MOST_FILES = 1_000_000  # looked at below the image folder when a name is not found
MOST_READINGS = 20  # tried in full, the best first
FIX_NAME = "Put the file there, correct its name in the JSON, or go on without such images: data.skip_bad=true."
DRIVE = re.compile(r"^[A-Za-z]:")


def resolve_file_names(index: CocoIndex) -> tuple[CocoIndex, tuple[str, ...], list[tuple[int, Problem]]]:
    """Return the index with names of files that are there, notices, and the problems of the others by position.

    Names that are not found as written are read in other ways, all of them in the one way that finds the most files.
    It must not give one file to two images. No file outside of the image folder is ever looked at.
    Errors: DataError for an image folder that cannot be listed.
    """
    try:
        present = set(os.listdir(index.image_folder))
    except OSError as error:
        raise DataError([_folder_problem(index.image_folder, error)]) from error
    missing = [position for position, name in enumerate(index.file_names) if not _is_there(index, name, present)]
    if not missing:
        return index, (), []
    files = list_files(index.image_folder)
    absent = set(missing)
    claimed = {os.path.normpath(name) for at, name in enumerate(index.file_names) if at not in absent}
    names = sorted({index.file_names[position] for position in missing})
    ends = (_by_end(files, str), _by_end(files, _folded))
    found, reading = _best_reading(names, ends, claimed)
    problems = [
        (position, _problem(index, position, files, ends[True]))
        for position in missing
        if index.file_names[position] not in found
    ]
    if not found:
        return index, (), problems
    renamed = tuple(
        found.get(name, name) if position in absent else name for position, name in enumerate(index.file_names)
    )
    first = next(position for position in missing if index.file_names[position] in found)
    notice = (
        f"{len(missing) - len(problems)} of {len(missing)} file names that do not exist as written were found "
        f"{reading.words()}: {shown(index.file_names[first])} -> {shown(renamed[first])}"
    )
    return replace(index, file_names=renamed), (notice,), problems


def _is_there(index: CocoIndex, name: str, present: set[str]) -> bool:
    return name in present or (os.sep in name and _stays_inside(name) and os.path.isfile(index.image_folder / name))


def _stays_inside(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/")


def list_files(folder: Path) -> list[str]:
    """Return the paths of all files below a folder, relative to it; not more than a million."""
    files, waiting, seen = [], [""], set()
    while waiting and len(files) < MOST_FILES:
        prefix = waiting.pop()
        try:
            state = os.stat(folder / prefix)
            if (state.st_dev, state.st_ino) in seen:  # a link that leads in circles
                continue
            seen.add((state.st_dev, state.st_ino))
            with os.scandir(folder / prefix) as entries:
                for entry in entries:
                    (waiting if entry.is_dir() else files).append(prefix + entry.name + "/" * entry.is_dir())
        except OSError:  # a folder that this user may not read: its files cannot be used either
            continue
    return sorted(files[:MOST_FILES])


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


@dataclass(frozen=True)
class Reading:
    """One way to make the path of a file from a name: spelled anew, leading folders dropped, a folder put in front."""

    spelling: int  # place in SPELLINGS
    dropped: int | None  # leading folders; None: as many as it takes
    prefix: str | None  # folder with "/" at its end; None: any folder, where only one fits
    ignores_case: bool

    def simplicity(self) -> tuple:
        """Return what is less for the simpler of two readings."""
        changes = (self.spelling > 0) + self.ignores_case
        changes += {0: 0, None: 2}.get(self.dropped, 1) + {"": 0, None: 2}.get(self.prefix, 1)
        return changes, self.spelling, self.prefix is None, self.prefix or "", self.dropped or 0

    def words(self) -> str:
        """Return the reading as the end of "found ..."."""
        parts = [SPELLINGS[self.spelling][0]] if self.spelling else []
        if self.dropped is None:
            parts.append("without the leading folders")
        elif self.dropped:
            parts.append(f"without the first {self.dropped} of their folders")
        if self.prefix is None:
            parts.append("in a subfolder")
        elif self.prefix:
            parts.append(f"in the subfolder {self.prefix}")
        if self.ignores_case:
            parts.append("in other letter case or Unicode form")
        return ", ".join(parts) or "below the image folder"


def _best_reading(
    names: list[str], ends: tuple[dict[str, list[str]], ...], claimed: set[str]
) -> tuple[dict[str, str], Reading | None]:
    """Return the file of each name that the best reading finds, and this reading; none where no reading fits.

    `ends` are the files by the ends of their paths, as they are and folded.
    """
    spellings = _different_spellings(names)
    counts = Counter(key for name in names for key in _fits(name, spellings, ends))
    ranked = sorted((-count, Reading(*key).simplicity(), key) for key, count in counts.items())
    for _, _, key in ranked[:MOST_READINGS]:
        found = {}
        for name in names:
            file = _fits(name, spellings, ends).get(key)
            if file is not None:
                found[name] = file
        if len(set(found.values())) == len(found) and claimed.isdisjoint(found.values()):
            return found, Reading(*key)
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


def _different_spellings(names: list[str]) -> list[int]:
    """Return the places of the spellings without those that do to these names what an earlier one does."""
    seen = {tuple(map(spell, names)): place for place, (_, spell) in reversed(list(enumerate(SPELLINGS)))}
    return sorted(seen.values())


def _fits(name: str, spellings: list[int], ends: tuple[dict[str, list[str]], ...]) -> dict[tuple, str]:
    """Return the file of each reading (the fields of `Reading`) that makes one of this name."""
    found = {}
    for spelling in spellings:
        spelled = DRIVE.sub("", SPELLINGS[spelling][1](name))
        if "://" in spelled:  # what stands before the path of a URL is no folder
            continue
        for ignores_case in (False, True):
            dropped, kept, files = _longest_end(spelled, ends[ignores_case], _folded if ignores_case else str)
            if len(files) != 1:  # none, or nobody knows which: the same names may be in images/ and in masks/
                continue
            folders = "/".join(files[0].split("/")[:-kept])
            for prefix in (f"{folders}/" if folders else "", None):
                found[spelling, dropped, prefix, ignores_case] = files[0]
                found[spelling, None, prefix, ignores_case] = files[0]
    return found


def _longest_end(spelled: str, ends: dict[str, list[str]], fold: Callable[[str], str]) -> tuple[int, int, list[str]]:
    """Return how many leading folders have to go until files end like the rest; the length of the rest; the files."""
    parts = [fold(part) for part in spelled.split("/") if part not in ("", ".")]
    for dropped in range(len(parts)):
        files = ends.get("/".join(parts[dropped:]))
        if files:
            return dropped, len(parts) - dropped, files
    return len(parts), 0, []


def _folder_problem(folder: Path, error: OSError) -> Problem:
    return Problem(
        file=str(folder),
        where="the folder of images",
        field="folder",
        value=str(error.strerror),
        message="The folder cannot be listed.",
        fix="Allow this user to read it, or name another folder.",
    )


def _problem(index: CocoIndex, position: int, files: list[str], ends: dict[str, list[str]]) -> Problem:
    """Return the problem of a name without a file; it says what was tried."""
    name = index.file_names[position]
    spelled = {spell(name) for _, spell in SPELLINGS}
    doubtful = sorted({tuple(alike) for text in spelled if len(alike := _longest_end(text, ends, _folded)[2]) > 1})
    tried = list(dict.fromkeys(words for words, spell in SPELLINGS[1:] if spell(name) != name))
    if len([part for part in _with_slashes(name).split("/") if part]) > 1:
        tried.append("without leading folders")
    if any("/" in file for file in files):
        tried.append("in the subfolders" + (f" (the first {MOST_FILES:,} files)" if len(files) == MOST_FILES else ""))
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
