"""`maskperf doctor`: looks at this machine, says what each finding means for a run, and how to fix it."""

import argparse
import json
import sys
from dataclasses import asdict, replace
from io import TextIOBase
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from maskperf.cli.doctor_data import examine_data
from maskperf.cli.words import WordParser, asks_for_help, path_word, read_words
from maskperf.config import DataConfig, RunConfig
from maskperf.errors import EXIT_DONE, EXIT_USAGE, ConfigError
from maskperf.machine.checks import examine
from maskperf.machine.facts import NOTE, OK, PROBLEM, Environment, Finding, PictureSpeed, TorchProbe
from maskperf.machine.probe import gather, is_writable_folder
from maskperf.machine.sources import run_program
from maskperf.overrides import validate, with_overrides
from maskperf.recipes import coco

USAGE = "maskperf doctor [--data FOLDER] [--run-dir FOLDER] [--quick] [--json] [data.key=value ...]"
EXAMPLES = """examples, to copy and paste:
  # look at this machine, and measure its disk, processors and GPUs for some seconds
  maskperf doctor
  # with the folder of COCO 2017, all of its images decoded, and the place of the runs
  maskperf doctor --data /data/coco --run-dir /scratch/runs
  # own data: annotations and images of one split or of both
  maskperf doctor data.train_json=/my/train.json data.train_images=/my/train
  # without measuring, for a program to read
  maskperf doctor --quick --json

ok: nothing to do. note: costs speed, or should be known. problem: a run would stop, or not do what it should.
exit code: 0 without a problem, 2 with one or more."""
PROBE_SECONDS = 60.0  # a cold CUDA library on a busy machine is slow; only a hang takes longer
RATE_SECONDS = 0.6
PICTURE_SIZE_HW = (480, 640)
STYLES = {OK: "green", NOTE: "yellow", PROBLEM: "bold red"}


def doctor(arguments: list[str]) -> int:
    """Return the exit code: 0, or EXIT_USAGE where the machine has a problem."""
    parser = _make_parser()
    if asks_for_help(arguments):
        print(parser.format_help(), end="")
        return EXIT_DONE
    choices = read_words(parser, arguments)
    if choices.data is not None and not choices.data:
        raise ConfigError("--data needs the name of a folder. Fix: --data /data/coco")
    config = _config_of(choices)
    situation = gather(config, data=choices.data, run_dir=choices.run_dir)
    if not choices.quick:
        if sys.stderr.isatty():
            print("measuring for about ten seconds; --quick leaves this out", file=sys.stderr, flush=True)
        situation = _measure(situation)
    data_findings, problems = examine_data(config.data, _splits_of(choices, config.data), decode=not choices.quick)
    findings = examine(situation) + data_findings
    if choices.json:
        entries = {**_entries(situation, findings), "data_errors": [asdict(problem) for problem in problems]}
        print(json.dumps(entries, indent=2, allow_nan=False))
    else:
        show_findings(findings, sys.stdout)
    return EXIT_USAGE if any(finding.level == PROBLEM for finding in findings) else EXIT_DONE


def _make_parser() -> WordParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = WordParser(
        "maskperf doctor", usage=USAGE, epilog=EXAMPLES, formatter_class=formatter, add_help=False, allow_abbrev=False
    )
    add = parser.add_argument
    data_help = "data in the layout of COCO 2017: its annotations and images are checked too"
    add("--data", metavar="FOLDER", type=path_word, help=data_help)
    add("--run-dir", metavar="FOLDER", type=path_word, help="where runs will leave their files (default: runs)")
    add("--quick", action="store_true", help="measure nothing, do not load torch, read only heads and ends of images")
    add("--json", action="store_true", help="print findings and facts as JSON")
    add("pairs", metavar="data.key=value", nargs="*", default=[], help="own data, and how it is read")
    return parser


def _config_of(choices: argparse.Namespace) -> RunConfig:
    """Return the configuration of the benchmark with the data that the words name.

    Errors: ConfigError for a key outside of the section data, and for a value that cannot be used.
    """
    for pair in choices.pairs:
        key = pair.partition("=")[0].strip()
        if not key.startswith("data."):
            raise ConfigError(f"{pair}: has no effect here. Fix: give keys of the section data only.")
        if key == "data.root":
            raise ConfigError(f"{pair}: cannot be set here. Fix: give --data instead.")
    config = with_overrides(coco(), choices.pairs)
    validate(config)
    return replace(config, data=replace(config.data, root=choices.data)) if choices.data else config


