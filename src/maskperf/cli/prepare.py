"""`maskperf prepare coco`: gets COCO 2017 and the pretrained backbone, and puts them where a run expects them."""

import argparse
import re
import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from maskperf.cli.words import WordParser, asks_for_help, path_word, read_words
from maskperf.errors import EXIT_DONE, ConfigError
from maskperf.overrides import word_of_path
from maskperf.recipes import coco

if TYPE_CHECKING:
    from maskperf.download.release import Release

ROOT, WEIGHTS = "data/coco", "data/R-50.pkl"  # where the recipes coco look
USAGE = "maskperf prepare coco [--root FOLDER] [--weights FILE] [--mirror URL] [--archives FOLDER] [options]"
EXAMPLES = """examples, to copy and paste:
  # 20 GB of downloads; about 42 GB of free space are needed, of which 21 GB stay in use
  maskperf prepare coco
  # somewhere else
  maskperf prepare coco --root /data/coco --weights /data/R-50.pkl
  # train2017.zip, val2017.zip, annotations_trainval2017.zip and R-50.pkl are at hand already, or some of them
  maskperf prepare coco --archives ~/Downloads
  # from another server, which has all of them in one folder; or one file only
  maskperf prepare coco --mirror https://mirror.example.org/coco
  maskperf prepare coco --mirror train2017.zip=https://mirror.example.org/images/train2017.zip
  # read all of it again and compare every file
  maskperf prepare coco --verify

What is complete is not done again, and a folder that is there already is not changed. Stop it with Ctrl-C at any time:
the same command goes on from there. The four files are known by the MD5 digests that the benchmark names.

exit codes: 0 all is there, 2 a word that cannot be used, 3 a file that cannot be had, is another one or was changed,
7 too little space or a folder that cannot be written."""
PLAIN_SECONDS = 10.0  # between two lines in a file or a pipe
LIVING_SECONDS = 0.2


def prepare(arguments: list[str]) -> int:
    """Return the exit code when everything is where a run expects it."""
    parser = _make_parser()
    if not arguments or asks_for_help(arguments):
        print(parser.format_help(), end="")
        return EXIT_DONE
    choices = read_words(parser, arguments)
    folder = Path(choices.archives) if choices.archives is not None else None
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"--archives {choices.archives}: there is no such folder. Fix: give the folder of the files.")
    from maskperf.download.prepare import Order  # numpy is imported here
    from maskperf.download.prepare import prepare as prepare_release
    from maskperf.download.release import COCO_2017

    order = Order(
        root=Path(choices.root),
        weights=Path(choices.weights),
        archives_folder=folder,
        keeps_archives=choices.keep_archives,
        wants_images=not choices.no_images,
        verifies=choices.verify,
    )
    release = _with_mirrors(COCO_2017, choices.mirror)
    with ProgressLine() as line:
        prepare_release(release, order, listener=line.listener(), check_backbone=_check_backbone)
    print(_next_step(order))
    return EXIT_DONE


def _make_parser() -> WordParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = WordParser(
        "maskperf prepare", usage=USAGE, epilog=EXAMPLES, formatter_class=formatter, add_help=False, allow_abbrev=False
    )
    add = parser.add_argument
    add("dataset", metavar="coco", choices=("coco",), help="COCO 2017, the data set of the benchmark")
    add("--root", metavar="FOLDER", type=path_word, default=ROOT, help=f"where the data set goes (default: {ROOT})")
    add(
        "--weights",
        metavar="FILE",
        type=path_word,
        default=WEIGHTS,
        help=f"where the pretrained backbone goes (default: {WEIGHTS})",
    )
    add("--archives", metavar="FOLDER", type=path_word, help="take the files that are there; the others are downloaded")
    mirror_help = "download from this folder, or NAME=URL for one file; may be given again"
    add("--mirror", metavar="URL", action="append", default=[], help=mirror_help)
    add("--keep-archives", action="store_true", help="do not remove downloaded archives once they are unpacked")
    add("--no-images", action="store_true", help="only the annotations and the pretrained backbone")
    add("--verify", action="store_true", help="read and compare every file that is there already")
    return parser


