import hashlib
import io
import json

import msgspec
import pytest

from maskperf.data.coco.stream import ListStream, NotPlain

DOCUMENT = {
    "info": {"year": 2017, "note": "K\u00e4se }, { ]"},
    "images": [{"id": 1, "name": "a}, {b"}, {"id": 2, "name": 'say "}],"'}],
    "licenses": [],
    "annotations": [
        {"id": number, "parts": [{"id": 7}, {"id": 8}], "text": "}]" * (number % 3), "ring": [0.5] * number}
        for number in range(40)
    ],
    "version": 12.5,
    "categories": [{"id": 1}],
}
LISTS = ("images", "annotations", "categories")


def read(data: bytes, block_bytes: int) -> tuple[dict[str, list], str]:
    found = {name: [] for name in LISTS}

    def taker(name):
        def take(part: bytes) -> None:
            found[name] += msgspec.json.decode(part, type=list[dict])

        return take

    sha256 = ListStream(io.BytesIO(data), block_bytes).read({name: taker(name) for name in LISTS})
    return found, sha256


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 50, 333, 1000, 1 << 20])
@pytest.mark.parametrize("layout", [{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}])
def test_the_lists_are_whole_whatever_the_size_of_a_block(block_bytes, layout):
    data = json.dumps(DOCUMENT, **layout).encode()
    found, sha256 = read(data + b"\n", block_bytes)
    assert found == {name: DOCUMENT[name] for name in LISTS}
    assert sha256 == hashlib.sha256(data + b"\n").hexdigest()


def test_a_large_list_comes_in_parts():
    document = {"annotations": [{"id": number} for number in range(5000)], "images": [], "categories": []}
    sizes = []
    takers = {name: lambda part: sizes.append(len(msgspec.json.decode(part, type=list[dict]))) for name in LISTS}
    ListStream(io.BytesIO(json.dumps(document).encode()), 1000).read(takers)
    assert sum(sizes) == 5000
    assert max(sizes) < 200


def test_wherever_the_file_is_cut_it_is_refused():
    data = json.dumps(DOCUMENT).encode()
    for length in range(0, len(data) - 1, 29):
        with pytest.raises(NotPlain):
            read(data[:length], 100)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + "1",
        lambda text: "[" + text + "]",
        lambda text: "\ufeff" + text,
        lambda text: text.replace('"categories"', '"cats"'),
        lambda text: text.replace('"licenses"', '"images"'),
        lambda text: text.replace('"licenses"', '"info"'),
        lambda text: text.replace("12.5", "NaN"),
        lambda text: text.replace('{"id": 1}]', '{"id": 1}, 5]'),
        lambda text: text.replace('{"id": 1}]', '{"id": 1},]'),
        lambda text: text.replace('{"id": 1}]', '{"id": 1} {"id": 2}]'),
        lambda text: text.replace('{"id": 1}]', '{"id": 1}}'),
        lambda text: text.replace('[{"id": 1}]', "5"),
        lambda text: text[:-1] + ', "deep": ' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
)
def test_what_is_not_plain_is_refused(change):
    text = json.dumps(DOCUMENT)
    changed = change(text)
    assert changed != text
    for block_bytes in (64, 1 << 20):
        with pytest.raises(NotPlain):
            read(changed.encode(), block_bytes)


@pytest.mark.parametrize("bad", [b"\xff", b"\xc3"])
def test_bytes_that_are_not_utf8_are_refused_even_in_what_nobody_takes(bad):
    data = json.dumps(DOCUMENT, ensure_ascii=False).encode().replace(b"year", b"ye" + bad)
    for block_bytes in (1, 64, 1 << 20):
        with pytest.raises(NotPlain):
            read(data, block_bytes)
