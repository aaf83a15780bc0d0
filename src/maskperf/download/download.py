"""One file from the network: tried again, continued where it was cut, and kept only if its digest is right."""

import http.client
import re
import ssl
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from maskperf.download.checksums import CHUNK_BYTES, Digests
from maskperf.download.partial_file import Origin, PartialFile
from maskperf.errors import DataError, Problem

WRONG_SIZE_FACTOR = 2  # a file this many times larger or smaller than expected is another file
LASTING_TRIES = 2  # even "not found" is asked once more: a busy mirror may say it wrongly
PASSING_STATUS = (408, 416, 425, 429)  # of 4xx: those that another try may fix
USER_AGENT = "maskperf"
NETWORK_ERRORS = (OSError, http.client.HTTPException)  # URLError, time-outs and TLS errors are OSErrors


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file as its publisher gives it. `about_bytes` is for the space on the disk and to know another file early."""

    name: str
    url: str
    md5: str
    about_bytes: int


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a download is tried. A try that brings `progress_bytes` of new content makes the count start again."""

    tries: int = 6
    timeout_seconds: float = 30.0  # for the connection, and for each read
    first_wait_seconds: float = 1.0  # doubled after each failure in a row
    longest_wait_seconds: float = 60.0
    progress_bytes: int = 1 << 20
    slowest_bytes_per_second: float = 1024.0  # a slower connection is given up and made anew
    window_seconds: float = 60.0  # over which the speed is judged


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Who is told what goes on: sentences, and (what, bytes done, bytes in all or 0 where nobody knows)."""

    say: Callable[[str], None]
    advance: Callable[[str, int, int], None]


class _Setback(Exception):
    """A try that failed. Waiting may help, unless it is lasting."""

    def __init__(self, text: str, *, is_lasting: bool = False, wait_seconds: float = 0.0):
        super().__init__("".join(letter if letter.isprintable() else "?" for letter in text))  # it may be a stranger's
        self.is_lasting = is_lasting
        self.wait_seconds = wait_seconds


def fetch(file: RemoteFile, target: Path, *, listener: Listener, patience: Patience | None = None) -> Digests:
    """Return the digests of `target`, which is the whole file now. An interrupted call is continued by the next one.

    The bytes so far are in `<target>.partial`. A whole file with a wrong MD5 is removed and fetched once more.
    Errors: DataError when the network or the server does not give the file, or gives another one twice.
    """
    patience = patience or Patience()
    partial = PartialFile(
        target, lambda done, total: listener.advance(f"{target.name}: reading what is here", done, total)
    )
    found = []
    for tries_left in (1, 0):
        _complete(file, partial, patience, listener)
        digests = partial.digests()
        if digests.md5 == file.md5:
            partial.keep()
            return digests
        found.append(digests.md5)
        partial.discard()
        if tries_left:
            listener.say(f"{file.name}: MD5 {digests.md5} instead of {file.md5}; removed, and fetched once more")
    problem = f"Two downloads had a wrong MD5 ({', '.join(found)}) and were removed."
    raise _problem(file, target, "MD5", f"{found[-1]} instead of {file.md5}", problem)


def _complete(file: RemoteFile, partial: PartialFile, patience: Patience, listener: Listener) -> None:
    """Return nothing when all bytes are there, however many tries that takes."""
    failures, lasting, most_bytes = 0, 0, partial.size
    while not partial.is_complete:
        try:
            _receive(file, partial, patience, listener)
            return
        except _Setback as setback:
            if partial.digests().md5 == file.md5:  # whole, though the server announced more
                return
            has_progress = partial.size - most_bytes >= patience.progress_bytes
            most_bytes = max(most_bytes, partial.size)
            failures = 1 if has_progress else failures + 1
            lasting += setback.is_lasting
            if failures >= patience.tries or lasting >= LASTING_TRIES:
                problem = f"It cannot be downloaded after {failures} {'try' if failures == 1 else 'tries'} in a row."
                raise _problem(file, partial.target, "download", str(setback), problem) from setback
            wait_seconds = max(setback.wait_seconds, patience.first_wait_seconds * 2 ** (failures - 1))
            wait_seconds = min(wait_seconds, patience.longest_wait_seconds)
            listener.say(
                f"{file.name}: {setback}; try {failures + 1} of {patience.tries} in {wait_seconds:.0f} s, "
                f"from byte {partial.size:,} on"
            )
            time.sleep(wait_seconds)


def _receive(file: RemoteFile, partial: PartialFile, patience: Patience, listener: Listener) -> None:
    """Return nothing when the connection brought all that was still missing."""
    request = urllib.request.Request(file.url, headers=_request_headers(file, partial))
    with _open(request, partial, patience.timeout_seconds) as response:
        num_bytes = response.length or 0  # of this answer; 0: not told
        first = _read(response)
        _refuse_page(response, first)
        _refuse_size(file, num_bytes + partial.size if response.status == 206 else num_bytes)
        _place(file, partial, response, num_bytes=num_bytes, listener=listener)
        _copy(file, partial, response, first=first, patience=patience, listener=listener)
    if partial.size < partial.origin.num_bytes:
        raise _Setback(f"the connection was cut at byte {partial.size:,} of {partial.origin.num_bytes:,}")


def _request_headers(file: RemoteFile, partial: PartialFile) -> dict[str, str]:
    headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
    if partial.size:
        headers["Range"] = f"bytes={partial.size}-"
        # Another address has other validators for the same bytes; there the MD5 at the end decides.
        if partial.origin.validator and partial.origin.url == file.url:
            headers["If-Range"] = partial.origin.validator
    return headers


def _open(request: urllib.request.Request, partial: PartialFile, timeout_seconds: float) -> http.client.HTTPResponse:
    try:
        return _opener().open(request, timeout=timeout_seconds)
    except HTTPError as error:
        error.close()
        if error.code == 416:  # the file on the server is shorter than what is here
            partial.discard()
        is_lasting = 300 <= error.code < 500 and error.code not in PASSING_STATUS
        wait = error.headers.get("Retry-After", "")
        text = f"the server answered {error.code} ({' '.join(str(error.reason).split())})"
        raise _Setback(text, is_lasting=is_lasting, wait_seconds=float(wait) if wait.isdecimal() else 0.0) from error
    except NETWORK_ERRORS as error:
        reason = error.reason if isinstance(error, URLError) else error
        is_lasting = isinstance(reason, ssl.SSLCertVerificationError | http.client.InvalidURL)
        raise _Setback(f"no connection ({reason or type(reason).__name__})", is_lasting=is_lasting) from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a few redirects, from web address to web address, and never from https to http."""

    max_redirections = 5

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new != "https" and (old, new) != ("http", "http"):
            fp.close()
            raise _Setback(f"the server sends from {old} on to {new}, which is not followed", is_lasting=True)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener for http and https alone: a redirect can reach no local file."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(CHUNK_BYTES)  # what is there; a slow server must not hold up the judgement of its speed
    except TimeoutError as error:
        raise _Setback("the server sent nothing for too long") from error
    except NETWORK_ERRORS as error:
        raise _Setback(f"the connection broke ({error or type(error).__name__})") from error


