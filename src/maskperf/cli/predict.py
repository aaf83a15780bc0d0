"""`maskperf predict WEIGHTS SOURCES... --out DIR`: finds objects in images and videos, and draws them."""

import argparse
import time
from functools import partial
from typing import Annotated

from msgspec import Meta

from maskperf.cli.arguments import CommandParser, make_folder, require_existing, value_of
from maskperf.config import Count
from maskperf.errors import EXIT_DONE, ConfigError, DataError, Problem, StorageError
from maskperf.predict.sources import find_sources

USAGE = "WEIGHTS SOURCES... --out DIR [options]"
EXAMPLES = """SOURCES are images, videos, folders (with all below them) and patterns. Written into DIR:
  images   images/NAME.jpg with the objects drawn over it; of a video videos/NAME.mp4
  json     predictions.json in COCO's result format, and images.json with the images and categories of its ids
  csv      predictions.csv, one line an object
  masks    masks/NAME.png of 16 bits: 0, or the number of the object in the table; where two meet, the surer one
A file that cannot be used does not stop the others: it is named at the end, and the exit code is 3.
EXIF orientation is ignored, as in training: results belong to the pixels as they are stored.

examples, to copy and paste:
  # a folder of photographs
  maskperf predict runs/demo-1/model.safetensors photos/ --out found
  # only what the model is sure of, with masks
  maskperf predict model.safetensors 'photos/*.jpg' --out found --threshold 0.8 --write images,json,csv,masks
  # small objects in large images: in overlapping tiles of 1024 pixels, and in the whole image
  maskperf predict model.safetensors aerial.tif --out found --tile 1024
  # every tenth frame of a video (pip install 'maskperf[video]')
  maskperf predict model.safetensors street.mp4 --out found --every 10"""
KINDS = ("images", "json", "csv", "masks")
DEFAULT_KINDS = ("images", "json", "csv")
SMALLEST_TILE = 64


def add_options(parser: CommandParser) -> None:
    add = parser.add_argument
    parser.add_path("weights", "WEIGHTS", "model.safetensors of a run, or weights of another program")
    add("sources", metavar="SOURCES", nargs="+", help="images, videos, folders or patterns")
    parser.add_path("--out", "DIR", "where everything is written", required=True)
    score = value_of(Annotated[float, Meta(ge=0, le=1)])
    add("--threshold", metavar="S", type=score, default=0.5, help="leave out objects of lower scores (default: 0.5)")
    tile = value_of(Annotated[int, Meta(ge=SMALLEST_TILE)])
    add("--tile", metavar="PX", type=tile, default=0, help="images beyond this size in tiles of it as well")
    add("--write", metavar="KINDS", type=_kinds, default=DEFAULT_KINDS, help="default: images,json,csv")
    add("--every", metavar="N", type=value_of(Count), default=1, help="every N-th frame of a video (default: 1)")
    add("--recipe", metavar="NAME", help="default: the configuration stored in the weights, or else coco")
    add("--set", metavar="key=value", dest="pairs", action="append", default=[], help="change the configuration")
    add("--overwrite", action="store_true", help="write into a folder that is not empty")


def predict(options: argparse.Namespace) -> int:
    """Return 0; raise a DataError with all files that could not be used once the others are done."""
    require_existing("WEIGHTS", [options.weights])
    sources = find_sources(options.sources, without=options.out)
    if options.out.is_dir() and any(options.out.iterdir()) and not options.overwrite:
        raise StorageError(f"{options.out}: is not empty, and nothing was changed. Fix: choose another folder with "
                           "--out, or add --overwrite.")  # fmt: skip
    videos = [source for source in sources if source.is_video]
    images = [source for source in sources if not source.is_video]
    if videos and options.tile:
        raise ConfigError("--tile is for images. Fix: leave it out, or leave the videos out.")

    import torch

    from maskperf.engine.build import keep_memory
    from maskperf.machine.threads import threads_of_process
    from maskperf.predict.batch import predict_images, predict_video
    from maskperf.predict.extras import need
    from maskperf.predict.model import load
    from maskperf.predict.output import Output
    from maskperf.run.console import Progress

    if videos:
        need("av", purpose=f"{videos[0].path}: a video", install="'maskperf[video]'")
    model = load(options.weights, recipe=options.recipe, settings=options.pairs)
    model.check_threshold(options.threshold)
    threads = threads_of_process(model.config.system.threads)
    torch.set_num_threads(threads.count)
    keep_memory(model.device)
    make_folder(options.out, option="--out")
    notices = (*model.notices, threads.line())
    print("\n".join([*notices, f"threshold: objects of a score below {options.threshold:g} are left out"]), flush=True)
    output = Output(options.out, options.write, model.categories)
    problems: list[Problem] = []
    num_turned, start = 0, time.monotonic()
    try:
        with Progress("images") as progress:
            advance = partial(progress.advance, "predict")
            more = {"threshold": options.threshold, "tile": options.tile, "progress": advance}
            problems, num_turned = predict_images(model, images, output, **more)
            number = len(images) + 1
            for video in videos:
                try:
                    number += predict_video(
                        model, video, output, threshold=options.threshold, first_number=number, every=options.every
                    )
                except DataError as error:
                    problems += error.problems
    finally:
        written = output.finish()  # also where the rest was interrupted
    seconds = time.monotonic() - start
    num_images, num_objects = output.counts
    if num_turned:
        print(f"note: {num_turned} images have an EXIF orientation, which is ignored as in training")
    print(f"{num_objects} objects in {num_images} images, {num_images / seconds:.2f} images/s")
    print("\n".join(f"written: {path}" for path in written), flush=True)
    if problems:
        raise DataError(problems)
    return EXIT_DONE


def _kinds(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown kind {unknown[0]!r}; choose from {', '.join(KINDS)}")
    return names
