"""How long a run and a series of five will take on a number of devices, before anything was run on them.

The user gives the training rate of a device. Epochs, and what a run spends beside its training steps, are learnt from
published runs.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np

from maskperf.config import NUM_TRAIN_IMAGES, NUM_VAL_IMAGES
from maskperf.data.images.sampler import steps_per_epoch
from maskperf.errors import ConfigError
from maskperf.mlperf.convergence import (
    REFERENCE_BATCHES,
    EpochForecast,
    Range,
    failing_share,
    forecast_epochs,
    forecast_series,
    range_of,
)
from maskperf.mlperf.published import PublishedSystem, published_systems

TRAINABLE_PARAMETERS = 44_125_173
BYTES_PER_GRADIENT = 4
OVERLAP_SHARE = 0.5  # of a step, during which gradients travel unseen
LARGEST_PUBLISHED_IMAGES_PER_DEVICE = 12
GIB = 2**30
KNOWN_OF_A_SYSTEM = ("accelerators", "images_per_second", "batch_size", "accelerators_per_node")


@dataclass(frozen=True, kw_only=True)
class PlanQuestion:
    """What the user knows or assumes."""

    accelerators: int
    images_per_second: float  # training, per device that trains, at the images per device of the plan
    batch_size: int | None = None  # None: chosen
    accelerators_per_node: int = 8
    interconnect_gib_per_second: float | None = None  # None: the rate was measured with all devices at work
    epochs: float | None = None  # None: as others needed
    last_decay_step: int | None = None  # None: as the reference points


@dataclass(frozen=True)
class Overheads:
    """Three numbers that explain nearly all of the time that is not training."""

    images_evaluated_per_trained: float  # rate of evaluation over rate of training, on the same devices
    start_node_seconds: float  # of the first reads of the data; the nodes share them
    tail_seconds: float  # the last scores, start and end of the clock
    largest_error: float  # share of a run's time: how far the fit is from the system that it explains worst


@dataclass(frozen=True, kw_only=True)
class PlannedTimes:
    """Where the time of a run goes."""

    step_ms: float  # with the exchange that is not hidden
    exchange_ms: float | None  # None: inside the given rate
    exposed_exchange_ms: float
    epoch_seconds: float  # training steps alone
    evaluation_seconds: float  # per epoch, while no device trains
    evaluation_images_per_second: float  # per device
    evaluation_is_beside: bool  # on devices that have no image to train on
    start_seconds: float
    tail_seconds: float
    init_seconds: float  # before the clock starts
    largest_error: float  # of published minutes where the epochs are known, as a share; widens the ranges

    def minutes(self, epochs: Range) -> Range:
        """Return the minutes for a range of epochs."""
        once, per_epoch = self.start_seconds + self.tail_seconds, self.epoch_seconds + self.evaluation_seconds
        expected, low, high = ((once + number * per_epoch) / 60 for number in astuple(epochs))
        return Range(expected, low * (1 - self.largest_error), high * (1 + self.largest_error))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The answer. Minutes are those of the benchmark's clock, run_start to run_stop."""

    accelerators: int
    nodes: int
    batch_size: int
    training_devices: int
    images_per_device: int
    steps_per_epoch: int
    epochs: Range  # of one run
    epochs_source: str
    times: PlannedTimes
    run_minutes: Range
    score_minutes: Range
    failing_share: float  # of runs
    void_share: float  # of series that have no score, as more than one run fails


@dataclass(frozen=True)
class PlanCheck:
    """A published score beside its prediction, which was learnt from the other systems alone."""

    name: str
    published_minutes: float
    predicted_minutes: float
    low_minutes: float
    high_minutes: float

    @property
    def error(self) -> float:
        """The error as a share of the published score; above 0: predicted too long."""
        return self.predicted_minutes / self.published_minutes - 1

    @property
    def in_range(self) -> bool:
        return self.low_minutes <= self.published_minutes <= self.high_minutes


def make_plan(question: PlanQuestion, systems: Sequence[PublishedSystem] | None = None) -> Plan:
    """Return the plan; learnt from `systems`, by default from all published ones.

    Errors: ConfigError for a batch that cannot be spread over the devices, or whose epochs are unknown.
    """
    known = published_systems() if systems is None else tuple(systems)
    batch_size = question.batch_size or batch_sizes(question.accelerators)[-1]
    training = min(question.accelerators, batch_size)
    below = batch_size // training * training
    if below != batch_size:
        raise ConfigError(
            f"--batch-size {batch_size} cannot be shared evenly by {training} devices. Fix: {below} or "
            f"{below + training}, or another number of devices."
        )
    if question.epochs is not None:
        forecast = EpochForecast(((question.epochs, 1.0),), "given with --epochs")
    else:
        forecast = forecast_epochs(batch_size, known, last_decay_step=question.last_decay_step)
    failing = failing_share(known)
    epochs = range_of(forecast.levels)
    score_epochs, void_share = forecast_series(forecast.levels, failing)
    nodes = math.ceil(question.accelerators / question.accelerators_per_node)
    times = _times(question, batch_size, nodes, known)
    return Plan(
        accelerators=question.accelerators,
        nodes=nodes,
        batch_size=batch_size,
        training_devices=training,
        images_per_device=batch_size // training,
        steps_per_epoch=steps_per_epoch(NUM_TRAIN_IMAGES, batch_size),
        epochs=epochs,
        epochs_source=forecast.sentence,
        times=times,
        run_minutes=times.minutes(epochs),
        score_minutes=times.minutes(score_epochs),
        failing_share=failing,
        void_share=void_share,
    )


