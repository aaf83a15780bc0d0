"""`maskperf doctor`: checks this machine and its data, with what each finding means for a run, and its fix."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.text import Text

from maskperf.cli.arguments import CommandParser
from maskperf.config import DataConfig, RunConfig
from maskperf.errors import EXIT_DONE, EXIT_USAGE, ConfigError, Problem, others_of_kind, problems_by_kind
from maskperf.machine import facts, torch_probe
from maskperf.machine.checks import examine
from maskperf.machine.facts import NOTE, OK, PROBLEM, Environment, Finding, ImageSpeed, TorchProbe
from maskperf.machine.probe import gather, is_writable_folder
from maskperf.machine.sources import run_program
from maskperf.overrides import key_of, validate, with_overrides
from maskperf.recipes import coco
from maskperf.run.console import Progress, make_console, make_table

USAGE = "[--data FOLDER] [--run-dir FOLDER] [--quick] [--all] [--json] [data.key=value ...]"
EXAMPLES = """examples, to copy and paste:
  # look at this machine, and measure its disk, processors and GPUs for some seconds
  maskperf doctor
  # with the folder of COCO 2017, all of its images decoded, and the folder of the runs
  maskperf doctor --data /data/coco --run-dir /scratch/runs
  # own data: annotations and images of one split or of both
  maskperf doctor data.train_json=/my/train.json data.train_images=/my/train
  # what is in order as well
  maskperf doctor --all
  # without measuring, for a program to read
  maskperf doctor --quick --json

