"""Complete MLPerf logs, series and submission packages that no machine ever ran, for tests to spoil.

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
    """Returns the records of one log; `minutes` are from run_start to run_stop.

    tracked_every: steps between lines tracked_stats, 0 for none. recipe, targets (box, mask): maskperf's own keys.
    """
    records = [
        record("submission_benchmark", "maskrcnn", 0.0),
        record("submission_org", "Made Up", 0.0),
        record("submission_division", division, 0.0),
        record("submission_status", "onprem", 0.0),
        record("submission_platform", "synthetic_system", 0.0),
        *([] if recipe is None else [record("maskperf_recipe", recipe, 0.0)]),
        *([] if targets is None else [record("maskperf_targets", {"BBOX": targets[0], "SEGM": targets[1]}, 0.0)]),
        record("cache_clear", True, 0.0),
        record("init_start", None, 0.01),
        record("seed", seed, 0.02),
        *_hyperparameters(batch_size),
        record("init_stop", None, 0.01 + init_minutes),
        record("run_start", None, 0.01 + init_minutes),
    ]
    start = 0.01 + init_minutes
    records += [record("train_samples", TRAIN_IMAGES, start + 0.01), record("eval_samples", 5000, start + 0.01)]
    for epoch in range(1, epochs + 1):
        records += _epoch(epoch, epochs, start, minutes, status, batch_size, tracked_every)
    records.append(record("run_stop", None, start + minutes, status=status))
    changed = [_changed(entry, changes) for entry in records]
    return [entry for entry in changed if entry["value"] is not LEFT_OUT]


def _changed(entry, changes):
    return {**entry, "value": changes[entry["key"]]} if entry["key"] in changes else entry


def _hyperparameters(batch_size):
    values = {
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
    return [record(key, value, 0.03) for key, value in values.items()]


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
            terms = {
                "loss_objectness": 0.02 + 0.2 / (1 + step / 500),
                "loss_rpn_box_reg": 0.03 + 0.1 / (1 + step / 500),
                "loss_classifier": 0.15 + 0.5 / (1 + step / 500),
                "loss_box_reg": 0.12 + 0.1 / (1 + step / 500),
                "loss_mask": 0.14 + 0.5 / (1 + step / 500),
            }
            rates = {"learning_rate": learning_rate(batch_size), "throughput": batch_size * steps / (length * 60)}
            values = {"loss": sum(terms.values()), **terms, **rates}
            entries.append(record("tracked_stats", values, begin + part * length, step=step, epoch_num=epoch))
    return entries


def up_to(records, key, count=1):
    """Return the records of a program that died behind its `count`-th record of a key."""
    places = [place for place, entry in enumerate(records) if entry["key"] == key]
    return records[: places[count - 1] + 1]


def later(records, minutes):
    """Return the same records, written `minutes` later."""
    return [{**entry, "time_ms": entry["time_ms"] + round(minutes * 60_000)} for entry in records]


def blocks(records, epoch_count=1):
    """Return the same records with blocks of epochs in place of epochs."""
    names = {"epoch_start": "block_start", "epoch_stop": "block_stop"}
    return [
        {
            **entry,
            "key": names[entry["key"]],
            "metadata": {"first_epoch_num": entry["metadata"]["epoch_num"], "epoch_count": epoch_count},
        }
        if entry["key"] in names
        else entry
        for entry in records
    ]


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
    entries = [
        {
            "folder": f"run_{number}",
            "exit_code": 0 if choice.get("status", "success") == "success" else 6,
            "status": choice.get("status", "success"),
            "minutes": choice["minutes"],
            "epochs": choice.get("epochs", 14),
            "seed": choice["seed"],
        }
        for number, choice in enumerate(_each_run(runs, common))
    ]
    series = {"recipe": recipe, "runs": entries, "score_minutes": None, "sentence": ""}
    (folder / "series.json").write_text(json.dumps(series), encoding="utf-8")
    return folder


def write_package(folder, runs=None, *, submitter="synthetic", system="synthetic_system", division="closed", **common):
    """Return `folder`, a submission package of five runs that the official package checker accepts."""
    folder = Path(folder)
    write_logs(folder / "results" / system / "maskrcnn", runs, division=division, **common)
    description = {**dict.fromkeys(FIELDS, ""), "submitter": submitter, "division": division}
    description |= {"status": "onprem", "system_name": system, "framework": "maskperf"}
    (folder / "systems").mkdir(parents=True, exist_ok=True)
    (folder / "systems" / f"{system}.json").write_text(json.dumps(description, indent=2), encoding="utf-8")
    code = folder / "benchmarks" / "maskrcnn" / "implementations" / "maskperf"
    code.mkdir(parents=True, exist_ok=True)
    (code / "train.py").write_text("print('synthesized')\n", encoding="utf-8")
    return folder
