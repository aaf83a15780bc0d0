"""What keeps a planned run from being faster, and what the plan takes for granted, in sentences."""

import math

from maskperf.data.coco.verify import NUM_VAL_IMAGES
from maskperf.mlperf.convergence import REFERENCE_BATCHES
from maskperf.mlperf.overheads import training_devices, training_rate_of
from maskperf.mlperf.plan import LARGEST_PUBLISHED_IMAGES_PER_DEVICE, UNTIMED_INIT_SECONDS, Plan, PlanQuestion
from maskperf.mlperf.published import published_systems

WORTH_A_WORD = 0.02  # share of a run's time
LARGEST_BATCH_WITHOUT_MORE_EPOCHS = 128


def limits(plan: Plan, alternatives: tuple[Plan, ...] = ()) -> tuple[str, ...]:
    """Return what limits the plan, the most fundamental first; `alternatives` are plans with other batch sizes."""
    exposed_seconds = plan.steps_per_epoch * plan.times.exposed_exchange_ms / 1000
    training = _share(plan, plan.epochs.expected * (plan.times.epoch_seconds - exposed_seconds))
    return (
        *_own_reference_point(plan),
        *_spare_devices(plan),
        *_few_images(plan),
        *_more_epochs(plan),
        *_times(plan),
        *_faster_alternative(plan, alternatives),
        f"training steps: {training:.0%} of the run",
    )


def _share(plan: Plan, seconds: float) -> float:
    return seconds / (60 * plan.run_minutes.expected)


def _own_reference_point(plan: Plan) -> list[str]:
    largest = REFERENCE_BATCHES[-1]
    if plan.batch_size <= largest:
        return []
    return [f"no reference point above batch {largest}: the rules ask for your own, ten runs of the reference or more"]


def _spare_devices(plan: Plan) -> list[str]:
    spare = plan.accelerators - plan.training_devices
    if spare == 0:
        return []
    largest = REFERENCE_BATCHES[-1]
    if plan.batch_size == largest:
        why = f"no reference point above batch {largest}: more devices than {largest} cannot each have an image"
    else:
        why = f"batch {plan.batch_size} has no image for more than {plan.batch_size} devices"
    return [f"{why}, so {spare} of {plan.accelerators} would only evaluate or be idle: {_use_of_spare(plan, spare)}"]


def _use_of_spare(plan: Plan, spare: int) -> str:
    if not plan.times.evaluation_is_beside:
        return "too few to evaluate while the others train"
    patience_seconds = plan.times.epoch_seconds - plan.times.scoring_seconds
    needed = spare
    if patience_seconds > 0:
        needed = min(spare, math.ceil(NUM_VAL_IMAGES / (plan.times.evaluation_images_per_second * patience_seconds)))
    return f"{needed} can evaluate while the others train, and {spare - needed} have nothing to do"


def _few_images(plan: Plan) -> list[str]:
    if plan.images_per_device >= LARGEST_PUBLISHED_IMAGES_PER_DEVICE:
        return []
    rates = ", ".join(f"{rate:.0f} with {images}" for images, rate in _published_rates().items())
    return [
        f"{plan.images_per_device} in the batch for each device, where published systems have up to"
        f" {LARGEST_PUBLISHED_IMAGES_PER_DEVICE}: a device is used better with more"
        f" ({_fastest_accelerator()}: {rates} images/s), so the given rate must be one measured with"
        f" {plan.images_per_device}"
    ]


def _fastest_accelerator() -> str:
    return max(published_systems(), key=training_rate_of).accelerator


def _published_rates() -> dict[int, float]:
    """Return the best training rate with each number of images per device, for the fastest accelerator."""
    rates: dict[int, float] = {}
    for system in published_systems():
        if system.accelerator == _fastest_accelerator():
            images = system.batch_size // training_devices(system.accelerators, system.batch_size)
            rates[images] = max(rates.get(images, 0.0), training_rate_of(system))
    return {images: rates[images] for images in sorted(rates, reverse=True)}


