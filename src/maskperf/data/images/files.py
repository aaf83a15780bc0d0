"""The one check of the images of an index before anything is done with them."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from maskperf.config import DataConfig
from maskperf.data.coco.document import counted
from maskperf.data.coco.file_names import resolve_file_names
from maskperf.data.coco.index import CocoIndex, read_coco
from maskperf.data.images.headers import check_headers
from maskperf.errors import DataError, Problem, joined_errors


def prepare_images(
    index: CocoIndex,
    data: DataConfig,
    *,
    decode: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[CocoIndex, tuple[str, ...], list[Problem]]:
    """Return the index with the file names resolved, notices, and the problems of its images.

    The head and the end of every file are read; `decode` decodes every image, whatever is remembered of it, and calls
    `progress(done, total)`. With `data.skip_bad` each image is decoded once, those with problems are left out, and no
    problems are returned.
    Errors: DataError where none is left then.
    """
    index, name_notices, missing = resolve_file_names(index)
    skip = [position for position, _ in missing]
    problems, header_notices = check_headers(index, data, skip=skip, decode=decode, progress=progress)
    found = sorted([*missing, *problems], key=lambda pair: pair[0])
    notices = (*name_notices, *header_notices)
    if not found or not data.skip_bad:
        return index, notices, [problem for _, problem in found]
    if len(found) == len(index.image_ids):
        at = {"file": str(index.json_path), "where": "all images", "field": "images", "value": f"{len(found)} images"}
        message = "Without the images that have errors (data.skip_bad=true), none is left."
        none_left = Problem(**at, message=message, fix="Correct the errors below, or set the folder of the images.")
        raise DataError([none_left, *(problem for _, problem in found)])
    return index.without([position for position, _ in found]), (*notices, *_left_out(index, found)), []


def open_split(
    json_path: Path,
    image_folder: Path,
    data: DataConfig,
    *,
    training: bool,
    is_test_set: bool = False,
    decode: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[CocoIndex | None, DataError | None]:
    """Read the annotations of a split and check its images; return its index and the error that stops a run.

    The index is None where the annotations cannot be read.
    """
    read = partial(read_coco, json_path, image_folder, training=training, is_test_set=is_test_set)
    try:
        index = read(data=data)
    except DataError as error:
        try:  # the images can be checked without the bad annotations
            _, _, problems = prepare_images(read(data=replace(data, skip_bad=True)), replace(data, skip_bad=False))
        except DataError:  # no image is left to check
            return None, error
        return None, joined_errors([error, DataError(problems)]) if problems else error
    try:
        index, notices, problems = prepare_images(index, data, decode=decode, progress=progress)
    except DataError as error:
        return None, error
    index = replace(index, notices=(*index.notices, *notices))
    if problems:
        return index, DataError(problems, notices=[f"{json_path}: {notice}" for notice in index.notices])
    return index, None


def _left_out(index: CocoIndex, found: list[tuple[int, Problem]]) -> list[str]:
    """Return one notice for each kind of problem, the first sentence of its message."""
    kinds: dict[str, list[str]] = {}
    for position, problem in found:
        kinds.setdefault(problem.message.partition(". ")[0].rstrip("."), []).append(index.shown_id(position))
    return [counted(f"images left out (data.skip_bad=true): {kind}", ids) for kind, ids in kinds.items()]
