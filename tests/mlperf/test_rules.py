import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlperf_logging.compliance_checker import mlp_compliance

from maskperf.engine.optimizer import learning_rates_at
from maskperf.errors import EXIT_RULE, RuleError
from maskperf.mlperf import rules
from maskperf.mlperf.rules import FREE_FIELDS, RULES, check_rules, decay_steps, images_per_device, refuse_broken_rules
from maskperf.overrides import FIELDS, flatten, format_value, with_overrides
from maskperf.recipes import RECIPES, coco

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
CLOSED = "mlperf.division=closed"
# Recipe, processes, micro-batches: one device with the micro-batch of two images, many devices, and between.
SUITABLE = [
    ("coco", 1, 1),
    ("coco_batch_8", 1, 1),
    ("coco_batch_8", 1, 4),
    ("coco_batch_8", 8, 1),
    *((f"coco_batch_{batch}", 1, batch // 2) for batch in (48, 64, 96, 128, 256)),
    *((f"coco_batch_{batch}", 8, 1) for batch in (48, 64, 96, 128, 256)),
    ("coco_batch_96", 4, 3),
    ("coco_batch_256", 32, 2),
]
# Rules that allow more than one value: values that break them in the recipe coco (batch 2, one device, 2000 proposals).
BROKEN = {
    "optimizer.learning_rate": (0.0051, 0.03, 0.011),
    "optimizer.decay_steps": ((), (480000,), (480000, 640001), (480001, 640000), (480000, 640000, 700000)),
    "optimizer.warmup_method": ("constant",),
    "optimizer.warmup_factor": (0.0,),
    "model.proposals_train": (500, 1500, 3000, 6000),
    "model.proposal_quota": ("per_image",),
    "model.backbone_weights": ("",),
}
OTHER_NAMES = {"reference": "torchvision", "frozen": "trainable", "sgd": "adamw", "steps": "cosine"}
REFERENCE = flatten(coco())
ONE_VALUE = [rule.field for rule in RULES if rule.field not in {*BROKEN, "optimizer.warmup_steps"}]


def closed(name, *pairs, accumulation=1):
    return with_overrides(RECIPES[name](), [CLOSED, f"optimizer.accumulation_steps={accumulation}", *pairs])


def broken(config, world=1):
    """Return the result of every rule that is broken."""
    return [result for result in check_rules(config, world=world) if not result.kept]


def broken_fields(config, world=1):
    return [result.field for result in broken(config, world)]


def test_every_field_of_the_configuration_is_in_a_rule_or_free_and_not_both():
    assert sorted([*FREE_FIELDS.split(), *(rule.field for rule in RULES)]) == sorted(FIELDS)


@pytest.mark.parametrize(("name", "world", "accumulation"), SUITABLE)
def test_the_recipes_of_the_benchmark_may_run_in_the_closed_division(name, world, accumulation):
    config = closed(name, accumulation=accumulation)
    assert broken_fields(config, world) == []
    refuse_broken_rules(config, world)
    assert all(result.rule and result.source and result.allowed for result in check_rules(config))


def test_the_demo_is_refused_with_every_broken_rule_named():
    with pytest.raises(RuleError) as caught:
        refuse_broken_rules(closed("demo"), 1)
    refuse_broken_rules(RECIPES["demo"](), 1)  # the open division refuses nothing
    assert {name for name, _, _ in SUITABLE} == set(RECIPES) - {"demo"}  # all others may run in the closed one
    first, *lines, last = str(caught.value).splitlines()
    assert caught.value.exit_code == EXIT_RULE
    assert first.startswith("recipe demo with mlperf.division=closed:") and last.startswith("Fix:")
    assert [line.partition("=")[0] for line in lines] == broken_fields(closed("demo"))
    assert "data.generate_images=1000,200: the rule 'no synthetic images' allows 0,0" in lines
    assert "evaluation.box_target=0.55: the rule 'box target' allows 0.377" in lines


def other_than(value):
    """Return another value of the same type."""
    if isinstance(value, tuple):
        return (*value[:-1], other_than(value[-1])) if value else (640, 800)
    if isinstance(value, str):
        return OTHER_NAMES.get(value, "own")
    return not value if isinstance(value, bool) else value + 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, value) for field, values in BROKEN.items() for value in values),
        *((field, other_than(REFERENCE[field])) for field in ONE_VALUE),
    ],
)
def test_each_changed_value_is_refused_by_its_own_rule_alone(field, value):
    section, _, name = field.rpartition(".")
    config = closed("coco")
    change = {section: replace(getattr(config, section), **{name: value})} if section else {name: value}
    config = replace(config, **change)
    assert broken_fields(config) == [field]
    shown = re.escape(f"{field}={format_value(value)}")
    with pytest.raises(RuleError, match=f"one rule of the benchmark is broken.*\n{shown}"):
        refuse_broken_rules(config, 1)


