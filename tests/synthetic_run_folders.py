"""Run folders that no run ever wrote, with every file the report reads, for tests to break."""

import json
from dataclasses import replace
from pathlib import Path

import msgspec
from synthetic_logs import record, write_log

from maskperf.overrides import to_json_text
from maskperf.recipes import RECIPES
from maskperf.schema import StepLine

LOSSES = {"objectness": 0.1, "rpn_box": 0.05, "classification": 0.3, "box": 0.2, "mask": 0.4}
ENVIRONMENT = {
    "python": "3.13.1",
    "packages": {"maskperf": "0.1.0", "torch": "2.13.0"},
    "cpu_model": "Made Up 9000",
    "cpu_physical_cores": 64,
    "memory_gib": 512.0,
    "gpus": [{"name": "Made Up GPU", "memory_gib": 80.0}] * 8,
    "processes": 8,
    "command_line": "python -m maskperf run coco_batch_96",
}
PICTURE = {"kind": "best", "title": "a.jpg", "caption": "score 0.90", "jpeg_base64": "/9j/"}


def write_run_folder(folder, *, recipe="coco_batch_96", steps=40, minutes=19.3, status="success", **log_choices):
    """Return `folder` with all files of a run; `log_choices` go to write_log."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = replace(RECIPES[recipe](), seed=4_000_000_007)
    (folder / "config.json").write_text(to_json_text(config))
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    (folder / "pictures.json").write_text(json.dumps([PICTURE]))
    targets = (config.evaluation.box_target, config.evaluation.mask_target)
    choices = {"recipe": recipe, "targets": targets, "minutes": minutes, "status": status, "division": "open"}
    write_log(folder / "mlperf.log", **{**choices, **log_choices})
    write_metrics(folder / "metrics.jsonl", steps)
    write_results(folder, status=status, minutes=minutes, targets=targets)
    return folder


def write_metrics(path, steps, **changes):
    """Write lines of steps; `changes` are put into the losses of the last one."""
    with open(path, "ab") as stream:
        for step in range(1, steps + 1):
            losses = {**LOSSES, "mask": 0.4 + step / 1000, **(changes if step == steps else {})}
            speeds = {"learning_rate": 0.12, "images_per_second": 100.0 + step, "memory_gib": 3.5}
            line = StepLine(step=step, epoch=1, **losses, total=sum(losses.values()), **speeds)
            stream.write(msgspec.json.encode(line) + b"\n")


def write_results(folder, *, status="success", minutes=19.3, targets=(0.377, 0.339), **changes):
    """Write results.json as a run would have."""
    seconds = 60 * minutes
    results = {
        "status": status,
        "reason": "" if status == "success" else "the steps of the recipe are used up and a target is not met",
        "epochs": 14,
        "seconds": seconds,
        "box_ap": 0.3785,
        "mask_ap": 0.342,
        "box_target": targets[0],
        "mask_target": targets[1],
        "engine": "fast",
        "box_ap_per_category": {"cat": 0.5, "dog": None},
        "mask_ap_per_category": {"cat": 0.4, "dog": None},
        "time_account": {"forward": 0.5 * seconds, "backward": 0.3 * seconds, "other": 0.2 * seconds},
        "peak_memory_gib": {"process": 4.25, "device": None},
        "guard": {"steps_checked": 40, "events": []},
        **changes,
    }
    (Path(folder) / "results.json").write_text(json.dumps(results))


def append_record(path, key, value, minutes, **metadata):
    """Add a line to a log, `minutes` after the start of `write_log`."""
    with path.open("a") as stream:
        stream.write(f":::MLLOG {json.dumps(record(key, value, minutes, **metadata))}\n")
