"""The rules of MLPerf's closed division for this benchmark, as data, and the check of a configuration against them.

Every field of the configuration is either in a rule of `RULES` or in `FREE_FIELDS`; a field that neither names must be
as in the reference. Round 3.1 of the rules, the last with this benchmark.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from maskperf.config import BOX_TARGET, MASK_TARGET, OptimizerConfig, RunConfig
from maskperf.errors import RuleError
from maskperf.overrides import flatten, format_value
from maskperf.recipes import coco, reference_points

RUNS = 5  # of a result
TABLE = "MLPerf training rules, Hyperparameters"  # the table with one line for each hyperparameter
DEFAULT = "MLPerf training rules, Hyperparameters: by default the same as the reference"
CHECKER = "MLPerf's checker, training_3.1.0/closed_maskrcnn.yaml"
LEARNING_RATE_UNIT = 0.02
INTEGER_TOLERANCE = 1e-5  # as the checker: how far from an integer a quotient may be
SMALL_BATCH = 16  # below it, the unit of the learning rate may be divided
DECAY_IMAGES_PER_TENTH = (96_000, 128_000)  # (60000, 80000) * 16 / 10: for each tenth of the schedule's length
CANDIDATES_PER_IMAGE = 1000


@dataclass(frozen=True)
class Rule:
    """One rule about one field: which values keep it, as a test and as text."""

    name: str
    field: str  # key of the configuration, for example "optimizer.learning_rate"
    allowed: str
    source: str
    keeps: Callable[[Any, RunConfig, int], bool]  # of the value, the whole configuration and the number of processes
    nearest: Callable[[RunConfig, int], str] = lambda config, world: ""  # what it allows in this configuration


@dataclass(frozen=True)
class RuleResult:
    """Whether a configuration keeps one rule."""

    rule: str
    field: str
    value: str  # as it is written in an override
    allowed: str
    kept: bool
    source: str


def check_rules(config: RunConfig, *, world: int = 1) -> list[RuleResult]:
    """Return the result of every rule for a run of `world` processes, in the order of `RULES`.

    The configuration must be the one the user gave; for that of a finished run see `as_given`.
    """
    results = []
    for rule in RULES:
        value, nearest = flatten(config)[rule.field], rule.nearest(config, world)
        allowed = f"{rule.allowed}; here {nearest}" if nearest else rule.allowed
        kept = rule.keeps(value, config, world)
        results.append(RuleResult(rule.name, rule.field, format_value(value), allowed, kept, rule.source))
    return results


def refuse_broken_rules(config: RunConfig, world: int) -> None:
    """Check the rules before a run starts. The open division leaves model, data, method and targets free.

    Errors: RuleError with a line for each broken rule, if mlperf.division is closed.
    """
    is_closed = config.mlperf.division == "closed"
    broken = [result for result in check_rules(config, world=world) if not result.kept] if is_closed else []
    if not broken:
        return
    count = "one rule of the benchmark is" if len(broken) == 1 else f"{len(broken)} rules of the benchmark are"
    lines = [f"recipe {config.recipe} with mlperf.division=closed: {count} broken, and nothing was started."]
    lines += [f"{result.field}={result.value}: the rule '{result.rule}' allows {result.allowed}" for result in broken]
    fix = "Fix: give values that are allowed, or set mlperf.division=open. docs/rules.md has the source of each rule."
    raise RuleError("\n".join([*lines, fix]))


def as_given(config: RunConfig, command_line: object) -> RunConfig:
    """Return a finished run's configuration as the user gave it: its seed, if drawn, is "-1: from entropy" again.

    command_line: that of the run's environment.json, with a seed if and only if the user fixed it. Where it cannot be
    read, the seed counts as fixed.
    """
    try:
        arguments = shlex.split(command_line) if isinstance(command_line, str) else ["seed"]
    except ValueError:  # a quotation mark without its partner
        arguments = ["seed"]
    has_seed = any(argument.partition("=")[0].strip() == "seed" for argument in arguments)
    return config if has_seed else replace(config, seed=-1)


def images_per_device(config: RunConfig, world: int) -> int:
    """Return the images of one micro-batch of one process: with gradient accumulation that is what one chip sees."""
    return config.optimizer.batch_size // (world * config.optimizer.accumulation_steps)


def lowest_warm_up_rate(optimizer: OptimizerConfig) -> float:
    """Return the learning rate of the first update, the lowest of the warm-up (of the weights; biases have more)."""
    steps, factor = optimizer.warmup_steps, optimizer.warmup_factor
    if steps <= 1:
        return optimizer.learning_rate
    if optimizer.warmup_method == "mlperf_linear":
        return optimizer.learning_rate - (steps - 1) * factor
    progress = 1 / steps if optimizer.warmup_method == "linear" else 0.0
    return optimizer.learning_rate * (factor * (1 - progress) + progress)


def decay_steps(tenths: int, batch_size: int) -> tuple[int, ...]:
    """Return the two decay steps of a schedule of `tenths` = 10 + K tenths, cut to whole steps as the published."""
    return tuple(images * tenths // batch_size for images in DECAY_IMAGES_PER_TENTH)


def _is_integer(quotient: float) -> bool:
    return round(quotient) >= 1 and abs(round(quotient) - quotient) < INTEGER_TOLERANCE


def _keeps_learning_rate(rate: float, config: RunConfig, world: int) -> bool:
    is_small = config.optimizer.batch_size < SMALL_BATCH
    return _is_integer(rate / LEARNING_RATE_UNIT) or (is_small and _is_integer(LEARNING_RATE_UNIT / rate))


def _is_decay_schedule(steps: tuple[int, ...], batch_size: int) -> bool:
    """Return whether the steps are those of the reference's schedule, at some whole number of tenths of its length."""
    tenths = -(-steps[0] * batch_size // DECAY_IMAGES_PER_TENTH[0]) if steps else 0  # the one that fits the first step
    return tenths >= 1 and steps == decay_steps(tenths, batch_size)


def _nearest_decay_steps(config: RunConfig, world: int) -> str:
    batch_size, given = config.optimizer.batch_size, config.optimizer.decay_steps
    tenths = max(1, round(given[0] * batch_size / DECAY_IMAGES_PER_TENTH[0])) if given else 10
    return f"{format_value(decay_steps(tenths, batch_size))} with K={tenths - 10}"


def _allowed_candidates(config: RunConfig, world: int) -> list[int]:
    per_device = CANDIDATES_PER_IMAGE * max(1, images_per_device(config, world))
    point = reference_points().get(config.optimizer.batch_size)
    return sorted({CANDIDATES_PER_IMAGE, per_device, *([point.proposals] if point else [])})


def _equals(name: str, field: str, value: Any, source: str) -> Rule:
    """Return the rule that a field has one value."""
    return Rule(name, field, format_value(value) or "nothing", source, lambda found, config, world: found == value)


FREE_FIELDS = (  # separated by spaces; docs/rules.md says why
    "recipe run_dir data.root optimizer.batch_size "
    "optimizer.accumulation_steps evaluation.batch_size optimizer.max_steps optimizer.max_epochs "
    "model.mask_slots_per_image data.max_image_pixels evaluation.engine data.loader_threads "
    "system.device system.threads system.log_every_steps system.on_collapse "
    "checkpoint.minutes log.tensorboard log.trackers speed.without speed.precision "
    "mlperf.organization mlperf.platform mlperf.division mlperf.status"
)
NAMED_RULES: tuple[Rule, ...] = (
    Rule(
        "base learning rate",
        "optimizer.learning_rate",
        "0.02 * K with K = 1, 2, 3 ...; with a batch below 16 also 0.02 / K",
        f"{TABLE}: opt_base_learning_rate; {CHECKER}",
        _keeps_learning_rate,
    ),
    _equals("decay factor", "optimizer.decay_factor", 0.1, f"{TABLE}: opt_learning_rate_decay_factor; {CHECKER}"),
    Rule(
        "decay steps",
        "optimizer.decay_steps",
        "two steps, (60000, 80000) * (1 + K/10) * 16 / optimizer.batch_size, K an integer",
        f"{TABLE}: opt_learning_rate_decay_steps; {CHECKER} (two of them)",
        lambda steps, config, world: _is_decay_schedule(steps, config.optimizer.batch_size),
        _nearest_decay_steps,
    ),
    Rule(
        "warm-up method",
        "optimizer.warmup_method",
        "linear (the reference's default) or mlperf_linear (its published points)",
        f"{DEFAULT} and its published convergence points",
        lambda method, config, world: method in ("linear", "mlperf_linear"),
    ),
    Rule(
        "warm-up factor",
        "optimizer.warmup_factor",
        "any number above 0",
        f"{TABLE}: opt_learning_rate_warmup_factor; {CHECKER}",
        lambda value, config, world: value > 0,
    ),
    Rule(
        "no negative rate in the warm-up",
        "optimizer.warmup_steps",
        "any number whose warm-up never has a learning rate below 0",
        f"{TABLE}: opt_learning_rate_warmup_steps; {CHECKER}; the limit is maskperf's own",
        lambda value, config, world: lowest_warm_up_rate(config.optimizer) >= 0,
        lambda config, world: f"the first rate is {lowest_warm_up_rate(config.optimizer):.6g}",
    ),
    Rule(
        "region proposals",
        "model.proposals_train",
        "1000, or 1000 for each image of a device's micro-batch, or the published point's 6000",
        f"{TABLE}: num_image_candidates; {CHECKER}; mlperf_logging, rcps_maskrcnn.json",
        lambda value, config, world: value in _allowed_candidates(config, world),
        lambda config, world: " or ".join(map(str, _allowed_candidates(config, world))),
    ),
    Rule(
        "proposals of one device together",
        "model.proposal_quota",
        "pooled, or per_image with model.proposals_train=1000",
        f"{TABLE}: num_image_candidates",
        lambda value, config, world: value == "pooled" or config.model.proposals_train == CANDIDATES_PER_IMAGE,
    ),
    _equals("shorter side of an image", "data.short_side", 800, f"{TABLE}: min_image_size"),
    _equals("longer side of an image", "data.long_side", 1333, f"{TABLE}: max_image_size"),
    _equals("horizontal flips", "data.flip_probability", 0.5, "Reference README: only horizontal flips are allowed"),
    *(
        _equals("no other augmentation", f"data.{name}", value, "Reference README: only horizontal flips are allowed")
        for name, value in (("short_sides", ()), ("color", 0.0), ("scale_jitter", (1.0, 1.0)), ("copy_paste", 0.0))
    ),
    _equals("pixel means", "data.pixel_means_bgr", (102.9801, 115.9465, 122.7717), DEFAULT),
    _equals("resize", "data.resize", "reference", DEFAULT),
    _equals("conventions of the weights", "model.conventions", "reference", DEFAULT),
    _equals("random order", "data.shuffle", True, "MLPerf training rules, Training Data Order"),
    _equals("box target", "evaluation.box_target", BOX_TARGET, "MLPerf training rules, Benchmarks: quality target"),
    _equals("mask target", "evaluation.mask_target", MASK_TARGET, "MLPerf training rules, Benchmarks: quality target"),
    _equals("detections of an image", "model.detections_per_image", 100, DEFAULT),
    _equals("score threshold", "model.score_threshold", 0.05, DEFAULT),
    _equals("momentum", "optimizer.momentum", 0.9, "Reference README: optimizer"),
    _equals("weight decay", "optimizer.weight_decay", 1e-4, "Reference README: optimizer"),
    _equals("learning rate and weight decay of biases", "optimizer.biases", (2.0, 0.0), DEFAULT),
    _equals("frozen batch norm", "model.batch_norm", "frozen", DEFAULT),
    _equals("frozen stages", "model.frozen_stages", 2, DEFAULT),
    Rule(
        "given backbone",
        "model.backbone_weights",
        "the file of the provided backbone, R-50.pkl or what `maskperf convert` made of it",
        "MLPerf training rules, Pre-training; reference README: loaded from the provided weights",
        lambda value, config, world: value != "",
    ),
    _equals("no other weights", "model.initial_weights", "", "MLPerf training rules, Pre-training"),
    _equals("counts of COCO 2017", "data.check_counts", True, "Reference README: COCO 2017, all of it"),
    _equals("no synthetic images", "data.generate_images", (0, 0), "Reference README: COCO 2017, all of it"),
    *(
        _equals("files of COCO 2017", f"data.{name}", "", "MLPerf training rules, Training and Test Sets")
        for name in ("train_json", "train_images", "val_json", "val_images")
    ),
    _equals("classes of COCO 2017", "model.num_classes", 81, DEFAULT),
    Rule(
        "seed from entropy",
        "seed",
        "-1: drawn from the operating system's entropy",
        "MLPerf training rules, Random numbers; MLPerf's seed checker: no two runs alike",
        lambda value, config, world: value == -1,
    ),
)
CLASSIFIED = {*FREE_FIELDS.split(), *(rule.field for rule in NAMED_RULES)}
# Everything else is as in the reference, whose settings are those of the recipe coco.
RULES = (
    *NAMED_RULES,
    *(
        _equals("as the reference", field, value, DEFAULT)
        for field, value in flatten(coco()).items()
        if field not in CLASSIFIED
    ),
)
