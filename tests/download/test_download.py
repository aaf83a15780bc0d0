import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from default_signals import default_signals
from hostile_server import Answer, HostileServer, refused_url

from maskperf.download import download as download_module
from maskperf.download.download import Listener, Patience, fetch
from maskperf.download.release import RemoteFile
from maskperf.errors import EXIT_DATA, DataError

SOURCES = Path(download_module.__file__).resolve().parents[2]
CONTENT = b"PK\x03\x04" + np.random.default_rng(0).bytes(300_000)
SIZE = len(CONTENT)
MD5 = hashlib.md5(CONTENT).hexdigest()
PATH = "/zips/file.zip"
QUICK = Patience(timeout_seconds=5.0, first_wait_seconds=0.001, longest_wait_seconds=0.01, progress_bytes=100_000)


@pytest.fixture(autouse=True)
def without_proxies(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


class Said(list):
    """The messages of a download, and its progress."""

    def __init__(self):
        self.progress = []

    def listener(self):
        return Listener(say=self.append, advance=lambda *words: self.progress.append(words))


def remote(url, **changes):
    return RemoteFile(**{"name": "file.zip", "url": url, "md5": MD5, "about_bytes": SIZE, **changes})


def get(server, target, patience=QUICK, **changes):
    """Return what was said, after the file was fetched and found to be right."""
    said = Said()
    digests = fetch(remote(server.url + PATH, **changes), target, listener=said.listener(), patience=patience)
    assert target.read_bytes() == CONTENT
    assert digests.md5 == MD5
    assert digests.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    return said


def fail(server, target, patience=QUICK, **changes):
    """Return the only problem and what was said, after the file could not be had."""
    said = Said()
    with pytest.raises(DataError) as caught:
        fetch(remote(server.url + PATH, **changes), target, listener=said.listener(), patience=patience)
    assert caught.value.exit_code == EXIT_DATA
    assert not target.exists()
    (problem,) = caught.value.problems
    return problem, said


def serving(*answers, content=CONTENT):
    return HostileServer({PATH: content}, {PATH: answers})


@pytest.fixture
def target(tmp_path):
    return tmp_path / "file.zip"


def test_a_file_is_fetched_in_one_request(target):
    with serving() as server:
        said = get(server, target)
    assert server.ranges() == [None]
    assert said == []
    assert {("file.zip", SIZE, SIZE), ("file.zip: verifying", SIZE, SIZE)} <= set(said.progress)


@pytest.mark.parametrize("cut", [0, 1, 3, 65_536, SIZE // 2, SIZE - 1])
def test_a_connection_cut_anywhere_is_continued_where_it_was_cut(target, cut):
    with serving(Answer(sends_bytes=cut)) as server:
        said = get(server, target)
    assert server.ranges() == [None, f"bytes={cut}-" if cut else None]
    assert server.requests[1].headers.get("If-Range") == ('"one"' if cut else None)
    assert f"cut at byte {cut:,} of {SIZE:,}" in said[0]


def test_many_cuts_are_no_failure_as_long_as_each_connection_brings_enough(target):
    cuts = [Answer(sends_bytes=40_000) for _ in range(6)]
    with serving(*cuts) as server:
        get(server, target, Patience(tries=2, first_wait_seconds=0.001, progress_bytes=40_000))
    assert len(server.requests) == 7


def test_connections_that_bring_too_little_are_given_up(target):
    with serving(*[Answer(sends_bytes=10) for _ in range(9)]) as server:
        problem, _ = fail(server, target, Patience(tries=3, first_wait_seconds=0.001, progress_bytes=1000))
    assert len(server.requests) == 3
    assert problem.field == "download"
    assert (target.parent / "file.zip.partial").stat().st_size == 30


def test_the_next_call_continues_what_the_last_one_left(target):
    with serving(Answer(sends_bytes=100_000), Answer(status=503)) as server:
        fail(server, target, Patience(tries=2, first_wait_seconds=0.001))
        get(server, target)
    assert server.ranges() == [None, "bytes=100000-", "bytes=100000-"]


def test_a_whole_partial_file_needs_no_request(target):
    (target.parent / "file.zip.partial").write_bytes(CONTENT)
    origin = {"url": "http://elsewhere", "validator": "", "num_bytes": SIZE}
    (target.parent / "file.zip.partial.json").write_text(json.dumps(origin))
    with serving() as server:
        get(server, target)
    assert server.requests == []


@pytest.mark.parametrize(
    "record",
    [None, "", "{", "[]", '{"url": 5, "validator": "", "num_bytes": 3}', '{"url": "x", "validator": ""}']
    + ['{"url": "x", "validator": "a\\r\\nb", "num_bytes": 9999999}', '{"url": "x", "validator": "", "num_bytes": 2}'],
)
def test_bytes_of_unknown_origin_are_not_continued(target, record):
    (target.parent / "file.zip.partial").write_bytes(b"strange bytes")
    if record is not None:
        (target.parent / "file.zip.partial.json").write_text(record)
    with serving() as server:
        get(server, target)
    assert server.ranges() == [None]


def test_another_address_continues_the_same_file_without_the_validator_of_the_first(target):
    with serving(Answer(sends_bytes=100_000), Answer(status=404), Answer(status=404)) as server:
        fail(server, target)
    with serving(Answer(etag='"two"')) as mirror:
        get(mirror, target)
    assert mirror.ranges() == ["bytes=100000-"]
    assert "If-Range" not in mirror.requests[0].headers


def test_a_server_that_ignores_ranges_is_read_from_the_start(target):
    with serving(Answer(sends_bytes=100_000), Answer(ignores_range=True)) as server:
        said = get(server, target)
    assert "from byte 0" in said[1]


@pytest.mark.parametrize("ignores_if_range", [False, True])
def test_a_file_that_changed_between_two_parts_is_fetched_anew(target, ignores_if_range):
    other = bytes(reversed(CONTENT))
    plan = [Answer(body=other, sends_bytes=100_000, etag='"old"'), Answer(ignores_if_range=ignores_if_range)]
    with serving(*plan) as server:
        get(server, target)
    assert server.ranges()[:2] == [None, "bytes=100000-"]


def test_a_weak_etag_is_not_used_to_continue_but_the_date_is(target):
    date = "Wed, 11 Jul 2018 01:00:00 GMT"
    first = Answer(sends_bytes=9, etag='W/"x"', headers={"Last-Modified": date})
    second = Answer(etag='W/"x"', headers={"Last-Modified": date}, ignores_if_range=True)
    with serving(first, second) as server:
        get(server, target)
    assert server.requests[1].headers["If-Range"] == date


def test_a_part_from_another_position_is_not_appended(target):
    wrong = Answer(status=206, headers={"Content-Range": f"bytes 7-{SIZE - 1}/{SIZE}"})
    with serving(Answer(sends_bytes=100_000), wrong) as server:
        get(server, target)
    assert server.ranges() == [None, "bytes=100000-", None]


def test_a_length_that_is_too_long_does_not_hide_a_whole_file(target):
    with serving(Answer(declared_bytes=SIZE + 500)) as server:
        get(server, target)
    assert server.ranges() == [None, f"bytes={SIZE}-"]


def test_a_file_without_a_length_is_fetched(target):
    with serving(Answer(without=("Content-Length",))) as server:
        said = get(server, target)
    assert ("file.zip", SIZE, 0) in said.progress


def test_an_endless_file_is_stopped(target):
    with serving(*[Answer(body=CONTENT * 20, without=("Content-Length",))] * 2) as server:
        problem, _ = fail(server, target)
    assert "more than the file can have" in problem.value
    assert list(target.parent.iterdir()) == []


def test_a_file_of_another_size_is_refused_before_it_is_fetched(target):
    with serving(content=CONTENT * 3) as server:
        problem, said = fail(server, target)
    assert f"{3 * SIZE:,}" in problem.value and f"{SIZE:,}" in problem.value
    assert said.progress == []


def wrong_by_one_byte():
    return CONTENT[:5000] + bytes([CONTENT[5000] ^ 1]) + CONTENT[5001:]


def test_one_wrong_byte_is_fixed_by_one_more_download(target):
    with serving(Answer(body=wrong_by_one_byte())) as server:
        said = get(server, target)
    assert len(server.requests) == 2
    assert MD5 in said[0]


def test_one_byte_that_is_always_wrong_is_an_error_with_both_digests(target):
    wrong = wrong_by_one_byte()
    with serving(content=wrong) as server:
        problem, _ = fail(server, target)
    assert len(server.requests) == 2
    assert problem.value == f"{hashlib.md5(wrong).hexdigest()} instead of {MD5}"
    assert list(target.parent.iterdir()) == []


def test_a_server_that_stalls_is_left_and_the_rest_fetched_from_it_later(target):
    with serving(Answer(sends_bytes=100_000, stalls=True)) as server:
        said = get(server, target, Patience(timeout_seconds=0.2, first_wait_seconds=0.001))
    assert "sent nothing for too long" in said[0]
    assert server.ranges() == [None, "bytes=100000-"]


def test_a_slow_drip_is_left_though_no_single_read_takes_long(target):
    drip = Answer(piece_bytes=10, piece_seconds=0.02)
    patience = Patience(first_wait_seconds=0.001, slowest_bytes_per_second=5000.0, window_seconds=0.2)
    with serving(drip) as server:
        said = get(server, target, patience)
    assert "bytes per second" in said[0]
    assert server.ranges()[1].startswith("bytes=")


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_server_in_trouble_is_asked_again(target, status):
    with serving(*[Answer(status=status, body=b"sorry")] * 4) as server:
        said = get(server, target)
    assert len(said) == 4
    assert f"answered {status}" in said[0]


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_lasting_refusal_is_final_after_the_second_time(target, status):
    with serving(*[Answer(status=status)] * 5) as server:
        problem, _ = fail(server, target)
    assert len(server.requests) == 2
    assert f"answered {status}" in problem.value


def test_the_wait_that_the_server_asks_for_is_kept_within_reason(target, monkeypatch):
    waits = []
    monkeypatch.setattr(download_module.time, "sleep", waits.append)
    plan = [Answer(status=503, headers={"Retry-After": text}) for text in ("3", "999999", "Wed", "-1")]
    with serving(*plan) as server:
        get(server, target, Patience(first_wait_seconds=0.5, longest_wait_seconds=20.0))
    assert waits == [3.0, 20.0, 2.0, 4.0]


PAGE = b"\n<!DOCTYPE html><html><body>Please sign in</body></html>"


@pytest.mark.parametrize("headers", [{"Content-Type": "text/html; charset=utf-8"}, {"Content-Type": "application/zip"}])
def test_a_web_page_with_status_200_is_not_taken_for_the_file(target, headers):
    with serving(*[Answer(body=PAGE, headers=headers)] * 2) as server:
        problem, _ = fail(server, target, about_bytes=len(PAGE))
    assert "web page" in problem.value
    assert list(target.parent.iterdir()) == []


def test_a_web_page_in_between_does_not_spoil_what_is_there(target):
    page = Answer(status=200, body=PAGE, headers={"Content-Type": "text/html"})
    with serving(Answer(sends_bytes=100_000), page) as server:
        get(server, target)
    assert server.ranges() == [None, "bytes=100000-", "bytes=100000-"]


def test_a_redirect_is_followed_and_keeps_the_range(target):
    redirect = Answer(status=302, headers={"Location": "/elsewhere"})
    with serving(redirect, redirect) as server:
        server.files["/elsewhere"] = CONTENT
        server.plans["/elsewhere"] = [Answer(sends_bytes=77)]
        get(server, target)
    assert [request.path for request in server.requests] == [PATH, "/elsewhere"] * 2
    assert server.ranges() == [None, None, "bytes=77-", "bytes=77-"]


def test_redirects_in_a_circle_end(target):
    circle = [Answer(status=302, headers={"Location": PATH})] * 40
    with serving(*circle) as server:
        problem, _ = fail(server, target)
    assert "302" in problem.value
    assert len(server.requests) <= 12


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x"])
def test_a_redirect_away_from_the_web_is_not_followed(target, address):
    with serving(*[Answer(status=302, headers={"Location": address})] * 2) as server:
        problem, _ = fail(server, target)
    assert "302" in problem.value or "not followed" in problem.value
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("old", "new", "is_followed"),
    [("https", "http", False), ("https", "https", True), ("http", "https", True), ("http", "http", True)],
)
def test_a_redirect_never_leaves_the_safe_transport(old, new, is_followed):
    request = download_module.urllib.request.Request(f"{old}://a.example/x")
    follow = download_module._Redirects().redirect_request
    with open(os.devnull, "rb") as answer:
        if is_followed:
            assert follow(request, answer, 302, "Found", {}, f"{new}://b.example/y").full_url == f"{new}://b.example/y"
        else:
            with pytest.raises(download_module._AttemptFailed, match="not followed"):
                follow(request, answer, 302, "Found", {}, f"{new}://b.example/y")


def test_without_a_network_the_message_explains_how_to_do_it_by_hand(target):
    with refused_url() as nobody, pytest.raises(DataError) as caught:
        url = nobody + PATH
        fetch(remote(url), target, listener=Said().listener(), patience=Patience(tries=2, first_wait_seconds=0.001))
    line = str(caught.value)
    assert "refused" in line
    assert f"fetch {url} by other means (MD5 {MD5}) and put it at {target}" in line


def test_control_characters_of_a_server_do_not_reach_the_screen(target):
    with serving() as server:
        server.plans[PATH] = [Answer(status=302, headers={"Location": "\x1b]0;x\x07:evil"})] * 2
        problem, said = fail(server, target)
    assert all(text.isprintable() for text in [*said, problem.line()])


KILLED = """
import sys
from pathlib import Path
from maskperf.download.download import Listener, fetch
from maskperf.download.release import RemoteFile
say = lambda *words: print(*words, flush=True)
file = RemoteFile(name="file.zip", url=sys.argv[1], md5=sys.argv[3], about_bytes=int(sys.argv[4]))
fetch(file, Path(sys.argv[2]), listener=Listener(say=say, advance=say))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_download_is_continued(target, number):
    with serving(Answer(sends_bytes=150_000, stalls=True)) as server:
        words = [server.url + PATH, str(target), MD5, str(SIZE)]
        environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
        command = [sys.executable, "-c", KILLED, *words]
        with default_signals():
            started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
        with started as process:
            for line in process.stdout:
                if int(line.split()[1]) >= 150_000:
                    break
            process.send_signal(number)
            process.wait(timeout=300)
        get(server, target)
    resumed_at = int(server.ranges()[1].removeprefix("bytes=").removesuffix("-"))
    assert 0 < resumed_at <= 150_000
