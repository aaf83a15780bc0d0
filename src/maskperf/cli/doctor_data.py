"""What the doctor finds in a data set: annotations read as a run reads them, and every image looked at or decoded."""

import sys
import time
from collections.abc import Callable

from maskperf.config import DataConfig
from maskperf.errors import MAX_PROBLEMS_SHOWN, Problem, problems_by_kind
from maskperf.machine.facts import Finding, note, ok, problem

SPLIT_WORDS = {"train": "training", "val": "validation"}
PROGRESS_SECONDS = 10.0
LIVE_PROGRESS_SECONDS = 0.5


def examine_data(data: DataConfig, splits: list[str], *, decode: bool) -> tuple[list[Finding], list[Problem]]:
    """Return the findings about these splits ("train", "val"), and each problem on its own."""
    findings, problems = [], []
    for split in splits:
        some_findings, some_problems = _examine_split(data, split, decode)
        findings += some_findings
        problems += some_problems
    return findings, problems


def _examine_split(data: DataConfig, split: str, decode: bool) -> tuple[list[Finding], list[Problem]]:
    from maskperf.data.coco.index import split_paths
    from maskperf.data.images.files import open_split

    name = f"{SPLIT_WORDS[split]} data"
    json_path, folder = split_paths(data, split)
    absent = [path for path, is_there in ((json_path, json_path.is_file()), (folder, folder.is_dir())) if not is_there]
    if absent:
        fix = f"Set data.{split}_json to a file and data.{split}_images to a folder."
        return [problem(name, f"{path}: not found", "a run would stop", fix) for path in absent], []
    progress = progress_line(f"{SPLIT_WORDS[split]} images") if decode else None
    index, error = open_split(json_path, folder, data, training=split == "train", decode=decode, progress=progress)
    problems = error.problems if error is not None else []
    findings = [_finding_of(name, alike) for alike in problems_by_kind(problems)]
    notices = error.notices if error is not None else [f"{json_path}: {notice}" for notice in index.notices]
    findings += [note(name, notice, "a run says so as well, and goes on") for notice in notices]
    if not problems:
        meaning = "every image was decoded" if decode else "head and end of every image were read; more without --quick"
        findings.append(ok(name, f"{json_path}: {len(index.image_ids):,} images in {folder}", meaning))
    return findings, problems


def _finding_of(name: str, alike: list[Problem]) -> Finding:
    """Return problems of one kind as one finding: the first in full, and where others are."""
    first = alike[0]
    value = f"{first.file}: {first.where}, field {first.field}, value {first.value}"
    if len(alike) > 1:
        others = ", ".join(problem.where for problem in alike[1 : MAX_PROBLEMS_SHOWN + 1])
        end = ", ..." if len(alike) > MAX_PROBLEMS_SHOWN + 1 else ""
        value += f", and {len(alike) - 1} more of this kind ({others}{end})"
    return problem(name, value, first.message, first.fix)


def progress_line(what: str) -> Callable[[int, int], None]:
    """Return a function that tells a person how far the work is: how many are done, of how many."""
    start = last = time.monotonic()
    is_live = sys.stderr.isatty()

    def tell(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < (LIVE_PROGRESS_SECONDS if is_live else PROGRESS_SECONDS) and (done < total or not is_live):
            return
        last = now
        text = f"{what}: {done:,} of {total:,} decoded, {done / max(now - start, 1e-9):.0f} images/s"
        end = "\n" if done == total or not is_live else "\r"
        print(text, end=end, file=sys.stderr, flush=True)

    return tell
