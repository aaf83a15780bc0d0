"""How long a run and a series of five will take on a number of devices, before anything was run on them, and why.

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
LARGEST_QUICK_BATCH = 128  # above it runs need more epochs
WORTH_MENTIONING = 0.02  # share of a run's time
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
        fix = f"{below} or {below + training}, or another number of devices."
        raise ConfigError(f"--batch-size {batch_size} cannot be shared evenly by {training} devices. Fix: {fix}")
    forecast = EpochForecast(((question.epochs or 0.0, 1.0),), "given with --epochs")
    if question.epochs is None:
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
    most = min(largest, accelerators * LARGEST_PUBLISHED_IMAGES_PER_DEVICE)
    even = [batch for batch in REFERENCE_BATCHES if batch <= most and batch % accelerators == 0]
    return tuple(even) or (most // accelerators * accelerators or largest,)


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
    # In a ring all-reduce each device sends and receives nearly twice all gradients.
    sent_bytes = 2 * (training - 1) / training * TRAINABLE_PARAMETERS * BYTES_PER_GRADIENT
    speed = question.interconnect_gib_per_second
    exchange_seconds = None if speed is None else sent_bytes / (speed * GIB)
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


def limits(plan: Plan, alternatives: tuple[Plan, ...] = ()) -> tuple[str, ...]:
    """Return what limits the plan, the most fundamental first; `alternatives` have other batch sizes."""
    largest, batch_size = REFERENCE_BATCHES[-1], plan.batch_size
    times, epochs = plan.times, plan.epochs.expected
    exposed_seconds = epochs * plan.steps_per_epoch * times.exposed_exchange_ms / 1000
    once_seconds = times.start_seconds + times.tail_seconds
    training_seconds = epochs * times.epoch_seconds - exposed_seconds
    parts = (exposed_seconds, epochs * times.evaluation_seconds, once_seconds, training_seconds)
    exposed, evaluation, once, training = (seconds / (60 * plan.run_minutes.expected) for seconds in parts)
    best = min((plan, *alternatives), key=lambda other: other.score_minutes.expected)
    found = {
        f"no reference point above batch {largest}: the rules ask for your own, of ten runs": batch_size > largest,
        _spare_devices(plan): plan.accelerators > plan.training_devices,
        _few_images(plan): plan.images_per_device < LARGEST_PUBLISHED_IMAGES_PER_DEVICE,
        f"{epochs:.1f} epochs, where 14 are enough up to batch {LARGEST_QUICK_BATCH}": batch_size > LARGEST_QUICK_BATCH,
        f"all-reduce: {times.exposed_exchange_ms:.1f} of its {times.exchange_ms or 0:.1f} ms do not fit behind a step, "
        f"{exposed:.0%} of the run": exposed >= WORTH_MENTIONING,
        f"evaluation: training stands still for {evaluation:.0%} of the run": evaluation >= WORTH_MENTIONING,
        f"start and end: {once_seconds:.1f} s, {once:.0%} of the run": once >= WORTH_MENTIONING,
        f"batch {best.batch_size} would score {best.score_minutes.expected:.1f} minutes if a device kept this rate "
        f"with {best.images_per_device} in the batch for each, which must be measured": best is not plan,
        f"training steps: {training:.0%} of the run": True,
    }
    return tuple(sentence for sentence, applies in found.items() if applies)


def _spare_devices(plan: Plan) -> str:
    spare, batch_size = plan.accelerators - plan.training_devices, plan.batch_size
    why = f"batch {batch_size} has no image for more than {batch_size} devices"
    if batch_size == REFERENCE_BATCHES[-1]:
        why = f"no reference point above batch {batch_size}: more devices than {batch_size} cannot each have an image"
    use = "too few to evaluate while the others train"
    if plan.times.evaluation_is_beside:
        images_of_a_device = plan.times.evaluation_images_per_second * plan.times.epoch_seconds
        needed = min(spare, math.ceil(NUM_VAL_IMAGES / images_of_a_device))
        use = f"{needed} can evaluate while the others train, and {spare - needed} have nothing to do"
    return f"{why}, so {spare} of {plan.accelerators} would only evaluate or be idle: {use}"


def _few_images(plan: Plan) -> str:
    """Return a sentence with the best published rates at each number of images, of the fastest accelerator."""
    fastest = max(published_systems(), key=lambda system: system.images_per_second).accelerator
    rates: dict[int, float] = {}
    for system in published_systems():
        if system.accelerator == fastest:
            images = system.batch_size // system.training_devices
            rates[images] = max(rates.get(images, 0.0), system.images_per_second)
    shown = ", ".join(f"{rates[images]:.0f} with {images}" for images in sorted(rates, reverse=True))
    own, most = plan.images_per_device, LARGEST_PUBLISHED_IMAGES_PER_DEVICE
    return (
        f"{own} in the batch for each device, where published systems have up to {most}: a device is used better"
        f" with more ({fastest}: {shown} images/s), so the given rate must be one measured with {own}"
    )


def assumptions(question: PlanQuestion, plan: Plan) -> tuple[str, ...]:
    """Return what the plan assumes, with the options that change it."""
    times, nodes = plan.times, f"{plan.nodes} node{'s' * (plan.nodes > 1)}"
    exchange = "the given rate was measured with all devices at work, all-reduce included"
    if question.interconnect_gib_per_second is not None:
        exchange = (
            f"all-reduce: {question.interconnect_gib_per_second:g} GiB/s and device, {BYTES_PER_GRADIENT} bytes per"
            f" gradient, unseen during {OVERLAP_SHARE:.0%} of a step"
        )
    return (
        f"{question.images_per_second:g} training images/s per device (--per-gpu-images-per-second)",
        f"epochs: {plan.epochs_source} (--epochs)",
        f"{plan.failing_share:.1%} of the runs fail, as of the published ones, so {plan.void_share:.1%} of the series"
        " of five have no score",
        f"{exchange} (--interconnect-gib-per-second)",
        f"evaluation: {times.evaluation_images_per_second:.4g} images/s per device (fitted to the published runs)",
        "COCO's scores are computed while the training goes on",
        f"first reads of the data: {times.start_seconds:.1f} s, shared by {nodes} (fitted to the published runs;"
        " --accelerators-per-node)",
        f"last scores and end: {times.tail_seconds:.1f} s (fitted to the published runs)",
        f"initialisation: {times.init_seconds:.0f} s, not timed (median of the published runs)",
    )