def _with_mirrors(release: "Release", words: list[str]) -> "Release":
    """Return the release with the addresses of the user. Errors: ConfigError for one that cannot be used."""
    files = {archive.file.name: archive.file for archive in release.archives}
    files[release.weights.name] = release.weights
    for word in sorted(words, key=lambda word: word.partition("=")[0] in files):  # the one for one file wins
        name, _, url = word.partition("=")
        chosen = {name: url} if name in files else {each: f"{word.rstrip('/')}/{each}" for each in files}
        for each, address in chosen.items():
            _demand_web_address(address)
            files[each] = replace(files[each], url=address)
    archives = tuple(replace(archive, file=files[archive.file.name]) for archive in release.archives)
    return replace(release, archives=archives, weights=files[release.weights.name])


def _demand_web_address(url: str) -> None:
    fix = "Fix: give an address such as https://mirror.example.org/coco, or NAME=URL with the name of one of the files."
    try:
        parts = urlsplit(url)
        is_sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_sound = False
    if is_sound and "@" in parts.netloc:
        raise ConfigError(
            "--mirror: the address holds a user name or a password. Fix: leave it out, or use --archives."
        )
    if not is_sound or not re.fullmatch("[!-~]+", url):
        raise ConfigError(f"--mirror {url!r}: is not an address of the web. {fix}")


def _check_backbone(path: Path) -> None:
    """Return nothing when a run will be able to use the backbone; nothing of it is executed."""
    import torch

    from maskperf.model.backbone_file import convert_names, read_detectron_pickle
    from maskperf.model.mask_rcnn import MaskRcnn

    with torch.device("meta"):  # only names and shapes are needed
        state = MaskRcnn(coco().model).state_dict()
    convert_names(read_detectron_pickle(path), state, file=str(path))
    print(f"{path.name}: readable, with all arrays of the backbone", flush=True)


def _next_step(order: Any) -> str:
    if not order.wants_images:
        return f"{order.root}: the annotations are there. Next: the same command without --no-images."
    words = ["maskperf", "run", "coco"]
    words += [f"data.root={word_of_path(order.root)}"] if str(order.root) != ROOT else []
    words += [f"model.backbone_weights={word_of_path(order.weights)}"] if str(order.weights) != WEIGHTS else []
    return f"{order.root}: COCO 2017 is complete. Next: {shlex.join(words)}"


class ProgressLine:
    """Shows sentences, and how far the work is: one living line in a terminal, plain lines in a file or a pipe."""

    def __init__(self, console: Any = None, clock: Callable[[], float] = time.monotonic):
        from rich.console import Console

        self._console = console or Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
        self._clock = clock
        self._live: Any = None
        self._what = ""
        self._start = (0.0, 0)  # time and bytes when this work was first heard of
        self._shown_at = 0.0

    def listener(self) -> Any:
        from maskperf.download.download import Listener

        return Listener(say=self.say, advance=self.advance)

    def say(self, text: str) -> None:
        """Return nothing; the sentence stays, above the living line."""
        self._stop_living()
        self._console.print(text)
        self._what = ""

    def advance(self, what: str, done: int, total: int) -> None:
        """Return nothing; `total` 0 means that nobody knows."""
        now = self._clock()
        if what != self._what or done < self._start[1]:
            self._what, self._start, self._shown_at = what, (now, done), now
        is_living = self._console.is_terminal and not self._console.is_dumb_terminal
        if now - self._shown_at < (LIVING_SECONDS if is_living else PLAIN_SECONDS):
            return
        self._shown_at = now
        text = progress_text(what, done, total, rate=(done - self._start[1]) / (now - self._start[0]))
        if is_living:
            self._show_living(text)
        else:
            self._console.print(text)

    def _show_living(self, text: str) -> None:
        from rich.live import Live
        from rich.text import Text

        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)

    def _stop_living(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_living()


def progress_text(what: str, done: int, total: int, *, rate: float) -> str:
    """Return a line such as "val2017.zip  120.0 of 800.0 MB  15%  10.0 MB/s  1:08 left"; `rate` is in bytes/s."""
    parts = [what, f"{done / 1e6:.1f} of {total / 1e6:.1f} MB" if total else f"{done / 1e6:.1f} MB"]
    parts += [f"{done / total:.0%}"] if total else []
    parts.append(f"{rate / 1e6:.1f} MB/s")
    if total and rate > 0:
        minutes, seconds = divmod(round((total - done) / rate), 60)
        hours, minutes = divmod(minutes, 60)
        parts.append(f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left")
    return "  ".join(parts)