def _more_epochs(plan: Plan) -> list[str]:
    if plan.batch_size <= LARGEST_BATCH_WITHOUT_MORE_EPOCHS:
        return []
    return [
        f"batch {plan.batch_size} needs {plan.epochs.expected:.1f} epochs, where 14 are enough up to batch"
        f" {LARGEST_BATCH_WITHOUT_MORE_EPOCHS}: more images for the same result"
    ]


def _times(plan: Plan) -> list[str]:
    times, epochs = plan.times, plan.epochs.expected
    sentences = []
    exposed = _share(plan, epochs * plan.steps_per_epoch * times.exposed_exchange_ms / 1000)
    if exposed >= WORTH_A_WORD:
        sentences.append(
            f"all-reduce: {times.exposed_exchange_ms:.1f} of its {times.exchange_ms:.1f} ms do not fit behind a step,"
            f" {exposed:.0%} of the run"
        )
    evaluation = _share(plan, epochs * times.evaluation_seconds)
    if evaluation >= WORTH_A_WORD:
        sentences.append(f"evaluation: training stands still for {evaluation:.0%} of the run")
    once_seconds = times.start_seconds + times.tail_seconds
    if _share(plan, once_seconds) >= WORTH_A_WORD:
        sentences.append(f"start and end: {once_seconds:.1f} s, {_share(plan, once_seconds):.0%} of the run")
    if times.late_init_seconds > 0:
        sentences.append(
            f"initialisation: {times.late_init_seconds:.0f} s beyond the {UNTIMED_INIT_SECONDS // 60} minutes that are"
            " not timed"
        )
    return sentences


def _faster_alternative(plan: Plan, alternatives: tuple[Plan, ...]) -> list[str]:
    best = min(alternatives, key=lambda other: other.score_minutes.expected, default=plan)
    if best.score_minutes.expected >= plan.score_minutes.expected:
        return []
    return [
        f"batch {best.batch_size} would score {best.score_minutes.expected:.1f} minutes if a device kept this rate with"
        f" {best.images_per_device} in the batch for each, which must be measured"
    ]


def assumptions(question: PlanQuestion, plan: Plan) -> tuple[str, ...]:
    """Return what the plan takes for granted, each with the option that changes it."""
    times = plan.times
    if question.interconnect_gib_per_second is None:
        exchange = (
            "the given rate was measured with all devices at work, all-reduce included (--interconnect-gib-per-second)"
        )
    else:
        exchange = (
            f"all-reduce: {question.interconnect_gib_per_second:g} GiB/s and device, {question.gradient_bytes} bytes"
            f" per gradient, unseen during {question.overlap_share:.0%} of a step (--gradient-bytes, --overlap-share,"
            " --interconnect-gib-per-second)"
        )
    fitted = "fitted to the published runs"
    return (
        f"{question.images_per_second:g} training images/s per device (--per-gpu-images-per-second)",
        f"epochs: {plan.epochs_source} (--epochs{'' if question.epochs else ', --last-decay-step'})",
        f"{plan.failing_share:.1%} of the runs fail, so {plan.void_share:.1%} of the series of five have no score"
        " (--failing-share)",
        exchange,
        f"evaluation: {times.evaluation_images_per_second:.4g} images/s per device"
        f" ({_origin(question.evaluation_images_per_second, fitted)}; --evaluation-images-per-second)",
        f"COCO's scores: training waits {times.scoring_seconds:g} s for them after each epoch; published systems do not"
        " wait, maskperf does (--scoring-seconds)",
        f"first reads of the data: {times.start_seconds:.1f} s, shared by {plan.nodes} node{'s' * (plan.nodes > 1)}"
        f" ({_origin(question.start_seconds, fitted)}; --start-seconds, --accelerators-per-node)",
        f"last scores and end: {times.tail_seconds:.1f} s ({_origin(question.tail_seconds, fitted)}; --tail-seconds)",
        f"initialisation: {times.init_seconds:.0f} s, of which {UNTIMED_INIT_SECONDS // 60} minutes are not timed"
        f" ({_origin(question.init_seconds, 'median of the published runs')}; --init-seconds)",
    )


def _origin(given: float | None, otherwise: str) -> str:
    return otherwise if given is None else "given"
