"""Videos, by PyAV where that is installed: frames to predict on, and a video of the drawn ones."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from maskperf.errors import DataError, Problem
from maskperf.predict.extras import need
from maskperf.predict.result import Prediction

CODECS = ("libx264", "mpeg4")  # the first one that this PyAV can write
USUAL_RATE = Fraction(25)  # frames a second, where a file does not say
BITS_PER_PIXEL = 0.2


def frames_of(path: Path, every: int) -> Iterator[tuple[int, UInt8[np.ndarray, "_ _ 3"]]]:
    """Yield number, from 0, and image (B, G, R) of every so many frames.

    Errors: ConfigError where PyAV is not installed; DataError for a file that it cannot read, also at its end.
    """
    av = _av(path)
    try:
        with av.open(str(path)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number % every == 0:
                    yield number, np.ascontiguousarray(frame.to_ndarray(format="bgr24"))
    except (av.FFmpegError, IndexError) as error:
        message = "The file is no video that PyAV can read, or it is cut short."
        at = {"file": str(path), "where": "whole file", "field": "frames", "value": str(error).split("\n")[0]}
        raise DataError([Problem(**at, message=message, fix="Export it again, or leave it out.")]) from error


@contextmanager
def video_writer(path: Path | None, source: Path, every: int) -> Iterator[Callable[[Prediction], None]]:
    """Inside the `with` block, the function writes a drawn frame to `path`, or to nowhere where that is None."""
    if path is None:
        yield lambda found: None
        return
    av = _av(source)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), mode="w") as container:
        codec = next(name for name in CODECS if name in av.codecs_available)
        streams: list = []

        def write(found: Prediction) -> None:
            drawn = np.asarray(found.draw(scale=1))
            height, width = (side // 2 * 2 for side in drawn.shape[:2])  # codecs want even sides
            pixels = np.ascontiguousarray(drawn[:height, :width])
            if not streams:
                rate = _rate(av, source) / every
                stream = container.add_stream(codec, rate=rate)
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.bit_rate = int(height * width * float(rate) * BITS_PER_PIXEL)
                streams.append(stream)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(streams[0].encode(frame))

        yield write
        for stream in streams:
            container.mux(stream.encode())


def _rate(av: Any, path: Path) -> Fraction:
    with av.open(str(path)) as container:
        return container.streams.video[0].average_rate or USUAL_RATE


def _av(path: Path) -> Any:
    return need("av", purpose=f"{path}: a video", install="'maskperf[video]'")
