"""Files that are broken, and wrappings that are undone."""

import gzip
import json

import pytest
from coco_folder import annotation, good_document, only_problem, problems_of, read

from maskperf.data.coco.index import read_coco
from maskperf.errors import DataError


def good_bytes(indent=None) -> bytes:
    return json.dumps(good_document(), indent=indent).encode()


def changed(**changes) -> bytes:
    return json.dumps({key: value for key, value in (good_document() | changes).items() if value is not None}).encode()


GOOD, TRAILING = good_bytes(), good_bytes().replace(b"}]", b"}, ]")
DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(("name", "fact"), [("nothing.json", "does not exist"), ("", "cannot be read")])
def test_a_missing_file_and_a_folder_are_named(tmp_path, name, fact):
    with pytest.raises(DataError, match=fact) as caught:
        read_coco(tmp_path / name, tmp_path, training=True)
    assert caught.value.problems[0].file == str(tmp_path / name)


@pytest.mark.parametrize(
    ("data", "facts"),
    [
        (b"", ["empty"]),
        (b" \n", ["empty"]),
        (b"PK\x03\x04" + GOOD, ["zip"]),
        (gzip.compress(GOOD, mtime=0)[:-20], ["cut short"]),
        (gzip.compress(GOOD, mtime=0)[:40] + b"0000000000", ["damaged"]),
        (b"\xff\xfe" + GOOD[:-1] + b"\x00\xd8", ["UTF-16"]),
        (GOOD.replace(b"cup", b"c\xffp"), [f"not UTF-8 at byte {GOOD.index(b'cup') + 1} (line 1)", "0xff", "unpack"]),
        (GOOD[:-1] + b', "deep": ' + DEEP + b"}", ["too deep"]),
        (GOOD.replace(b'"id": 101', b'"id": ' + b"1" * 5000), ["too long"]),
        (GOOD.replace(b'"cup"', b'"\\ud800"'), ["not strict JSON"]),
        (b'[{"image_id": 1, "score": 0.5}]', ["looks like a file of results"]),
        (GOOD + b"1", ["malformed", "Extra data"]),
        (GOOD[:-1] + b"\xc3", [f"not UTF-8 at byte {len(GOOD) - 1}"]),
        (changed(annotations=[{}, "oops", {}]), ["field annotations[1], value 'oops'", "not an object"]),
        *(
            (changed(**{name: value}), [f"field {name},", f"the list `{name}` is missing"])
            for name in ("images", "annotations", "categories")
            for value in (None, {}, "text")
        ),
    ],
)
def test_what_is_no_text_or_no_instances_file_is_named(tmp_path, data, facts):
    line = only_problem(tmp_path, data).line()
    assert all(fact in line for fact in facts), line


def test_wherever_the_file_is_cut_the_message_says_so(tmp_path):
    data = good_bytes(indent=1)
    for length in range(1, len(data) - 1, 37):
        problem = only_problem(tmp_path, data[:length])
        line = data[:length].count(b"\n") + 1
        assert "ends in the middle of the JSON" in problem.message and problem.fix == "Fetch or export the file again."
        assert f"at byte {length} (line {line})" in problem.message


def test_malformed_json_is_named_with_byte_and_line(tmp_path):
    data = good_bytes(indent=1).replace(b'"width": 60', b'"width": 6:0', 1)
    position = data.index(b":0,")
    problem = only_problem(tmp_path, data)
    assert f"at byte {position} (line {data[:position].count(10) + 1})" in problem.message
    assert problem.value.startswith("':0,")


@pytest.mark.parametrize(
    ("data", "fact"),
    [
        (b"\xef\xbb\xbf" + GOOD, "byte order mark"),
        (gzip.compress(GOOD, mtime=0), "gzip"),
        (gzip.compress(b"\xef\xbb\xbf" + GOOD, mtime=0), "byte order mark"),
        (GOOD.decode().encode("utf-16"), "UTF-16"),
        (b"\xfe\xff" + GOOD.decode().encode("utf-16-be"), "UTF-16"),
        (TRAILING, "trailing comma"),
        (good_bytes(indent=1).replace(b"\n  }", b",\n  }"), "trailing comma"),
        (b"\xef\xbb\xbf" + TRAILING, "trailing comma"),
    ],
)
def test_what_a_plain_text_was_wrapped_in_is_undone_with_a_notice(tmp_path, data, fact):
    index = read(tmp_path, data)
    assert len(index.labels) == 3
    assert any(fact in notice for notice in index.notices) and not index.is_plain


@pytest.mark.parametrize(("data", "name"), [(TRAILING, 'one, ] two \\", }'), (GOOD, "K\u00e4se")])
def test_names_of_any_characters_are_read(tmp_path, data, name):
    for is_ascii in (True, False):
        text = json.dumps(name, ensure_ascii=is_ascii).encode()
        assert read(tmp_path, data.replace(b'"cup"', text)).category_names == ("dog", name)


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e400"])
@pytest.mark.parametrize("field", ["bbox[2]", "segmentation[0]"])
def test_a_literal_that_is_not_finite_is_named_with_its_annotation(tmp_path, literal, field):
    bad = annotation(555, 10)
    (bad["bbox"] if field == "bbox[2]" else bad["segmentation"][0])[2] = "HERE"
    data = changed(annotations=[*good_document()["annotations"], bad])
    problem = only_problem(tmp_path, data.replace(b'"HERE"', literal.encode()))
    assert (problem.where, problem.field) == ("annotation id 555", field)
    assert ("nan" in problem.value or "inf" in problem.value) and "finite" in problem.message


def test_a_literal_that_is_not_finite_in_an_unused_field_is_named(tmp_path):
    document = good_document()
    document["annotations"][0]["score"] = float("nan")
    document["info"]["version"] = float("inf")
    problems = problems_of(tmp_path, json.dumps(document).encode())
    expected = [("info, entry 0", "value"), ("annotation id 101", "score")]
    assert [(problem.where, problem.field) for problem in problems] == expected
    assert all("finite" in problem.message for problem in problems)


def test_unknown_fields_are_ignored(tmp_path):
    document = good_document()
    for data in (GOOD, TRAILING.replace(b'"id": 101', b'"key": 5, "id": 101')):
        assert len(read(tmp_path, data).labels) == 3
    document["annotations"][0]["attributes"] = {"occluded": [True]}
    assert len(read(tmp_path, json.dumps(document | {"extra": [1, {"a": None}]}).encode()).labels) == 3
