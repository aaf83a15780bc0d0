"""Complete MLPerf logs, series and submission packages that no machine ever ran, for tests to break.

`write_log(path)` writes a closed run that every official checker of ruleset 3.1.0 accepts. A key of the log given as
`key=value` changes the value of its records, `key=LEFT_OUT` leaves them out; see `log_records` for the rest.
"""

import json
import math
from pathlib import Path

from maskperf.mlperf.system_description import FIELDS

LEFT_OUT = object()
TRAIN_IMAGES = 117266
START_MS = 1_700_000_000_000
SEED = 4_000_000_007  # more than 32-bit floats can hold
FILE = "/workspace/maskperf/mlperf/log.py"
LOSS_NAMES = ("objectness", "rpn_box_reg", "classifier", "box_reg", "mask")
LOSSES = zip((0.02, 0.03, 0.15, 0.12, 0.14), (0.2, 0.1, 0.5, 0.1, 0.5), strict=True)  # at the end; more at the start
LOSSES = dict(zip(LOSS_NAMES, LOSSES, strict=True))
KINDS = {"start": "INTERVAL_START", "stop": "INTERVAL_END"}


def learning_rate(batch_size):
    """Return the multiple of 0.02 nearest to the reference's rate; 0.01 for the batch of 8."""
    return 0.01 if batch_size < 16 else 0.02 * max(1, math.floor(batch_size / 16 + 0.5))


def record(key, value, minutes, **metadata):
    """Return one record as a dictionary, `minutes` after an arbitrary start."""
    kind = KINDS.get(key.rpartition("_")[2], "POINT_IN_TIME")
    line = sum(map(ord, key))  # one line of the source for each key, always the same
    about = {"file": FILE, "lineno": line, **metadata}
    time_ms = START_MS + round(minutes * 60_000)
    return {"namespace": "", "time_ms": time_ms, "event_type": kind, "key": key, "value": value, "metadata": about}