def batch_sizes(accelerators: int) -> tuple[int, ...]:
    """Return the batch sizes worth a look: those of the reference points that the devices share evenly.

    Where there are none, the largest multiple of the devices; with more devices than images, the largest batch. The
    last one is the best: the more images a device has, the better it is used.
    """
    largest = REFERENCE_BATCHES[-1]
    if accelerators > largest:
        return (largest,)
    most = min(largest, accelerators * LARGEST_PUBLISHED_IMAGES_PER_DEVICE)
    even = [batch for batch in REFERENCE_BATCHES if batch <= most and batch % accelerators == 0]
    return tuple(even) or (most // accelerators * accelerators,)


def check_against_published() -> tuple[PlanCheck, ...]:
    """Return every published system with its prediction.

    Known of the system itself: devices, nodes, batch size, decay steps and training rate. Epochs, failures and
    overheads are learnt from the 22 others.
    """
    checks = []
    for system in published_systems():
        known = {name: getattr(system, name) for name in KNOWN_OF_A_SYSTEM}
        question = PlanQuestion(**known, last_decay_step=system.decay_steps[-1])
        predicted = make_plan(question, [other for other in published_systems() if other is not system]).score_minutes
        checks.append(PlanCheck(system.name, system.score_minutes, *astuple(predicted)))
    return tuple(checks)


def fit_overheads(systems: Sequence[PublishedSystem]) -> Overheads:
    """Return the overheads that fit the systems best, by least squares of errors relative to the time of a run.

    Scores are computed beside training in all published systems, so only the predictions of an evaluation cost time:
    on the training devices after every epoch, or once, at the end, where other devices evaluate.
    """
    table = []
    for system in systems:
        runs = [run for run in system.runs if run.reached]
        seconds = statistics.fmean(60 * run.minutes for run in runs)
        training_seconds = statistics.fmean(run.epochs * run.median_epoch_seconds for run in runs)
        spare = system.accelerators - system.training_devices
        evaluations = 1 if spare else statistics.fmean(run.epochs for run in runs)
        images = evaluations * NUM_VAL_IMAGES / ((spare or system.accelerators) * system.images_per_second)
        table.append(np.array([images, 1 / system.nodes, 1.0, seconds - training_seconds]) / seconds)
    rows, shares = np.split(np.array(table), [3], axis=1)
    fitted = np.linalg.lstsq(rows, shares[:, 0], rcond=None)[0]
    errors = np.abs(rows @ fitted - shares[:, 0])
    slowness, start, tail = fitted.tolist()
    return Overheads(1 / slowness, start, tail, float(errors.max()))


def _times(question: PlanQuestion, batch_size: int, nodes: int, systems: Sequence[PublishedSystem]) -> PlannedTimes:
    overheads = fit_overheads(systems)
    training = min(question.accelerators, batch_size)
    compute_seconds = batch_size / training / question.images_per_second
    exchange_seconds = None
    if question.interconnect_gib_per_second is not None:
        # In a ring all-reduce each device sends and receives nearly twice all gradients.
        sent_bytes = 2 * (training - 1) / training * TRAINABLE_PARAMETERS * BYTES_PER_GRADIENT
        exchange_seconds = sent_bytes / (question.interconnect_gib_per_second * GIB)
    exposed_seconds = max(0.0, (exchange_seconds or 0.0) - OVERLAP_SHARE * compute_seconds)
    epoch_seconds = steps_per_epoch(NUM_TRAIN_IMAGES, batch_size) * (compute_seconds + exposed_seconds)
    rate = overheads.images_evaluated_per_trained * question.images_per_second
    evaluation_seconds, last_evaluation_seconds = NUM_VAL_IMAGES / (question.accelerators * rate), 0.0
    spare = question.accelerators - training
    if spare:
        # Devices without an image to train on evaluate beside the others, if that is faster than all of them stopping.
        beside = NUM_VAL_IMAGES / (spare * rate)
        waiting = max(0.0, beside - epoch_seconds)
        if waiting < evaluation_seconds:
            evaluation_seconds, last_evaluation_seconds = waiting, beside
    return PlannedTimes(
        step_ms=1000 * (compute_seconds + exposed_seconds),
        exchange_ms=None if exchange_seconds is None else 1000 * exchange_seconds,
        exposed_exchange_ms=1000 * exposed_seconds,
        epoch_seconds=epoch_seconds,
        evaluation_seconds=evaluation_seconds,
        evaluation_images_per_second=rate,
        evaluation_is_beside=last_evaluation_seconds > 0,
        start_seconds=overheads.start_node_seconds / nodes,
        tail_seconds=overheads.tail_seconds + last_evaluation_seconds,
        init_seconds=statistics.median(run.init_seconds for system in systems for run in system.runs),
        largest_error=overheads.largest_error,
    )
