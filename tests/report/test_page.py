"""The page as text: what it says, in which order, and that no name can change its structure."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from functools import cache

import html5lib
import msgspec
import pytest
from markup_payloads import PAYLOADS
from plotly.offline import get_plotlyjs
from synthetic_contents import (
    aborted,
    contents_of,
    five_runs_and_two_compared,
    one_run,
    small,
    synthetic_analysis,
    synthetic_run,
    with_texts,
    without_evaluation,
)

from maskperf.files import UNPRINTABLE
from maskperf.report.contents import ReportContents
from maskperf.report.mistakes import readable_jpegs
from maskperf.report.page import page_text
from maskperf.report.summary import markdown_summary
from maskperf.schema import PictureEntry

PLOTLY = get_plotlyjs()


def without_plotly(text):
    """Return the page with an empty script in place of plotly's, which a parser in Python reads for seconds."""
    before, found, after = text.partition(PLOTLY)
    assert found and PLOTLY not in after
    return before + after


def parsed(contents):
    parser = html5lib.HTMLParser(namespaceHTMLElements=False)
    return parser.parse(without_plotly(page_text(contents)))


def structure(element):
    """Return tag, names of attributes, and the same of all children."""
    return (str(element.tag), sorted(element.attrib), [structure(child) for child in element])


def shown_text(element):
    if element.tag in ("script", "style"):
        return element.tail or ""
    inside = "".join(shown_text(child) for child in element)
    return f"{element.text or ''} {inside} {element.tail or ''}"


@cache
def tree_of(make):
    """Return the parsed page of contents that a function of synthetic_contents makes."""
    return parsed(make())


def text_of(contents):
    body = (parsed(contents) if isinstance(contents, ReportContents) else tree_of(contents)).find("body")
    return " ".join(shown_text(body).split())


@pytest.fixture(scope="module")
def plain_structure():
    return structure(parsed(small()))


@pytest.mark.parametrize("number", range(len(PAYLOADS)))
def test_a_payload_in_every_text_leaves_the_element_tree_as_it_is(number, plain_structure):
    hostile = with_texts(small(), lambda text: f"{PAYLOADS[number]} {text}")
    assert structure(parsed(hostile)) == plain_structure


@pytest.mark.parametrize("changed", ["<p title=a>x<i></i></p>", "<p title=a onclick=b>x</p>"])
def test_the_comparison_of_trees_sees_a_new_element_and_a_new_attribute(changed):
    trees = (html5lib.parse(text, namespaceHTMLElements=False) for text in ("<p title=b>y</p>", changed))
    assert len({str(structure(tree)) for tree in trees}) == 2


def test_a_payload_is_shown_as_it_is_written():
    payload = "<b onclick='x'>&amp; \"quoted\"</b>"
    assert payload in text_of(with_texts(small(), lambda text: f"{payload} {text}"))


def test_characters_that_cannot_be_shown_or_could_deceive_are_replaced_everywhere():
    hostile = with_texts(small(), lambda text: f"\x00\u202e\ud83d\n{text}")
    shown = without_plotly(page_text(hostile)) + markdown_summary(hostile)
    assert set(UNPRINTABLE.findall(shown)) == {"\n"} and shown.count("\ufffd" * 3) > 200


def test_the_numbers_are_json_without_a_character_that_html_reads():
    text = page_text(with_texts(small(), lambda text: f"</script><!-- & \u2028\u2029 ]]> {text}"))
    island = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL).group(1)
    assert json.loads(island)["runs"][0]["name"].startswith("&lt;/script&gt;")
    assert island.isascii() and not set("<>&") & set(island)


def test_every_script_is_one_that_the_policy_names_by_its_digest():
    tree = html5lib.parse(without_plotly(page_text(one_run())), namespaceHTMLElements=False)
    policy = next(entry.attrib["content"] for entry in tree.iter("meta") if "http-equiv" in entry.attrib)
    scripts = [entry.text or "" for entry in tree.iter("script") if "type" not in entry.attrib]
    texts = [text or PLOTLY for text in scripts]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    assert len(digests) == 2
    assert re.findall(r"'sha256-([^']+)'", policy) == digests
    assert "default-src 'none'" in policy and "base-uri 'none'" in policy and "form-action 'none'" in policy
    assert "unsafe-eval" not in policy and "http" not in policy and "connect-src" not in policy


def test_nothing_in_the_page_refers_to_another_place():
    for element in tree_of(five_runs_and_two_compared).iter():
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            assert element.attrib.get(name, "#").startswith(("#", "data:")), (element.tag, name)
        assert not [name for name in element.attrib if name.startswith("on")]


OF_ANALYSIS = "numbers classes errors pictures"


@pytest.mark.parametrize(
    ("make", "sections"),
    [
        (one_run, "verdict accuracy losses time speed classes pictures system settings rules guard"),
        (small, f"verdict accuracy losses time speed {OF_ANALYSIS} side-by-side system settings rules guard"),
        (without_evaluation, "verdict accuracy losses guard"),
    ],
)
def test_the_sections_come_in_the_order_of_interest_and_only_with_data(make, sections):
    assert [section.attrib["id"] for section in tree_of(make).iter("section")] == sections.split()