ok: nothing to do. note: costs speed, or should be known. problem: a run would stop, or not do what it should.
exit code: 0 without a problem, 2 with one or more."""
PROBE_SECONDS = 60.0  # a cold CUDA library on a busy machine is slow; only a hang takes longer
RATE_SECONDS = 0.6
IMAGE_SIZE_HW = (480, 640)
STYLES = {OK: "green", NOTE: "yellow", PROBLEM: "bold red"}
NAME_OF_SPLIT = {"train": "training", "val": "validation"}


def add_options(parser: CommandParser) -> None:
    add = parser.add_argument
    parser.add_path("--data", "FOLDER", "data in the layout of COCO 2017: its annotations and images are checked too")
    parser.add_path("--run-dir", "FOLDER", "where runs will leave their files (default: runs)")
    add("--quick", action="store_true", help="measure nothing, do not load torch, read only heads and ends of images")
    add("--all", action="store_true", help="show what is in order, too; first come problems and notes")
    add("--json", action="store_true", help="print findings and facts as JSON")
    add("pairs", metavar="data.key=value", nargs="*", default=[], help="own data, and how it is read")


def doctor(options: argparse.Namespace) -> int:
    """Return 0, or EXIT_USAGE where the machine or the data has a problem."""
    config, splits = _data_to_check(options)
    run_dir = str(options.run_dir) if options.run_dir else None
    environment = gather(config, data=config.data.root if options.data else None, run_dir=run_dir)
    if not options.quick:
        if sys.stderr.isatty():
            print("measuring for about ten seconds; --quick leaves this out", file=sys.stderr, flush=True)
        environment = _measure(environment)
    data_findings, problems = examine_data(config.data, splits, decode=not options.quick)
    findings = examine(environment) + data_findings
    if options.json:
        names = ("machine", "disk_speed", "picture_speed", "torch_probe")
        found = {name: getattr(environment, name) for name in names}
        entries = {"findings": findings, **found, "data_errors": problems}
        print(json.dumps(entries, indent=2, allow_nan=False, default=asdict))
    else:
        show_findings(findings, make_console(), show_all=options.all)
    return EXIT_USAGE if any(finding.level == PROBLEM for finding in findings) else EXIT_DONE


def _data_to_check(options: argparse.Namespace) -> tuple[RunConfig, list[str]]:
    """Return the configuration of the benchmark with the named data, and its splits ("train", "val") to look at.

    Errors: ConfigError for a key outside of the section data, and for a value that cannot be used.
    """
    keys = {key_of(pair): pair for pair in options.pairs}
    for key, pair in keys.items():
        if not key.startswith("data."):
            raise ConfigError(f"{pair}: has no effect here. Fix: give keys of the section data only.")
        if key == "data.root":
            raise ConfigError(f"{pair}: cannot be set here. Fix: give --data instead.")
    config = validate(with_overrides(coco(), options.pairs))
    splits = [split for split in NAME_OF_SPLIT if {f"data.{split}_json", f"data.{split}_images"} & keys.keys()]
    if options.data:
        config = replace(config, data=replace(config.data, root=str(options.data)))
        files = {split: options.data / "annotations" / f"instances_{split}2017.json" for split in NAME_OF_SPLIT}
        splits = [split for split, file in files.items() if split in splits or file.is_file()]
    return config, splits


def show_findings(findings: Sequence[Finding], console: Console, *, show_all: bool) -> None:
    """Print problems, then notes, then, where all are wanted, what is in order; a table on a terminal, or lines."""
    shown = [entry for level in (PROBLEM, NOTE, OK) for entry in findings if entry.level == level]
    shown = [entry for entry in shown if show_all or entry.level != OK]
    if console.is_terminal and shown:
        table = make_table(console, ("", "what", "found", "what it means for a run"))
        for finding in shown:
            meaning = Text(finding.meaning)
            if finding.fix:
                meaning.append(f"\nfix: {finding.fix}", style="bold")
            table.add_row(Text(finding.level, STYLES[finding.level]), finding.name, finding.value, meaning)
        console.print(table)
    else:
        for finding in shown:
            console.out(f"{finding.level:<8} {finding.name}: {finding.value}; {finding.meaning}")
            if finding.fix:
                console.out(f"         fix: {finding.fix}")
    counts = {level: sum(finding.level == level for finding in findings) for level in (PROBLEM, NOTE, OK)}
    hint = "" if show_all or not counts[OK] else " (maskperf doctor --all shows them)"
    console.out(", ".join(f"{level}: {count}" for level, count in counts.items()) + hint)


def examine_data(data: DataConfig, splits: Sequence[str], *, decode: bool) -> tuple[list[Finding], list[Problem]]:
    """Read splits as a run does, look at or decode every image, and return the findings and each problem on its own."""
    found = [_examine_split(data, split, decode) for split in splits]
    return [entry for findings, _ in found for entry in findings], [entry for _, errors in found for entry in errors]


def _examine_split(data: DataConfig, split: str, decode: bool) -> tuple[list[Finding], list[Problem]]:
    from maskperf.data.coco.paths import split_paths
    from maskperf.data.images.files import open_split

    name = f"{NAME_OF_SPLIT[split]} data"
    json_path, folder = split_paths(data, split)
    missing = [path for path, exists in ((json_path, json_path.is_file()), (folder, folder.is_dir())) if not exists]
    if missing:
        fix = f"Set data.{split}_json to a file and data.{split}_images to a folder."
        return [facts.problem(name, f"{path}: not found", "a run would stop", fix) for path in missing], []
    with Progress("images", console=make_console(stderr=True)) as progress:
        advance = partial(progress.advance, f"{NAME_OF_SPLIT[split]} images") if decode else None
        index, error = open_split(json_path, folder, data, training=split == "train", decode=decode, progress=advance)
    note = partial(facts.note, name, meaning="a run reports it as well, and goes on")
    if error is not None:
        findings = [_finding_of(name, alike) for alike in problems_by_kind(error.problems)]
        return [*findings, *map(note, error.notices)], error.problems
    assert index is not None
    meaning = "every image was decoded" if decode else "head and end of every image were read; more without --quick"
    found = facts.ok(name, f"{json_path}: {len(index.image_ids):,} images in {folder}", meaning)
    return [*(note(f"{json_path}: {notice}") for notice in index.notices), found], []


def _finding_of(name: str, alike: Sequence[Problem]) -> Finding:
    """Return problems of one kind as one finding: the first in full, and where others are."""
    first = alike[0]
    value = f"{first.file}: {first.where}, field {first.field}, value {first.value}"
    return facts.problem(name, ", ".join(filter(None, (value, others_of_kind(alike)))), first.message, first.fix)


def _measure(environment: Environment) -> Environment:
    """Return the environment with everything that has to be tried; a part that fails is reported by its check."""
    probe = ask_torch([sys.executable, "-P", torch_probe.__file__])
    image_speed = _image_speed(environment.config.data)
    return replace(environment, torch_probe=probe, picture_speed=image_speed, **_disk_speed(environment))


def ask_torch(command: list[str]) -> TorchProbe:
    """Return what the probe printed, or its failure where it crashed or did not end."""
    answer = run_program(command, PROBE_SECONDS)
    if answer.output is None:
        return TorchProbe(failure=answer.complaint or f"{command[0]} cannot be started")
    return msgspec.json.decode(answer.output.strip().splitlines()[-1], type=TorchProbe)


def _image_speed(data: DataConfig) -> ImageSpeed:
    """Return how fast one thread prepares images, with the functions that a run uses."""
    import numpy as np
    import simplejpeg

    from maskperf.data.images.transforms import normalize_into, resize_and_mirror, target_size_hw
    from maskperf.machine.speed import make_jpeg, measure_rate

    jpeg = make_jpeg(np.random.default_rng(0), IMAGE_SIZE_HW)
    size_hw = target_size_hw(IMAGE_SIZE_HW, data.short_side, data.long_side)
    padded = np.empty((*size_hw, 3), np.float32)

    def decode() -> np.ndarray:
        return simplejpeg.decode_jpeg(jpeg, colorspace="BGR", fastdct=False, fastupsample=False)

    def prepare() -> None:
        normalize_into(padded, resize_and_mirror(decode(), size_hw, is_mirrored=True), data.pixel_means_bgr)

    return ImageSpeed(
        decode_per_second=measure_rate(decode, RATE_SECONDS),
        prepare_per_second=measure_rate(prepare, RATE_SECONDS),
        jpeg_kib=len(jpeg) / 1024,
    )


def _disk_speed(environment: Environment) -> dict[str, Any]:
    """Return the speed of the disk of the data, or why there is none, under the names of the environment."""
    from maskperf.machine.speed import measure_disk

    folder = Path(environment.machine.storage.path)
    if not is_writable_folder(folder):
        return {"disk_speed_missing": f"this user may not write at {folder}; a small file is needed there"}
    try:
        return {"disk_speed": measure_disk(folder, environment.config.data.loader_threads)}
    except OSError as error:
        return {"disk_speed_missing": f"{folder}: {error.strerror or error}"}