def _refuse_page(response: http.client.HTTPResponse, first: bytes) -> None:
    """Return nothing. A page of words with status 200 is how proxies and lost mirrors say no."""
    is_page = response.headers.get_content_type() in ("text/html", "application/xhtml+xml")
    if is_page or re.match(rb"\s*<(!doctype|html|\?xml|head|body)", first[:200], re.IGNORECASE):
        raise _Setback("the server sent a web page instead of the file", is_lasting=True)


def _refuse_size(file: RemoteFile, num_bytes: int) -> None:
    smallest, largest = file.about_bytes // WRONG_SIZE_FACTOR, file.about_bytes * WRONG_SIZE_FACTOR
    if num_bytes and not smallest <= num_bytes <= largest:
        text = f"the file on the server has {num_bytes:,} bytes, but about {file.about_bytes:,} are expected"
        raise _Setback(text, is_lasting=True)


def _place(
    file: RemoteFile, partial: PartialFile, response: http.client.HTTPResponse, *, num_bytes: int, listener: Listener
) -> None:
    """Return nothing; after it the answer's bytes belong at the end of `partial`, which is emptied if need be."""
    validator = response.headers.get("ETag", "")
    if not validator or validator.startswith("W/"):  # weak: not the same bytes for sure
        validator = response.headers.get("Last-Modified", "")
    if response.status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", "").strip())
        start, total = map(int, span.groups()) if span else (-1, -1)
        is_same = file.url != partial.origin.url or validator == partial.origin.validator
        if is_same and start == partial.size > 0 and total == (partial.origin.num_bytes or total):
            return
        partial.discard()
        raise _Setback("the file on the server has changed, so it is fetched from its start")
    if partial.size:
        listener.say(f"{file.name}: the server begins again at the start (it cannot continue, or the file has changed)")
    partial.begin(Origin(url=file.url, validator=validator, num_bytes=num_bytes))


def _copy(
    file: RemoteFile,
    partial: PartialFile,
    response: http.client.HTTPResponse,
    *,
    first: bytes,
    patience: Patience,
    listener: Listener,
) -> None:
    """Return nothing at the end of the answer, whether or not that is the end of the file."""
    chunk, window_start, window_bytes = first, time.monotonic(), 0
    with open(partial.path, "ab") as out:
        while chunk:
            if partial.size + len(chunk) > (partial.origin.num_bytes or file.about_bytes * WRONG_SIZE_FACTOR):
                partial.discard()
                raise _Setback("the server sends more than the file can have", is_lasting=True)
            partial.append(out, chunk)
            listener.advance(file.name, partial.size, partial.origin.num_bytes)
            window_bytes += len(chunk)
            window_seconds = time.monotonic() - window_start
            if window_seconds >= patience.window_seconds:
                if window_bytes < patience.slowest_bytes_per_second * window_seconds:
                    raise _Setback(f"the server sends only {window_bytes / window_seconds:.0f} bytes per second")
                window_start, window_bytes = time.monotonic(), 0
            chunk = _read(response)


def _problem(file: RemoteFile, target: Path, field: str, value: str, problem: str) -> DataError:
    fix = (
        f"Check the network and the address; or fetch {file.url} by other means (MD5 {file.md5}) and put it at "
        f"{target}. Then start again."
    )
    return DataError([Problem(file=str(target), where=file.url, field=field, value=value, message=problem, fix=fix)])