def _splits_of(choices: argparse.Namespace, data: DataConfig) -> list[str]:
    """Return the splits whose data are looked at: those in the folder of --data, and those named one by one."""
    keys = {pair.partition("=")[0].strip() for pair in choices.pairs}
    return [
        split
        for split in ("train", "val")
        if keys & {f"data.{split}_json", f"data.{split}_images"}
        or (choices.data and (Path(data.root) / "annotations" / f"instances_{split}2017.json").is_file())
    ]


def show_findings(findings: list[Finding], stream: TextIOBase) -> None:
    """Write a table to a terminal, and lines without colours elsewhere."""
    console = Console(file=stream, markup=False, highlight=False, emoji=False)
    if console.is_terminal:
        console.print(_table(findings))
    else:
        for finding in findings:
            stream.write(line_of(finding) + "\n")
    counts = [(level, sum(finding.level == level for finding in findings)) for level in (PROBLEM, NOTE, OK)]
    stream.write(", ".join(f"{level}: {count}" for level, count in counts) + "\n")
    stream.flush()


def line_of(finding: Finding) -> str:
    """Return a finding as text: level, name, value and meaning; the fix stands on a line of its own."""
    text = f"{finding.level:<8} {finding.name}: {finding.value}; {finding.meaning}"
    return f"{text}\n         fix: {finding.fix}" if finding.fix else text


def _table(findings: list[Finding]) -> Table:
    table = Table("", "what", "found", "what it means for a run", box=box.SIMPLE_HEAD)
    for finding in findings:
        meaning = Text(finding.meaning)
        if finding.fix:
            meaning.append(f"\nmend: {finding.fix}", style="bold")
        table.add_row(Text(finding.level, STYLES[finding.level]), Text(finding.name), Text(finding.value), meaning)
    return table


def _entries(situation: Environment, findings: list[Finding]) -> dict[str, object]:
    """Return what --json prints; the configuration and the pins of the checkout are left out."""
    facts = {
        name: asdict(value) if value is not None else None
        for name, value in (
            ("machine", situation.machine),
            ("disk_speed", situation.disk_speed),
            ("picture_speed", situation.picture_speed),
            ("torch_probe", situation.torch_probe),
        )
    }
    return {"findings": [asdict(finding) for finding in findings], **facts}


def _measure(situation: Environment) -> Environment:
    """Return the situation with everything that has to be tried; a part that fails says so in its check."""
    probe = ask_torch([sys.executable, "-P", str(Path(__file__).parents[1] / "machine" / "torch_probe.py")])
    situation = replace(situation, torch_probe=probe, picture_speed=_picture_speed(situation))
    return _with_disk_speed(situation)


def ask_torch(command: list[str]) -> TorchProbe:
    """Return what the probe printed; a failure in words where it crashed or did not end."""
    answer = run_program(command, PROBE_SECONDS)
    if answer.output is None:
        return TorchProbe(failure=answer.complaint or f"{command[0]} cannot be started")
    found = json.loads(answer.output.strip().splitlines()[-1])
    return TorchProbe(
        gpu_names=tuple(found["gpu_names"]),
        gpu_gflops=tuple(found["gpu_gflops"]),
        cpu_gflops=found["cpu_gflops"],
        cpu_threads=found["cpu_threads"],
    )


def _picture_speed(situation: Environment) -> PictureSpeed:
    """Return how fast one thread makes pictures ready, with the functions that a run uses."""
    import numpy as np
    import simplejpeg

    from maskperf.data.images.transforms import normalize_into, resize_and_mirror, target_size_hw
    from maskperf.machine.speed import make_jpeg, measure_rate

    data, jpeg = situation.config.data, make_jpeg()
    size_hw = target_size_hw(PICTURE_SIZE_HW, data.short_side, data.long_side)
    canvas = np.empty((*size_hw, 3), np.float32)

    def decode():
        return simplejpeg.decode_jpeg(jpeg, colorspace="BGR", fastdct=False, fastupsample=False)

    def prepare():
        normalize_into(canvas, resize_and_mirror(decode(), size_hw, is_mirrored=True), data.pixel_means_bgr)

    return PictureSpeed(
        decode_per_second=measure_rate(decode, RATE_SECONDS),
        prepare_per_second=measure_rate(prepare, RATE_SECONDS),
        jpeg_kib=len(jpeg) / 1024,
    )


def _with_disk_speed(situation: Environment) -> Environment:
    """Return the situation with the speed of the disk of the data, or why there is none."""
    from maskperf.machine.speed import measure_disk

    place = Path(situation.machine.storage.path)
    if not is_writable_folder(place):
        return replace(
            situation, disk_speed_missing=f"this user may not write at {place}; a small file is needed there"
        )
    try:
        speed = measure_disk(place, situation.config.data.loader_threads)
    except OSError as error:
        return replace(situation, disk_speed_missing=f"{place}: {error.strerror or error}")
    return replace(situation, disk_speed=speed)
