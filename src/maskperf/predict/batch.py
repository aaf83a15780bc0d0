"""Predictions on many files: read ahead and written by threads while the model is at others; broken ones are named."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from maskperf.data.images.decode import exif_orientation
from maskperf.errors import DataError, Problem
from maskperf.predict.inputs import read_bgr
from maskperf.predict.model import Predictor
from maskperf.predict.output import Output
from maskperf.predict.sources import Source
from maskperf.predict.video import frames_of, video_writer

THREADS = 2  # that read, and as many that write
READ_AHEAD = 4  # images beyond those of the batch in work
WRITTEN_LATER = 8  # images that may wait to be drawn


def predict_images(
    model: Predictor,
    sources: list[Source],
    output: Output,
    *,
    threshold: float,
    tile: int,
    progress: Callable[[int, int], None],
) -> tuple[list[Problem], int]:
    """Predict on image files, numbered from 1, and return the problems of those that cannot be used.

    Also returns how many have an EXIF orientation, which is ignored.
    Errors: StorageError where results cannot be written.
    """
    problems: list[Problem] = []
    numbers: deque[int] = deque()  # of the images on their way through the model
    num_turned = 0
    with ThreadPoolExecutor(THREADS) as readers, ThreadPoolExecutor(THREADS) as writers:
        waiting: deque[Future[None]] = deque()

        def arrays() -> Iterator[np.ndarray]:
            nonlocal num_turned
            jobs = (readers.submit(_read, source, model) for source in sources)
            for number, future in enumerate(_ahead(jobs), start=1):
                try:
                    image, is_turned = future.result()
                except DataError as error:
                    problems.extend(error.problems)
                    continue
                num_turned += is_turned
                numbers.append(number)
                yield image

        for result in model.predict_arrays(arrays(), tile=tile):
            number = numbers.popleft()
            source, found = sources[number - 1], result.above(threshold)
            output.add(str(source.path), number, found)
            waiting.append(writers.submit(output.write_pictures, source.name, found))
            if len(waiting) > WRITTEN_LATER:
                waiting.popleft().result()
            progress(number, len(sources))
        for future in waiting:
            future.result()
    return problems, num_turned


def predict_video(
    model: Predictor, source: Source, output: Output, *, threshold: float, first_number: int, every: int
) -> int:
    """Predict on every so many frames of a video, numbered from `first_number`; return how many these are.

    Errors: ConfigError where PyAV is not installed; DataError for a file that is no video.
    """
    counted: deque[int] = deque()
    path = output.folder / "videos" / f"{source.name}.mp4"
    count = 0

    def arrays() -> Iterator[UInt8[np.ndarray, "_ _ 3"]]:
        for frame, image in frames_of(source.path, every):
            counted.append(frame)
            yield image

    with video_writer(path if "images" in output.kinds else None, source.path, every) as write:
        for result in model.predict_arrays(arrays()):
            frame, found = counted.popleft(), result.above(threshold)
            output.add(f"{source.path}#{frame}", first_number + count, found)
            count += 1
            output.write_pictures(f"{source.name}/{frame:06d}", found, is_frame=True)
            write(found)
    return count


def _read(source: Source, model: Predictor) -> tuple[UInt8[np.ndarray, "_ _ 3"], bool]:
    image = read_bgr(source.path, channels=None, max_pixels=model.config.data.max_image_pixels)
    with Image.open(source.path) as opened:
        return image, exif_orientation(opened) != 1


def _ahead(jobs: Iterable[Future]) -> Iterator[Future]:
    """Yield the jobs in order, with some of the next ones begun."""
    iterator = iter(jobs)
    begun = deque(islice(iterator, READ_AHEAD))
    while begun:
        yield begun.popleft()
        begun.extend(islice(iterator, 1))
