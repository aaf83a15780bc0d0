"""`maskperf prepare coco`: gets COCO 2017 and the pretrained backbone, and puts them where a run expects them."""

import argparse
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from maskperf.cli.arguments import CommandParser, name_from
from maskperf.errors import EXIT_DONE, ConfigError
from maskperf.overrides import path_as_argument
from maskperf.recipes import coco

if TYPE_CHECKING:
    from maskperf.download.release import Release

ROOT, WEIGHTS = Path("data/coco"), Path("data/R-50.pkl")  # where the recipes coco look
USAGE = "coco [--root FOLDER] [--weights FILE] [--mirror URL] [--archives FOLDER] [options]"
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

What is complete is not done again, and a folder that is there already is not changed. Stop it with
Ctrl-C at any time: the same command goes on from there. The four files are known by the MD5 digests
that the benchmark names.

exit codes: 0 all is there, 2 an argument that cannot be used, 3 a file that cannot be had, is
another one or was changed, 7 too little space or a folder that cannot be written."""


def add_options(parser: CommandParser) -> None:
    add, add_path = parser.add_argument, parser.add_path
    add("dataset", metavar="coco", type=name_from(("coco",)), help="COCO 2017, the data set of the benchmark")
    add_path("--root", "FOLDER", f"where the data set goes (default: {ROOT})", default=ROOT)
    add_path("--weights", "FILE", f"where the pretrained backbone goes (default: {WEIGHTS})", default=WEIGHTS)
    add_path("--archives", "FOLDER", "take the files that are there; the others are downloaded")
    mirror_help = "download from this folder, or NAME=URL for one file; may be given again"
    add("--mirror", metavar="URL", action="append", default=[], help=mirror_help)
    add("--keep-archives", action="store_true", help="do not remove downloaded archives once they are unpacked")
    add("--no-images", action="store_true", help="only the annotations and the pretrained backbone")
    add("--verify", action="store_true", help="read and compare every file that is there already")


def prepare(options: argparse.Namespace) -> int:
    """Put everything where a run expects it."""
    if options.archives is not None and not options.archives.is_dir():
        raise ConfigError(f"--archives {options.archives}: there is no such folder. Fix: give the folder of the files.")
    from maskperf.download.download import Listener  # numpy is imported here
    from maskperf.download.prepare import Order
    from maskperf.download.prepare import prepare as prepare_release
    from maskperf.download.release import COCO_2017
    from maskperf.run.console import Progress

    order = Order(
        root=options.root,
        weights=options.weights,
        archives_folder=options.archives,
        keeps_archives=options.keep_archives,
        wants_images=not options.no_images,
        verifies=options.verify,
    )
    release = _with_mirrors(COCO_2017, options.mirror)
    with Progress("MB", scale=1e6) as progress:
        listener = Listener(say=progress.say, advance=progress.advance)
        prepare_release(release, order, listener=listener, check_backbone=_check_backbone)
    print(_next_step(options))
    return EXIT_DONE


def _with_mirrors(release: "Release", mirrors: list[str]) -> "Release":
    """Return the release with the user's addresses, each `URL` of all files or `NAME=URL` of one."""
    files = {file.name: file for file in (*(archive.file for archive in release.archives), release.weights)}
    for mirror in sorted(mirrors, key=lambda mirror: mirror.partition("=")[0] in files):  # that for one file wins
        name, _, url = mirror.partition("=")
        chosen = {name: url} if name in files else {each: f"{mirror.rstrip('/')}/{each}" for each in files}
        for each, address in chosen.items():
            _require_web_address(address)
            files[each] = replace(files[each], url=address)
    archives = tuple(replace(archive, file=files[archive.file.name]) for archive in release.archives)
    return replace(release, archives=archives, weights=files[release.weights.name])


def _require_web_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_sound = False
    if is_sound and "@" in parts.netloc:
        text = "--mirror: the address holds a user name or a password. Fix: leave it out, or use --archives."
        raise ConfigError(text)
    if not is_sound or not re.fullmatch("[!-~]+", url):
        fix = "give an address such as https://mirror.example.org/coco, or NAME=URL with the name of one of the files"
        raise ConfigError(f"--mirror {url!r}: is not an address of the web. Fix: {fix}.")


def _check_backbone(path: Path) -> None:
    """Raise an error where a run could not use the backbone; nothing of it is executed."""
    from maskperf.model.backbone_file import convert_pickle
    from maskperf.weights.open import empty_state

    convert_pickle(path, empty_state(coco().model))
    print(f"{path.name}: readable, with all arrays of the backbone", flush=True)


def _next_step(options: argparse.Namespace) -> str:
    if options.no_images:
        return f"{options.root}: the annotations are there. Next: the same command without --no-images."
    command = ["maskperf", "run", "coco"]
    command += [f"data.root={path_as_argument(options.root)}"] if options.root != ROOT else []
    command += [f"model.backbone_weights={path_as_argument(options.weights)}"] if options.weights != WEIGHTS else []
    return f"{options.root}: COCO 2017 is complete. Next: {shlex.join(command)}"
