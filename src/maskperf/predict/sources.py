"""Which files the arguments of a prediction name: files, folders and patterns. Nothing heavy is imported."""

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from maskperf.errors import ConfigError

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
VIDEO_ENDINGS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


@dataclass(frozen=True)
class Source:
    """One file, and the name without an ending under which its results are written."""

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_ENDINGS


def refuse_url(text: str) -> None:
    """Raise a ConfigError for the address of something on the network."""
    if URL.match(text):
        raise ConfigError(f"{text}: nothing is downloaded. Fix: fetch the image and give the file.")


def find_sources(arguments: Sequence[str], *, without: Path) -> list[Source]:
    """Return the files that files, folders (with all below them) and patterns name, each once.

    In a folder, images and videos are taken by the ending of their name; what is in the folder `without` is not.
    Errors: ConfigError for a URL, for a path that does not exist, or where nothing is found.
    """
    found: dict[Path, str] = {}
    for argument in arguments:
        refuse_url(argument)
        path = Path(argument).expanduser()
        if path.is_dir():
            inside = [entry for entry in sorted(path.rglob("*")) if _is_known(entry) and without not in entry.parents]
            if not inside:
                raise ConfigError(f"{path}: the folder has no image. Fix: name files of {', '.join(IMAGE_ENDINGS)}.")
            named = [(entry, str(entry.relative_to(path))) for entry in inside]
        elif path.exists():
            named = [(path, path.name)]
        else:
            matches = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(argument) else []
            named = [(Path(match), Path(match).name) for match in matches if Path(match).is_file()]
            if not named:
                raise ConfigError(f"{path}: does not exist. Fix: name files, folders or a pattern such as 'in/*.jpg'.")
        for entry, name in named:
            found.setdefault(entry, name)
    return _with_own_names(found)


def _is_known(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_ENDINGS + VIDEO_ENDINGS and path.is_file()


def _with_own_names(found: dict[Path, str]) -> list[Source]:
    """Return each file with a name that no other has: that without its ending, with it, or with a number."""
    taken: set[str] = set()
    sources = []
    for path, name in found.items():
        stem = name.removesuffix(path.suffix) or name
        choices = (stem, name.replace(".", "-"), *(f"{stem}-{number}" for number in range(2, len(found) + 2)))
        chosen = next(choice for choice in choices if choice not in taken)
        taken.add(chosen)
        sources.append(Source(path, chosen))
    return sources
