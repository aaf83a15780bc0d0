"""What a run spends beside its training steps, fitted to the published runs."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskperf.data.coco.verify import NUM_TRAIN_IMAGES, NUM_VAL_IMAGES
from maskperf.mlperf.published import PublishedSystem


@dataclass(frozen=True, kw_only=True)
class Overheads:
    """Three numbers that explain nearly all of the time that is not training."""

    images_evaluated_per_trained: float  # rate of evaluation over rate of training, on the same devices
    start_node_seconds: float  # of the first reads of the data; the nodes share them
    tail_seconds: float  # the last scores, start and end of the clock
    largest_error: float  # share of a run's time: how far the fit is from the system that it explains worst


def training_devices(accelerators: int, batch_size: int) -> int:
    """Return how many devices have at least one image of each batch."""
    return min(accelerators, batch_size)


def epoch_seconds_of(system: PublishedSystem) -> float:
    """Return the median training time of an epoch over the runs that reached the targets.

    The others are left out: a collapsed run has nothing to propose and is faster than a sound one.
    """
    return statistics.median(run.median_epoch_seconds for run in system.runs if run.reached)


def training_rate_of(system: PublishedSystem) -> float:
    """Return the images per second of each device that trains."""
    return NUM_TRAIN_IMAGES / epoch_seconds_of(system) / training_devices(system.accelerators, system.batch_size)


def fit_overheads(systems: Sequence[PublishedSystem]) -> Overheads:
    """Return the overheads that fit the systems best, by least squares of errors relative to the time of a run.

    Scores are computed beside training in all published systems, so only the predictions of an evaluation cost time:
    on the training devices after every epoch, or once, at the end, where other devices evaluate.
    """
    rows, overheads = [], []
    for system in systems:
        runs = [run for run in system.runs if run.reached]
        seconds = statistics.fmean(60 * run.minutes for run in runs)
        training_seconds = statistics.fmean(run.epochs * run.median_epoch_seconds for run in runs)
        epochs = statistics.fmean(run.epochs for run in runs)
        spare = system.accelerators - training_devices(system.accelerators, system.batch_size)
        evaluations, devices = (1, spare) if spare else (epochs, system.accelerators)
        images = evaluations * NUM_VAL_IMAGES / (devices * training_rate_of(system))
        rows.append(np.array([images, 1 / system.nodes, 1.0]) / seconds)
        overheads.append((seconds - training_seconds) / seconds)
    fitted = np.linalg.lstsq(np.array(rows), np.array(overheads), rcond=None)[0]
    errors = np.abs(np.array(rows) @ fitted - np.array(overheads))
    slowness, start, tail = fitted.tolist()
    return Overheads(
        images_evaluated_per_trained=1 / slowness,
        start_node_seconds=start,
        tail_seconds=tail,
        largest_error=float(errors.max()),
    )
