"""The Markdown summary: what it says, and that no name becomes markup, read by a Markdown parser."""

import pytest
from markdown_it import MarkdownIt
from markup_payloads import PAYLOADS
from synthetic_contents import (
    PLACES,
    aborted,
    contents_of,
    five_runs_and_two_compared,
    one_run,
    small,
    synthetic_run,
    with_texts,
    without_evaluation,
)

from maskperf.files import printable
from maskperf.report.summary import escape, markdown_summary

READER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
TEXT_TOKENS = ("text", "text_special")


def structure(text):
    """Return the kinds of all tokens, without where one piece of text ends and the next begins."""
    kinds = []
    for token in READER.parse(text):
        inner = [child.type for child in token.children or [] if child.type not in TEXT_TOKENS]
        kinds.append((token.type, token.tag, inner))
    return kinds


def read_back(text):
    tokens = [child for token in READER.parse(text) for child in token.children or []]
    assert {token.type for token in tokens} <= set(TEXT_TOKENS), tokens
    return "".join(token.content for token in tokens)


@pytest.mark.parametrize("number", range(len(PAYLOADS)))
def test_a_payload_in_every_text_makes_no_markup(number):
    hostile = with_texts(small(), lambda text: f"{PAYLOADS[number]} {text}")
    assert structure(markdown_summary(hostile)) == structure(markdown_summary(small()))


@pytest.mark.parametrize("changed", ["- a *b*", "- a <i>", "| a |\n|---|\n| b |"])
def test_the_comparison_of_structures_sees_markup(changed):
    assert structure("- a b") != structure(changed)


@pytest.mark.parametrize(
    "text",
    [
        *(printable(payload).strip() for payload in PAYLOADS),
        *("# no heading", "- no list", "+ no list", "1. no list", "12) no list", "> no quote", "    no code"),
        *("=====", "---", "***", "~~~", "a | b", "[x]: y", "2.5 images/s", "run_0_of_1"),
        *("trailing backslash\\", "C:\\runs\\new"),
    ],
)
def test_escaped_text_reads_as_it_was(text):
    assert " ".join(read_back(escape(text)).split()) == " ".join(text.split())


def test_bare_addresses_do_not_become_links():
    text = escape("https://example.invalid and www.example.invalid")
    assert "https://" not in text and "www.example" not in text


@pytest.mark.parametrize(
    ("make", "texts"),
    [
        (one_run, ["| 14 | 19.30 | 0.3779 | 0.3421 |", "| evaluation | 2 min 06 s | 10.9 % |"]),
        (one_run, ["Rules: 7 of 8 kept.", "- Rule 3 of the closed division: optimizer.field_3 is 3"]),
        (one_run, ["17,094 steps watched, nothing noticed.", "17 more systems are not shown."]),
        (one_run, ["Notices:\n\n- val.json: 2 images without an object are evaluated too"]),
        (five_runs_and_two_compared, ["**19.28 minutes**. Mean of three of five runs", "| 3 | 20.80 | left out |"]),
        (five_runs_and_two_compared, ["## Compared with", "baseline-h100"]),
        (without_evaluation, ["No evaluation was recorded."]),
        (aborted, ["- step 5913, epoch 5: loss_mask is nan; images 184613, 397133, 37777"]),
    ],
)
def test_the_summary_holds(make, texts):
    summary = markdown_summary(make())
    assert [text for text in texts if text not in summary] == []


def test_the_verdict_comes_first_and_only_places_nearby_are_listed():
    lines = markdown_summary(one_run()).splitlines()
    assert lines[0].startswith("# ") and lines[2].startswith("**Targets reached.** Both targets met in epoch 14")
    submitters = [place.name.split(" ")[0] for place in PLACES if not place.is_this]  # such as "NVIDIA:"
    rows = [line for line in lines if "(this one)" in line or any(name in line for name in submitters)]
    assert len(rows) == 7 and "(this one)" in rows[3]


def test_without_notices_there_is_no_list_of_them():
    assert "Notices" not in markdown_summary(contents_of(synthetic_run(notices=())))


def test_broken_rules_of_a_division_that_is_not_the_runs_are_only_counted():
    text = markdown_summary(contents_of(synthetic_run(is_closed=False)))
    assert "the run does not belong: 7 of 8 kept." in text and "Rule 3 of the closed division" not in text