@pytest.mark.parametrize(
    "pair",
    [
        *(f"optimizer.learning_rate={rate}" for rate in ("0.02", "0.08", "0.01", "0.02857142857142857e-1")),
        *(f"optimizer.decay_steps={steps}" for steps in ("528000,704000", "432000,576000", "960000,1280000")),
        *("model.proposals_train=1000", "optimizer.warmup_factor=1", "optimizer.warmup_steps=0", "seed=-1"),
        *("optimizer.max_steps=10", "optimizer.max_epochs=3", "evaluation.engine=official", "data.root=/elsewhere"),
        *("model.backbone_weights=R-50.safetensors", "system.threads=3", "mlperf.organization=x"),
    ],
)
def test_what_the_rules_leave_free_is_allowed(pair):
    assert broken_fields(closed("coco", pair)) == []


@given(rate=st.one_of(st.floats(1e-6, 3), st.integers(1, 99).map(lambda k: 0.02 * k)), batch=st.integers(1, 40))
@settings(max_examples=300)
def test_the_learning_rate_rule_is_the_checkers(rate, batch):
    is_integer = mlp_compliance.is_integer
    # The checker also takes a rate that rounds to 0 * 0.02, or a divisor that rounds to 0; there is no such K.
    multiple = is_integer(rate / 0.02) and rate > 0.01
    divided = batch < 16 and is_integer(0.02 / rate) and rate < 0.04
    config = closed("coco", f"optimizer.learning_rate={rate!r}", f"optimizer.batch_size={batch}")
    assert ("optimizer.learning_rate" not in broken_fields(config)) == (multiple or divided)


@given(batch=st.integers(1, 3000), stretch=st.integers(-12, 40), shift=st.tuples(*[st.integers(-1, 1)] * 2))
@settings(max_examples=300)
def test_decay_steps_are_those_of_the_formula_cut_to_whole_steps(batch, stretch, shift):
    def cut(stretch):
        return tuple(int(base * (1 + Fraction(stretch, 10)) * 16 / batch) for base in (60000, 80000))

    steps = tuple(max(1, step + change) for step, change in zip(cut(stretch), shift, strict=True))
    allowed = {cut(other) for other in range(-9, 60)}
    config = closed("coco", f"optimizer.batch_size={batch}", f"optimizer.decay_steps={steps[0]},{steps[1]}")
    assert ("optimizer.decay_steps" not in broken_fields(config)) == (steps in allowed)


def test_a_refused_schedule_names_the_nearest_one():
    assert decay_steps(15, 272) == (5294, 7058)  # cut as the published ones: 5294.1 and 7058.8
    assert decay_steps(15, 256) == (5625, 7500)
    config = closed("coco_batch_96", "optimizer.decay_steps=12100,16100", accumulation=48)
    (result,) = broken(config)
    assert result.value == "12100,16100" and result.allowed.endswith("here 12000,16000 with K=2")


