import gzip
import json

import pytest
from coco_folder import annotation, good_document, write_json

from maskperf.data.coco.index import read_coco
from maskperf.errors import DataError


def problems_of_bytes(folder, data: bytes):
    path = folder / "instances.json"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_coco(path, folder, training=True)
    problems = caught.value.problems
    for problem in problems:
        assert problem.file == str(path)
        assert all((problem.where, problem.field, problem.value, problem.message, problem.fix))
    return problems


def only_problem(problems):
    assert len(problems) == 1
    return problems[0]


def good_bytes(indent=None) -> bytes:
    return json.dumps(good_document(), indent=indent).encode()


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "nothing.json"
    with pytest.raises(DataError) as caught:
        read_coco(path, tmp_path, training=True)
    problem = only_problem(caught.value.problems)
    assert (problem.file, problem.message) == (str(path), "The file does not exist.")


def test_a_folder_in_place_of_the_file_is_named(tmp_path):
    with pytest.raises(DataError, match="The file cannot be read") as caught:
        read_coco(tmp_path, tmp_path, training=True)
    assert "directory" in only_problem(caught.value.problems).value


@pytest.mark.parametrize("data", [b"", b" \n"])
def test_an_empty_file_is_named(tmp_path, data):
    assert only_problem(problems_of_bytes(tmp_path, data)).message == "The file is empty."


def test_wherever_the_file_is_cut_the_message_says_so(tmp_path):
    data = good_bytes(indent=1)
    for length in range(1, len(data) - 1, 37):
        problem = only_problem(problems_of_bytes(tmp_path, data[:length]))
        line = data[:length].count(b"\n") + 1
        assert problem.message.startswith("The file ends in the middle of the JSON")
        assert f"at byte {length} (line {line})" in problem.message
        assert problem.fix == "Fetch or export the file again."


def test_malformed_json_is_named_with_byte_and_line(tmp_path):
    data = good_bytes(indent=1).replace(b'"width": 60', b'"width": 6:0', 1)
    position = data.index(b":0,")
    problem = only_problem(problems_of_bytes(tmp_path, data))
    assert f"at byte {position} (line {data[:position].count(10) + 1})" in problem.message
    assert problem.value.startswith("':0,")


def test_bytes_that_are_not_utf8_are_named_with_their_position(tmp_path):
    data = good_bytes().replace(b"cup", b"c\xffp")
    problem = only_problem(problems_of_bytes(tmp_path, data))
    assert f"not UTF-8 at byte {data.index(255)} (line 1)" in problem.message
    assert problem.value == "byte 0xff"
    assert "unpack" in problem.fix


def test_utf8_names_are_read(tmp_path):
    path = tmp_path / "instances.json"
    path.write_bytes(good_bytes().replace(b"cup", "K\u00e4se".encode()))
    assert read_coco(path, tmp_path, training=True).category_names == ("dog", "K\u00e4se")


def index_of_bytes(folder, data: bytes):
    path = folder / "instances.json"
    path.write_bytes(data)
    return read_coco(path, folder, training=True)


TRAILING = good_bytes().replace(b"}]", b"}, ]")


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"\xef\xbb\xbf" + good_bytes(), "byte order mark"),
        (gzip.compress(good_bytes(), mtime=0), "gzip"),
        (gzip.compress(b"\xef\xbb\xbf" + good_bytes(), mtime=0), "byte order mark"),
        (good_bytes().decode().encode("utf-16"), "UTF-16"),
        (b"\xfe\xff" + good_bytes().decode().encode("utf-16-be"), "UTF-16"),
        (TRAILING, "trailing comma"),
        (good_bytes(indent=1).replace(b"\n  }", b",\n  }"), "trailing comma"),
        (b"\xef\xbb\xbf" + TRAILING, "trailing comma"),
    ],
)
def test_what_a_plain_text_was_wrapped_in_is_undone_with_a_notice(tmp_path, data, word):
    index = index_of_bytes(tmp_path, data)
    assert len(index.labels) == 3
    assert any(word in notice for notice in index.notices)


