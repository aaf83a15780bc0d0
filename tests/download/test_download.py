import hashlib
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
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


class Messages(list):
    """The messages of a download, and its progress."""

    def __init__(self):
        self.progress = []

    def listener(self):
        return Listener(say=self.append, advance=lambda *amounts: self.progress.append(amounts))


def remote(url, **changes):
    return RemoteFile(**{"name": "file.zip", "url": url, "md5": MD5, "about_bytes": SIZE, **changes})


def get(server, target, patience=QUICK, **changes):
    """Return the messages, after the file was fetched and found to be right."""
    messages = Messages()
    digests = fetch(remote(server.url + PATH, **changes), target, listener=messages.listener(), patience=patience)
    assert target.read_bytes() == CONTENT
    assert (digests.md5, digests.sha256) == (MD5, hashlib.sha256(CONTENT).hexdigest())
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    return messages


def fail(server, target, patience=QUICK, **changes):
    """Return the only problem and the messages, after the file could not be had."""
    messages = Messages()
    with pytest.raises(DataError) as caught:
        fetch(remote(server.url + PATH, **changes), target, listener=messages.listener(), patience=patience)
    assert caught.value.exit_code == EXIT_DATA and not target.exists()
    (problem,) = caught.value.problems
    return problem, messages


def serving(*answers, content=CONTENT):
    return HostileServer({PATH: content}, {PATH: answers})


@pytest.fixture
def target(tmp_path):
    return tmp_path / "file.zip"


def test_a_file_is_fetched_in_one_request(target):
    with serving() as server:
        messages = get(server, target)
    assert server.ranges() == [None] and messages == []
    assert {("file.zip", SIZE, SIZE), ("file.zip: verifying", SIZE, SIZE)} <= set(messages.progress)


PAGE = b"\n<!DOCTYPE html><html><body>Please sign in</body></html>"
PAGE_TYPE = {"Content-Type": "text/html; charset=utf-8"}
OTHER = bytes(reversed(CONTENT))
WRONG_BYTE = CONTENT[:5000] + bytes([CONTENT[5000] ^ 1]) + CONTENT[5001:]
HALF = Answer(sends_bytes=100_000)
RESUMED = "bytes=100000-"
OTHER_PART = Answer(status=206, headers={"Content-Range": f"bytes 7-{SIZE - 1}/{SIZE}"})


@pytest.mark.parametrize(
    ("answers", "ranges", "message"),
    [
        *[
            ([Answer(sends_bytes=cut)], [None, f"bytes={cut}-" if cut else None], f"cut at byte {cut:,} of {SIZE:,}")
            for cut in (0, 1, 65_536, SIZE - 1)
        ],
        ([HALF, Answer(ignores_range=True)], [None, RESUMED], "from byte 0"),
        ([Answer(body=OTHER, sends_bytes=100_000)], [None, RESUMED, None], "MD5"),
        ([HALF, OTHER_PART], [None, RESUMED, None], "another part"),
        ([HALF, Answer(status=200, body=PAGE, headers=PAGE_TYPE)], [None, RESUMED, RESUMED], "web page"),
        ([Answer(declared_bytes=SIZE + 500)], [None, f"bytes={SIZE}-"], "cut at byte"),
        ([Answer(declared_bytes=SIZE - 500)], [None, None], MD5),
        ([Answer(body=WRONG_BYTE)], [None, None], MD5),
        ([Answer(sends_bytes=100_000, stalls=True)], [None, RESUMED], "nothing for too long"),
        *[
            ([Answer(status=status, body=b"sorry")] * 4, [None] * 5, str(status))
            for status in (408, 429, 500, 502, 503)
        ],
        ([Answer(status=404)], [None, None], "404"),
    ],
)
def test_a_failed_attempt_is_followed_by_one_that_brings_the_rest(target, answers, ranges, message):
    with serving(*answers) as server:
        messages = get(server, target, replace(QUICK, timeout_seconds=0.3))
    assert server.ranges() == ranges
    assert any(message in text for text in messages)


def test_a_slow_server_is_replaced_though_no_single_read_takes_long(target):
    patience = Patience(first_wait_seconds=0.001, slowest_bytes_per_second=5000.0, window_seconds=0.2)
    with serving(Answer(piece_bytes=10, piece_seconds=0.02)) as server:
        messages = get(server, target, patience)
    assert "bytes per second" in messages[0] and server.ranges()[1].startswith("bytes=")


def redirect(address):
    return Answer(status=302, headers={"Location": address})


@pytest.mark.parametrize(
    ("answer", "changes", "reason"),
    [
        (Answer(body=CONTENT * 20, without=("Content-Length",)), {}, "more than the file can have"),
        (Answer(body=CONTENT * 3), {}, f"{3 * SIZE:,}"),
        *[(Answer(status=status), {}, f"answered {status}") for status in (401, 403, 404, 410)],
        (Answer(body=PAGE, headers=PAGE_TYPE), {"about_bytes": len(PAGE)}, "web page"),
        (Answer(body=PAGE, headers={"Content-Type": "application/zip"}), {"about_bytes": len(PAGE)}, "web page"),
        *[(redirect(url), {}, "302") for url in (PATH, "file:///etc/passwd", "data:text/plain,x")],
        (redirect("ftp://127.0.0.1/x"), {}, "not followed"),
        (redirect("\x1b]0;x\x07:evil"), {}, "answered 404"),
    ],
)
def test_a_lasting_failure_ends_the_download_the_second_time(target, answer, changes, reason):
    with serving(*[answer] * 40) as server:
        problem, messages = fail(server, target, **changes)
    requests = [request for request in server.requests if request.path == PATH]
    assert len(requests) == 2 or (len(requests) <= 12 and answer.headers["Location"] == PATH)
    assert reason in problem.value and list(target.parent.iterdir()) == []
    assert all(text.isprintable() for text in [*messages, problem.line()])