@pytest.mark.parametrize("candidates", [1000, 4000, 6000])
@pytest.mark.parametrize("batch", [48, 64, 96, 128])
def test_a_micro_batch_counts_as_a_device(batch, candidates):
    """Four images a micro-batch: 1000 for each, or the 6000 of the published point, and nothing else."""
    pairs = (f"model.proposals_train={candidates}",)
    config = closed(f"coco_batch_{batch}", *pairs, accumulation=batch // 4)
    assert images_per_device(config, 1) == 4 and broken_fields(config) == []
    one_step = closed(f"coco_batch_{batch}", *pairs)  # without micro-batches a device has more images than four
    assert ("model.proposals_train" in broken_fields(one_step)) == (candidates == 4000)


@pytest.mark.parametrize(
    ("name", "pair", "world", "fields"),
    [
        *(("coco_batch_8", "model.proposals_train=4000", n, ["model.proposals_train"]) for n in (1, 4)),
        ("coco_batch_8", "model.proposals_train=4000", 2, []),
        ("coco_batch_8", "model.proposals_train=6000", 1, ["model.proposals_train"]),  # not at a published batch
        ("coco_batch_8", "model.proposal_quota=per_image", 1, []),
        ("coco_batch_96", "model.proposal_quota=per_image", 48, ["model.proposal_quota"]),
    ],
)
def test_proposals_for_each_image_are_1000(name, pair, world, fields):
    assert broken_fields(closed(name, pair), world) == fields


def test_the_warm_up_of_the_published_table_at_48_is_refused():
    (result,) = broken(closed("coco_batch_48", "optimizer.warmup_steps=800", accumulation=24))
    assert result.rule == "no negative rate in the warm-up" and "-0.0167" in result.allowed


@pytest.mark.parametrize("method", ["linear", "mlperf_linear", "constant"])
@pytest.mark.parametrize("steps", [0, 1, 2, 50, 500, 700])
def test_the_lowest_rate_of_a_warm_up_is_that_of_the_optimizer(method, steps):
    changes = {"warmup_method": method, "warmup_steps": steps, "warmup_factor": 1.2e-4}
    optimizer = replace(RECIPES["coco_batch_48"]().optimizer, **changes)
    rates = [learning_rates_at(update, optimizer) for update in range(1, 800)]
    assert rules.lowest_warm_up_rate(optimizer) == pytest.approx(min(rate for rate, _ in rates), abs=1e-12)
    assert all(bias >= rate for rate, bias in rates)


@pytest.mark.parametrize(
    ("command", "is_kept"),
    [
        ("/bin/python -m maskperf run coco data.root=/a", True),
        ("maskperf run coco data.short_side=3 'run_dir=my seed=7'", True),
        ("maskperf run coco seed=7 data.root=/a", False),
        ("", True),
    ],
)
def test_a_finished_run_broke_the_rule_on_seeds_only_if_its_command_fixed_one(command, is_kept):
    finished = replace(closed("coco"), seed=7)
    assert broken_fields(rules.as_given(finished, command)) == ([] if is_kept else ["seed"])


def rows_of(heading):
    """Return the cells of every row of the table below a heading of docs/rules.md."""
    part = DOCUMENT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")]
    return rows[2:]


def test_the_document_has_every_rule_with_its_fields_and_no_other():
    fields = {}
    for rule in RULES:
        fields.setdefault(rule.name, set()).add(rule.field)
    written = {row[0]: set(re.findall(r"`([a-z_]+(?:\.[a-z_]+)?)`", row[1])) for row in rows_of("Rules on values")}
    assert written == fields


def test_the_document_has_every_free_field():
    written = [field for row in rows_of("Free values") for field in re.findall(r"`([a-z_.]+)`", row[0])]
    assert sorted(written) == sorted(FREE_FIELDS.split())


def test_every_file_and_test_that_the_document_names_exists():
    named = re.findall(r"`((?:src|tests|docs)/[\w/]+\.\w+)(?:::(\w+))?`", DOCUMENT)
    assert len(named) > 40
    for path, test in named:
        assert (ROOT / path).is_file(), path
        if test:
            assert f"\ndef {test}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{test}"
    for row in [*rows_of("Rules on values"), *rows_of("Rules that hold for every configuration")]:
        assert "`src/" in row[-2] and "::test_" in row[-1], row