def test_a_comma_inside_text_is_no_trailing_comma(tmp_path):
    name = 'one, ] two \\", }'
    data = TRAILING.replace(b'"cup"', json.dumps(name).encode())
    assert index_of_bytes(tmp_path, data).category_names == ("dog", name)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"PK\x03\x04" + good_bytes(), "zip"),
        (gzip.compress(good_bytes(), mtime=0)[:-20], "cut short"),
        (gzip.compress(good_bytes(), mtime=0)[:40] + b"0000000000", "damaged"),
        (b"\xff\xfe" + good_bytes()[:-1] + b"\x00\xd8", "UTF-16"),
    ],
)
def test_what_cannot_be_unwrapped_is_named(tmp_path, data, word):
    assert word in only_problem(problems_of_bytes(tmp_path, data)).message


@pytest.mark.parametrize("name", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", [None, {}, "text"])
def test_a_missing_list_is_named(tmp_path, name, value):
    document = good_document()
    document[name] = value
    if value is None:
        del document[name]
    problem = only_problem(problems_of_bytes(tmp_path, json.dumps(document).encode()))
    assert problem.field == name
    assert problem.message == f"This is not an instances file: the list `{name}` is missing."


def test_a_results_file_is_told_apart(tmp_path):
    problem = only_problem(problems_of_bytes(tmp_path, b'[{"image_id": 1, "score": 0.5}]'))
    assert "looks like a file of results" in problem.message


def test_an_entry_that_is_no_object_is_named(tmp_path):
    document = good_document()
    document["annotations"].insert(1, "oops")
    problem = only_problem(problems_of_bytes(tmp_path, json.dumps(document).encode()))
    assert (problem.field, problem.value) == ("annotations[1]", "'oops'")


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e400"])
@pytest.mark.parametrize("field", ["bbox[2]", "segmentation[0]"])
def test_a_literal_that_is_not_finite_is_named_with_its_annotation(tmp_path, literal, field):
    document = good_document()
    bad = annotation(555, 10)
    (bad["bbox"] if field == "bbox[2]" else bad["segmentation"][0])[2] = "PLACE"
    document["annotations"].append(bad)
    data = json.dumps(document).replace('"PLACE"', literal).encode()
    problem = only_problem(problems_of_bytes(tmp_path, data))
    assert (problem.where, problem.field) == ("annotation id 555", field)
    assert "nan" in problem.value or "inf" in problem.value
    assert "finite" in problem.message


def test_a_literal_that_is_not_finite_in_an_unused_field_is_named(tmp_path):
    document = good_document()
    document["annotations"][0]["area"] = float("nan")
    document["info"]["version"] = float("inf")
    problems = problems_of_bytes(tmp_path, json.dumps(document).encode())
    expected = [("info, entry 0", "value"), ("annotation id 101", "area")]
    assert [(problem.where, problem.field) for problem in problems] == expected
    assert all("finite" in problem.message for problem in problems)


def test_lists_without_end_are_refused(tmp_path):
    document = json.dumps(good_document())[:-1] + ', "deep": ' + "[" * 100_000 + "]" * 100_000 + "}"
    assert "too deep" in only_problem(problems_of_bytes(tmp_path, document.encode())).message


def test_a_number_of_thousands_of_digits_is_refused(tmp_path):
    data = good_bytes().replace(b'"id": 101', b'"id": ' + b"1" * 5000)
    assert problems_of_bytes(tmp_path, data)


def test_unknown_fields_are_ignored(tmp_path):
    document = good_document()
    document["annotations"][0]["attributes"] = {"occluded": [True]}
    document["extra"] = [1, {"a": None}]
    assert len(read_coco(write_json(tmp_path, document), tmp_path, training=True).labels) == 3
