"""What keeps a planned run from being faster, and what the plan assumes, in sentences."""

import math

from maskperf.config import NUM_VAL_IMAGES
from maskperf.mlperf.convergence import REFERENCE_BATCHES
from maskperf.mlperf.plan import (
    BYTES_PER_GRADIENT,
    LARGEST_PUBLISHED_IMAGES_PER_DEVICE,
    OVERLAP_SHARE,
    Plan,
    PlanQuestion,
)
from maskperf.mlperf.published import published_systems

WORTH_MENTIONING = 0.02  # share of a run's time
LARGEST_QUICK_BATCH = 128  # above it runs need more epochs


def limits(plan: Plan, alternatives: tuple[Plan, ...] = ()) -> tuple[str, ...]:
    """Return what limits the plan, the most fundamental first; `alternatives` are plans with other batch sizes."""
    largest, batch_size = REFERENCE_BATCHES[-1], plan.batch_size
    times, epochs = plan.times, plan.epochs.expected
    exposed_seconds = epochs * plan.steps_per_epoch * times.exposed_exchange_ms / 1000
    once_seconds = times.start_seconds + times.tail_seconds
    training_seconds = epochs * times.epoch_seconds - exposed_seconds
    parts = (exposed_seconds, epochs * times.evaluation_seconds, once_seconds, training_seconds)
    exposed, evaluation, once, training = (seconds / (60 * plan.run_minutes.expected) for seconds in parts)
    best = min((plan, *alternatives), key=lambda other: other.score_minutes.expected)
    found = {
        f"no reference point above batch {largest}: the rules ask for your own, ten runs of the reference or "
        "more": batch_size > largest,
        _spare_devices(plan): plan.accelerators > plan.training_devices,
        _few_images(plan): plan.images_per_device < LARGEST_PUBLISHED_IMAGES_PER_DEVICE,
        f"batch {batch_size} needs {epochs:.1f} epochs, where 14 are enough up to batch {LARGEST_QUICK_BATCH}: more "
        "images for the same result": batch_size > LARGEST_QUICK_BATCH,
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
    return (
        f"{plan.images_per_device} in the batch for each device, where published systems have up to"
        f" {LARGEST_PUBLISHED_IMAGES_PER_DEVICE}: a device is used better with more ({fastest}: {shown} images/s), so"
        f" the given rate must be one measured with {plan.images_per_device}"
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