def test_many_cuts_are_no_failure_as_long_as_each_connection_brings_enough(target):
    with serving(*[Answer(sends_bytes=40_000) for _ in range(6)]) as server:
        get(server, target, Patience(tries=2, first_wait_seconds=0.001, progress_bytes=40_000))
    assert len(server.requests) == 7


def test_connections_that_bring_too_little_are_given_up(target):
    with serving(*[Answer(sends_bytes=10) for _ in range(9)]) as server:
        problem, _ = fail(server, target, Patience(tries=3, first_wait_seconds=0.001, progress_bytes=1000))
    assert len(server.requests) == 3 and problem.field == "download"
    assert (target.parent / "file.zip.partial").stat().st_size == 30


def test_the_next_call_continues_what_the_last_one_left(target):
    with serving(Answer(sends_bytes=100_000), Answer(status=503)) as server:
        fail(server, target, Patience(tries=2, first_wait_seconds=0.001))
        get(server, target)
    assert server.ranges() == [None, "bytes=100000-", "bytes=100000-"]


@pytest.mark.parametrize(
    ("left", "ranges"),
    [
        (CONTENT, [f"bytes={SIZE}-"]),
        (CONTENT + b"x", [f"bytes={SIZE + 1}-", None]),
        (b"strange bytes", ["bytes=13-", None]),
        (b"", [None]),
    ],
    ids=["all of it", "more than all", "other bytes", "nothing"],
)
def test_whatever_an_earlier_call_left_the_file_is_right_in_the_end(target, left, ranges):
    (target.parent / "file.zip.partial").write_bytes(left)
    with serving() as server:
        get(server, target)
    assert server.ranges() == ranges


def test_a_file_without_a_length_is_fetched(target):
    with serving(Answer(without=("Content-Length",))) as server:
        messages = get(server, target)
    assert ("file.zip", SIZE, 0) in messages.progress


def test_one_byte_that_is_always_wrong_is_an_error_with_both_digests(target):
    with serving(content=WRONG_BYTE) as server:
        problem, _ = fail(server, target)
    assert len(server.requests) == 2 and list(target.parent.iterdir()) == []
    assert problem.value == f"{hashlib.md5(WRONG_BYTE).hexdigest()} instead of {MD5}"


def test_the_wait_that_the_server_asks_for_is_kept_within_reason(target, monkeypatch):
    waits = []
    monkeypatch.setattr(download_module.time, "sleep", waits.append)
    plan = [Answer(status=503, headers={"Retry-After": text}) for text in ("3", "999999", "Wed", "-1")]
    with serving(*plan) as server:
        get(server, target, Patience(first_wait_seconds=0.5, longest_wait_seconds=20.0))
    assert waits == [3.0, 20.0, 2.0, 4.0]


def test_a_redirect_is_followed_and_keeps_the_range(target):
    redirect = Answer(status=302, headers={"Location": "/elsewhere"})
    with serving(redirect, redirect) as server:
        server.files["/elsewhere"] = CONTENT
        server.plans["/elsewhere"] = [Answer(sends_bytes=77)]
        get(server, target)
    assert [request.path for request in server.requests] == [PATH, "/elsewhere"] * 2
    assert server.ranges() == [None, None, "bytes=77-", "bytes=77-"]


@pytest.mark.parametrize(
    ("old", "new", "is_followed"),
    [("https", "http", False), ("https", "https", True), ("http", "https", True), ("http", "http", True)],
)
def test_a_redirect_never_leaves_the_safe_transport(old, new, is_followed):
    request = download_module.urllib.request.Request(f"{old}://a.example/x")
    follow = download_module._Redirects().redirect_request
    address, refused = f"{new}://b.example/y", pytest.raises(download_module._AttemptFailed, match="not followed")
    with open(os.devnull, "rb") as answer, nullcontext() if is_followed else refused:
        assert follow(request, answer, 302, "Found", {}, address).full_url == address


def test_without_a_network_the_message_explains_how_to_do_it_by_hand(target):
    with refused_url() as nobody, pytest.raises(DataError) as caught:
        url = nobody + PATH
        fetch(remote(url), target, listener=Messages().listener(), patience=Patience(tries=2, first_wait_seconds=0.001))
    parts = ("refused", f"fetch {url} by other means (MD5 {MD5}) and put it at {target}")
    assert all(part in str(caught.value) for part in parts)


KILLED = """
import sys
from pathlib import Path
from maskperf.download.download import Listener, fetch
from maskperf.download.release import RemoteFile
say = lambda *texts: print(*texts, flush=True)
file = RemoteFile(name="file.zip", url=sys.argv[1], md5=sys.argv[3], about_bytes=int(sys.argv[4]))
fetch(file, Path(sys.argv[2]), listener=Listener(say=say, advance=say))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_download_is_continued(target, number):
    with serving(Answer(sends_bytes=150_000, stalls=True)) as server:
        environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
        command = [sys.executable, "-c", KILLED, server.url + PATH, str(target), MD5, str(SIZE)]
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