def test_every_link_of_the_navigation_has_its_section():
    for make in (one_run, without_evaluation, five_runs_and_two_compared):
        tree = tree_of(make)
        ids = [element.attrib["id"] for element in tree.iter() if "id" in element.attrib]
        links = [link.attrib["href"][1:] for link in tree.iter("a")]
        assert set(links) <= set(ids) and len(ids) == len(set(ids))


MISSED = replace(synthetic_run(), verdict=replace(synthetic_run().verdict, state="missed", box_ap=0.376999))
BAD_PICTURE = msgspec.structs.replace(synthetic_run().pictures[0], jpeg_base64="not base64!")


@pytest.mark.parametrize(
    ("contents", "patterns"),
    [
        (one_run, ["Targets reached.* Box AP", "Both targets met in epoch 14", "19.30 minutes to target"]),
        (one_run, [r"Place \d+ of 24 by minutes, place \d+ of 24 per accelerator"]),
        (one_run, ["evaluation 2 min 06 s 126.2 10.9 %"]),
        (one_run, ["1 of 8 rules are broken.", "Rule 3 of the closed division.*Rule 1 of the closed division"]),
        (five_runs_and_two_compared, ["Run 1 19.31 in the mean Run 2 19.02 in the mean Run 3 20.80 left out"]),
        (five_runs_and_two_compared, ["19.28 score, minutes, of 5 runs"]),
        (small, ["Run 2 \u2013 missed", "AP of large objects \u2013 \u2013", "person found as bicycle 3 times"]),
        (small, ["Missed an object that no detection comes near 0.1000 15", "Spread over the split", "First training"]),
        (without_evaluation, ["No evaluation was recorded", "No losses were recorded"]),
        (aborted, ["Box AP \u2013"]),
        (contents_of(MISSED), ["Box AP 0.376999 target 0.377"]),  # not rounded to the target
        (
            contents_of(replace(MISSED, pictures=(BAD_PICTURE, *MISSED.pictures[:1]))),
            ["1 of 2 pictures cannot be shown"],
        ),
    ],
)
def test_the_page_shows(contents, patterns):
    text = text_of(contents)
    assert [pattern for pattern in patterns if not re.search(pattern, text)] == []
    assert not re.search(r"\b(nan|inf|None)\b", text.replace("loss_mask is nan", ""))


def test_rules_are_folded_away_where_the_run_is_none_of_the_closed_division():
    def details_of(run):
        section = parsed(contents_of(run)).find(".//section[@id='rules']")
        return section.find(".//details")

    assert details_of(synthetic_run()) is None
    folded = details_of(synthetic_run(is_closed=False))
    assert "1 of 8 rules of the closed division are broken" in shown_text(folded.find("summary"))
    assert folded.get("open") is None and folded.find(".//table") is not None


def test_an_evaluation_has_no_training_to_show():
    run = synthetic_run(evaluations=(), losses=(), guard=(), phases={}, rules=(), analysis=synthetic_analysis())
    page = parsed(contents_of(run, has_training=False, places=(), places_note="", band=None))
    sections = [section.attrib["id"] for section in page.iter("section")]
    assert sections == ["verdict", "classes", "errors", "pictures", "system", "settings"]
    assert page.find(".//p[@class='verdict-state']/span").text == "Evaluated"


def test_a_note_of_several_runs_is_shown_once():
    assert text_of(five_runs_and_two_compared).count("open division: the recipe is not a closed one") == 1


@pytest.mark.parametrize("text", ["", "####", "aGVsbG8=", '/9j/"><b>'])
def test_only_base64_of_a_jpeg_is_a_picture(text):
    assert readable_jpegs([PictureEntry(kind="best", title="", caption="", jpeg_base64=text)], "best") == []


def test_notices_are_a_section_and_absent_ones_leave_none():
    with_two = replace(synthetic_run(), notices=("a.json: 3 images left out", "b.json: 1 image has <150> objects"))
    page = parsed(contents_of(with_two))
    section = page.find(".//div[@id='notices']")
    assert [shown_text(item).strip() for item in section.iter("li")] == list(with_two.notices)
    assert parsed(contents_of(replace(with_two, notices=()))).find(".//div[@id='notices']") is None


def test_a_run_without_targets_is_called_done_and_has_no_target():
    run = synthetic_run()
    verdict = replace(run.verdict, state="done", box_target=0.0, mask_target=0.0)
    page = parsed(contents_of(replace(run, verdict=verdict)))
    (badge,) = page.findall(".//p[@class='verdict-state']/span")
    assert (badge.get("class"), badge.text) == ("badge state-done", "Done")
    assert shown_text(page.find(".//dl")).count("target none") == 2
    assert page.find(".//span[@class='meter']") is None
