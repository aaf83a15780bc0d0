"""Which keys the command finds for a word, and that names of other programs lead to keys that exist."""

import pytest

from maskperf.cli.keys import find_keys
from maskperf.cli.run import COUNTS
from maskperf.errors import EXIT_DONE, EXIT_USAGE
from maskperf.overrides import FIELDS, NAMES_ELSEWHERE


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("lr", ["optimizer.learning_rate"]),
        ("LR0", ["optimizer.learning_rate"]),
        ("epochs", ["optimizer.max_epochs", "evaluation.every_epochs"]),
        ("device", ["system.device"]),
        ("seed", ["seed"]),
        ("num-workers", ["data.loader_threads"]),
        ("optimizer.batch_size", ["optimizer.batch_size"]),
        ("bottlenecks", ["model.stage_blocks"]),  # a word of its meaning
    ],
)
def test_a_word_finds_the_keys_that_it_names(word, expected):
    assert find_keys(word) == expected


def test_names_of_other_programs_lead_to_keys_that_exist():
    assert {key for keys in NAMES_ELSEWHERE.values() for key in keys} <= {*FIELDS, *COUNTS}


def test_every_key_is_shown_with_default_and_limits_in_80_columns(maskperf):
    shown = maskperf("keys")
    lines = shown.out.splitlines()
    heads = [line.partition("=")[0] for line in lines if not line.startswith(" ")]
    assert shown.code == EXIT_DONE and heads == [key for key in FIELDS if key != "recipe"]
    assert max(len(line) for line in lines if line.startswith(" ")) <= 80
    position = lines.index("optimizer.learning_rate=0.0025")
    assert lines[position + 1] == "    after the warm-up; a number > 0; elsewhere: lr, lr0, base_lr"
    assert "optimizer.learning_rate=0.04\n" in maskperf("keys", "lr", "--recipe", "demo").out


def test_a_word_that_no_key_is_about_is_an_error_with_the_nearest(maskperf):
    shown = maskperf("keys", "lr", "momentun")
    assert (shown.code, shown.out) == (EXIT_USAGE, "") and "did you mean optimizer.momentum" in shown.err
