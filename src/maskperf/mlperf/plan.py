"""How long a run and a series of five will take on a number of devices, before anything was run on them.

The user gives the training rate of a device. Epochs come from maskperf.mlperf.convergence, and what a run spends
beside its training steps from maskperf.mlperf.overheads; both learn from published runs.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from maskperf.data.coco.verify import NUM_TRAIN_IMAGES, NUM_VAL_IMAGES
from maskperf.data.images.sampler import steps_per_epoch
from maskperf.errors import ConfigError
from maskperf.mlperf.convergence import (
    REFERENCE_BATCHES,
    EpochForecast,
    failing_share,
    forecast_epochs,
    forecast_series,
)
from maskperf.mlperf.overheads import fit_overheads, training_devices, training_rate_of
from maskperf.mlperf.published import PublishedSystem, published_systems

TRAINABLE_PARAMETERS = 44_125_173
UNTIMED_INIT_SECONDS = 30 * 60  # of the closed division; what goes beyond counts
LARGEST_PUBLISHED_IMAGES_PER_DEVICE = 12
GIB = 2**30
LOW_SHARE, HIGH_SHARE = 0.05, 0.95


@dataclass(frozen=True, kw_only=True)
class PlanQuestion:
    """What the user knows or assumes. None: the fitted or published value."""

    accelerators: int
    images_per_second: float  # training, per device that trains, at the images per device of the plan
    batch_size: int | None = None
    accelerators_per_node: int = 8
    max_images_per_device: int = LARGEST_PUBLISHED_IMAGES_PER_DEVICE  # for the choice of the batch size
    last_decay_step: int | None = None  # None: as the reference points
    interconnect_gib_per_second: float | None = None  # None: the rate was measured with all devices at work
    gradient_bytes: int = 4  # per parameter
    overlap_share: float = 0.5  # of a step, during which gradients can travel unseen
    evaluation_images_per_second: float | None = None  # per device
    scoring_seconds: float = 0.0  # that training waits for COCO's scores after each epoch
    start_seconds: float | None = None
    tail_seconds: float | None = None
    init_seconds: float | None = None
    epochs: float | None = None
    failing_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Range:
    """An expected number, and the two that 5 % and 95 % of all outcomes should stay below."""

    expected: float
    low: float
    high: float


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
    scoring_seconds: float  # that training waits for COCO's scores; in `evaluation_seconds`
    start_seconds: float
    tail_seconds: float
    init_seconds: float  # before the clock starts
    late_init_seconds: float  # beyond what is not timed
    largest_error: float  # of published minutes where the epochs are known, as a share; widens the ranges

    def minutes(self, epochs: float) -> float:
        once = self.start_seconds + self.tail_seconds + self.late_init_seconds
        return (once + epochs * (self.epoch_seconds + self.evaluation_seconds)) / 60


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


@dataclass(frozen=True, kw_only=True)
class PlanCheck:
    """A published score beside its prediction, for which nothing but the other systems was learnt from."""

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
    known = published_systems() if systems is None else systems
    batch_size = question.batch_size or choose_batch_size(question.accelerators, question.max_images_per_device)
    training = training_devices(question.accelerators, batch_size)
    if batch_size % training:
        below = batch_size // training * training
        text = f"--batch-size {batch_size}: cannot be shared evenly by {training} devices"
        raise ConfigError(f"{text}. Fix: {below} or {below + training}, or another number of devices.")
    forecast = _forecast(question, batch_size, known)
    failing = failing_share(known) if question.failing_share is None else question.failing_share
    series = forecast_series(forecast, failing)
    times = _times(question, batch_size, known)
    expected = sum(epochs * share for epochs, share in forecast.levels)
    epochs = Range(expected=expected, low=forecast.quantile(LOW_SHARE), high=forecast.quantile(HIGH_SHARE))
    score_epochs = Range(expected=series.mean_epochs, low=series.low_epochs, high=series.high_epochs)
    return Plan(
        accelerators=question.accelerators,
        nodes=_nodes(question),
        batch_size=batch_size,
        training_devices=training,
        images_per_device=batch_size // training,
        steps_per_epoch=steps_per_epoch(NUM_TRAIN_IMAGES, batch_size),
        epochs=epochs,
        epochs_source=forecast.sentence,
        times=times,
        run_minutes=_minutes(times, epochs),
        score_minutes=_minutes(times, score_epochs),
        failing_share=failing,
        void_share=series.void_share,
    )


def batch_sizes(accelerators: int, max_images_per_device: int) -> tuple[int, ...]:
    """Return the batch sizes worth a look: those of the reference points that the devices share evenly.

    Where there are none, the largest multiple of the devices; with more devices than images, the largest batch.
    """
    largest = REFERENCE_BATCHES[-1]
    if accelerators > largest:
        return (largest,)
    most = min(largest, accelerators * max_images_per_device)
    even = [batch for batch in REFERENCE_BATCHES if batch <= most and batch % accelerators == 0]
    return tuple(even) or (most // accelerators * accelerators,)


def choose_batch_size(accelerators: int, max_images_per_device: int) -> int:
    """Return the largest of `batch_sizes`: the more images a device has, the better it is used."""
    return batch_sizes(accelerators, max_images_per_device)[-1]


def check_against_published() -> tuple[PlanCheck, ...]:
    """Return every published system with its prediction.

    Known of the system itself: devices, nodes, batch size, decay steps and training rate. Epochs, failures and
    overheads are learnt from the 22 others.
    """
    checks = []
    for system in published_systems():
        question = PlanQuestion(
            accelerators=system.accelerators,
            images_per_second=training_rate_of(system),
            batch_size=system.batch_size,
            accelerators_per_node=system.accelerators_per_node,
            last_decay_step=system.decay_steps[-1],
        )
        predicted = make_plan(question, [other for other in published_systems() if other is not system]).score_minutes
        checks.append(
            PlanCheck(
                name=system.name,
                published_minutes=system.score_minutes,
                predicted_minutes=predicted.expected,
                low_minutes=predicted.low,
                high_minutes=predicted.high,
            )
        )
    return tuple(checks)


def _nodes(question: PlanQuestion) -> int:
    return math.ceil(question.accelerators / question.accelerators_per_node)


def _minutes(times: PlannedTimes, epochs: Range) -> Range:
    return Range(
        expected=times.minutes(epochs.expected),
        low=times.minutes(epochs.low) * (1 - times.largest_error),
        high=times.minutes(epochs.high) * (1 + times.largest_error),
    )


def _forecast(question: PlanQuestion, batch_size: int, systems: Sequence[PublishedSystem]) -> EpochForecast:
    if question.epochs is not None:
        return EpochForecast(levels=((question.epochs, 1.0),), sentence="given with --epochs")
    return forecast_epochs(batch_size, systems, last_decay_step=question.last_decay_step)


def _times(question: PlanQuestion, batch_size: int, systems: Sequence[PublishedSystem]) -> PlannedTimes:
    overheads = fit_overheads(systems)
    training = training_devices(question.accelerators, batch_size)
    compute_seconds = batch_size / training / question.images_per_second
    exchange_seconds = _exchange_seconds(question, training)
    exposed_seconds = max(0.0, (exchange_seconds or 0.0) - question.overlap_share * compute_seconds)
    epoch_seconds = steps_per_epoch(NUM_TRAIN_IMAGES, batch_size) * (compute_seconds + exposed_seconds)
    rate = question.evaluation_images_per_second
    if rate is None:
        rate = overheads.images_evaluated_per_trained * question.images_per_second
    evaluation_seconds, last_evaluation_seconds = _evaluation_seconds(question, training, rate, epoch_seconds)
    start = (
        overheads.start_node_seconds / _nodes(question) if question.start_seconds is None else question.start_seconds
    )
    tail = overheads.tail_seconds if question.tail_seconds is None else question.tail_seconds
    init = _usual_init_seconds(systems) if question.init_seconds is None else question.init_seconds
    return PlannedTimes(
        step_ms=1000 * (compute_seconds + exposed_seconds),
        exchange_ms=None if exchange_seconds is None else 1000 * exchange_seconds,
        exposed_exchange_ms=1000 * exposed_seconds,
        epoch_seconds=epoch_seconds,
        evaluation_seconds=evaluation_seconds,
        evaluation_images_per_second=rate,
        evaluation_is_beside=last_evaluation_seconds > 0,
        scoring_seconds=question.scoring_seconds,
        start_seconds=start,
        tail_seconds=tail + last_evaluation_seconds,
        init_seconds=init,
        late_init_seconds=max(0.0, init - UNTIMED_INIT_SECONDS),
        largest_error=overheads.largest_error,
    )


def _exchange_seconds(question: PlanQuestion, training: int) -> float | None:
    """Return how long the sum of all gradients takes, as a ring: each device sends and receives nearly twice all."""
    if question.interconnect_gib_per_second is None:
        return None
    sent_bytes = 2 * (training - 1) / training * TRAINABLE_PARAMETERS * question.gradient_bytes
    return sent_bytes / (question.interconnect_gib_per_second * GIB)


def _evaluation_seconds(
    question: PlanQuestion, training: int, rate: float, epoch_seconds: float
) -> tuple[float, float]:
    """Return the seconds per epoch in which no device trains for an evaluation, and those after the last epoch.

    Devices without an image to train on evaluate beside the others, if that is faster than all of them stopping.
    """
    stopped = NUM_VAL_IMAGES / (question.accelerators * rate) + question.scoring_seconds
    spare = question.accelerators - training
    if spare == 0:
        return stopped, 0.0
    beside = NUM_VAL_IMAGES / (spare * rate) + question.scoring_seconds
    waiting = max(0.0, beside - epoch_seconds)
    return (waiting, beside) if waiting < stopped else (stopped, 0.0)


def _usual_init_seconds(systems: Sequence[PublishedSystem]) -> float:
    return statistics.median(run.init_seconds for system in systems for run in system.runs)