def log_records(
    *,
    batch_size=96,
    epochs=14,
    minutes=19.3,
    seed=SEED,
    status="success",
    division="closed",
    init_minutes=2.0,
    recipe=None,
    targets=None,
    tracked_every=0,
    **changes,
):
    """Return the records of one log; `minutes` are from run_start to run_stop.

    tracked_every: steps between lines tracked_stats, 0 for none. recipe, targets (box, mask): maskperf's own keys.
    """
    head = {
        "submission_benchmark": "maskrcnn",
        "submission_org": "Made Up",
        "submission_division": division,
        "submission_status": "onprem",
        "submission_platform": "synthetic_system",
        "maskperf_recipe": recipe or LEFT_OUT,
        "maskperf_targets": LEFT_OUT if targets is None else dict(zip(("BBOX", "SEGM"), targets, strict=True)),
        "cache_clear": True,
    }
    init = {
        "init_start": None,
        "seed": seed,
        "global_batch_size": batch_size,
        "num_image_candidates": 6000 if batch_size > 8 else 1000,
        "gradient_accumulation_steps": 1,
        "min_image_size": 800,
        "max_image_size": 1333,
        "opt_name": "sgd_with_momentum",
        "opt_learning_rate_decay_factor": 0.1,
        "opt_base_learning_rate": learning_rate(batch_size),
        "opt_learning_rate_decay_steps": [1152000 // batch_size, 1536000 // batch_size],
        "opt_learning_rate_warmup_steps": 625,
        "opt_learning_rate_warmup_factor": learning_rate(batch_size) / 625,
    }
    running = {"init_stop": None, "run_start": None, "train_samples": TRAIN_IMAGES, "eval_samples": 5000}
    start = 0.01 + init_minutes
    groups = ((0.0, head), (0.01, init), (start, running))
    records = [record(key, value, time) for time, values in groups for key, value in values.items()]
    for epoch in range(1, epochs + 1):
        records += _epoch(epoch, epochs, start, minutes, status, batch_size, tracked_every)
    records.append(record("run_stop", None, start + minutes, status=status))
    changed = [{**entry, "value": changes.get(entry["key"], entry["value"])} for entry in records]
    return [entry for entry in changed if entry["value"] is not LEFT_OUT]


def _epoch(epoch, epochs, start, minutes, status, batch_size, tracked_every):
    """Return the records of an epoch; only the last evaluation of a success meets both targets."""
    length = minutes * 0.99 / epochs
    begin = start + 0.02 + (epoch - 1) * length
    rest = 1 - epoch / epochs
    best_box, best_mask = (0.3785, 0.3420) if status == "success" else (0.3700, 0.3300)
    scores = {"BBOX": round(best_box - 0.2 * rest, 5), "SEGM": round(best_mask - 0.17 * rest, 5)}
    return [
        record("epoch_start", None, begin, epoch_num=epoch),
        *_tracked(epoch, begin, 0.9 * length, batch_size, tracked_every),
        record("epoch_stop", None, begin + 0.9 * length, epoch_num=epoch),
        record("eval_start", None, begin + 0.9 * length, epoch_num=epoch),
        record("eval_accuracy", scores, begin + 0.95 * length, epoch_num=epoch),
        record("eval_stop", None, begin + 0.95 * length, epoch_num=epoch),
    ]


def _tracked(epoch, begin, length, batch_size, every):
    steps = math.ceil(TRAIN_IMAGES / batch_size)
    entries = []
    for step in range((epoch - 1) * steps + 1, epoch * steps + 1) if every else ():
        if step % every == 0:
            part = (step - (epoch - 1) * steps) / steps
            terms = {f"loss_{name}": low + high / (1 + step / 500) for name, (low, high) in LOSSES.items()}
            rates = {"learning_rate": learning_rate(batch_size), "throughput": batch_size * steps / (length * 60)}
            values = {"loss": sum(terms.values()), **terms, **rates}
            entries.append(record("tracked_stats", values, begin + part * length, step=step, epoch_num=epoch))
    return entries


def up_to(records, key, count=1):
    """Return the records of a program that died behind its `count`-th record of a key."""
    found = [index for index, entry in enumerate(records) if entry["key"] == key]
    return records[: found[count - 1] + 1]


def later(records, minutes):
    """Return the same records, written `minutes` later."""
    return [{**entry, "time_ms": entry["time_ms"] + round(minutes * 60_000)} for entry in records]


def blocks(records, epoch_count=1):
    """Return the same records with blocks of epochs in place of epochs."""
    changed = []
    for entry in records:
        if entry["key"] in ("epoch_start", "epoch_stop"):
            about = {"first_epoch_num": entry["metadata"]["epoch_num"], "epoch_count": epoch_count}
            entry = {**entry, "key": entry["key"].replace("epoch", "block"), "metadata": about}
        changed.append(entry)
    return changed


def moved(records, key, before):
    """Return the same records with those of a key in front of the first one of another key."""
    others = [entry for entry in records if entry["key"] != key]
    index = next(index for index, entry in enumerate(others) if entry["key"] == before)
    return [*others[:index], *(entry for entry in records if entry["key"] == key), *others[index:]]


def by_time(*logs):
    """Return the records of programs that wrote into one file at the same time."""
    return sorted((entry for records in logs for entry in records), key=lambda entry: entry["time_ms"])


def log_text(records):
    """Return the text of a log: one line for each record."""
    return "".join(f":::MLLOG {json.dumps(entry)}\n" for entry in records)


def write_log(path, **choices):
    """Return `path`, where a log was written (see `log_records`); folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(log_text(log_records(**choices)), encoding="utf-8")
    return path


def _each_run(runs, common):
    """Return the choices of each run: seeds and minutes differ unless said otherwise."""
    runs = [{}] * 5 if runs is None else runs
    varied = [{"seed": SEED + 1000 * number, "minutes": 19.3 + 0.1 * number} for number in range(len(runs))]
    return [{**base, **common, **run} for base, run in zip(varied, runs, strict=True)]


def write_logs(folder, runs=None, *, name="result_{}.txt", **common):
    """Return the paths of logs in `folder`; runs: a dictionary of choices for each of them, by default five times {}.

    `common` holds for all of them; seed and minutes differ from run to run.
    """
    choices = _each_run(runs, common)
    return [write_log(Path(folder) / name.format(number), **choice) for number, choice in enumerate(choices)]


def write_series(folder, runs=None, *, recipe="coco_batch_96", **common):
    """Return `folder`, a series of run folders run_0 ... each with its mlperf.log, and series.json."""
    folder = Path(folder)
    write_logs(folder, runs, name="run_{}/mlperf.log", recipe=recipe, **common)
    entries = []
    for number, choice in enumerate(_each_run(runs, common)):
        status = choice.get("status", "success")
        entry = {"folder": f"run_{number}", "exit_code": 0 if status == "success" else 6, "status": status}
        numbers = {"minutes": choice["minutes"], "epochs": choice.get("epochs", 14), "seed": choice["seed"]}
        entries.append({**entry, **numbers})
    (folder / "series.json").write_text(json.dumps({"recipe": recipe, "runs": entries}), encoding="utf-8")
    return folder


def write_package(folder, runs=None, *, submitter="synthetic", system="synthetic_system", division="closed", **common):
    """Return `folder`, a submission package of five runs that the official package checker accepts."""
    folder = Path(folder)
    write_logs(folder / "results" / system / "maskrcnn", runs, division=division, **common)
    known = {"submitter": submitter, "division": division, "status": "onprem", "system_name": system}
    description = {**dict.fromkeys(FIELDS, ""), **known, "framework": "maskperf"}
    (folder / "systems").mkdir(parents=True, exist_ok=True)
    (folder / "systems" / f"{system}.json").write_text(json.dumps(description), encoding="utf-8")
    code = folder / "benchmarks" / "maskrcnn" / "implementations" / "maskperf"
    code.mkdir(parents=True, exist_ok=True)
    (code / "train.py").write_text("print('synthesized')\n", encoding="utf-8")
    return folder
