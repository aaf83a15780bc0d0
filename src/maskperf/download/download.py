"""Download of one file: retried, resumed where the connection was cut, and accepted only with the published MD5."""

import hashlib
import http.client
import os
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from maskperf.download.release import RemoteFile
from maskperf.errors import DataError, Problem
from maskperf.files import printable

CHUNK_BYTES = 1 << 20
PARTIAL_SUFFIX = ".partial"
WRONG_SIZE_FACTOR = 2  # a file this many times larger or smaller than expected is another file
MAX_LASTING_FAILURES = 2  # even "not found" is tried once more: an overloaded mirror may send it by mistake
PASSING_STATUS = (408, 416, 425, 429)  # the 4xx that another attempt may solve
PAGE_STARTS = (b"<!doctype html", b"<html")
RANGE_NOT_SATISFIABLE = 416


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a download is retried. An attempt that brings `progress_bytes` of new content resets the count."""

    tries: int = 6
    timeout_seconds: float = 30.0  # for the connection, and for each read
    first_wait_seconds: float = 1.0  # doubled after each failure in a row
    longest_wait_seconds: float = 60.0
    progress_bytes: int = 1 << 20
    slowest_bytes_per_second: float = 1024.0  # a slower connection is replaced by a new one
    window_seconds: float = 60.0  # over which the speed is measured


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Receives messages, and progress: (activity, bytes done, bytes in all or 0 where unknown)."""

    say: Callable[[str], None]
    advance: Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Digests:
    """Digests of one file in hexadecimal: MD5 because publishers name it, SHA-256 because MD5 can be forged."""

    md5: str
    sha256: str


def digests_of_file(path: Path, activity: str, listener: Listener) -> Digests:
    """Return both digests, with progress reported as `activity`."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    done, total = 0, path.stat().st_size
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            md5.update(chunk)
            sha256.update(chunk)
            done += len(chunk)
            listener.advance(activity, done, total)
    return Digests(md5=md5.hexdigest(), sha256=sha256.hexdigest())


def size_of(path: Path) -> int:
    """Return the bytes of a file, 0 where there is none."""
    return path.stat().st_size if path.is_file() else 0


def fetch(file: RemoteFile, target: Path, *, listener: Listener, patience: Patience | None = None) -> Digests:
    """Download `file` to `target` and return its digests; resume what an interrupted call left in `<target>.partial`.

    Whatever the bytes there are, only the published MD5 makes them the file.
    Errors: DataError if the file cannot be downloaded, or twice has a wrong MD5.
    """
    partial = target.with_name(target.name + PARTIAL_SUFFIX)
    wrong: list[str] = []
    while len(wrong) < 2:
        _complete(file, partial, patience or Patience(), listener)
        digests = digests_of_file(partial, f"{file.name}: verifying", listener)
        if digests.md5 == file.md5:
            with open(partial, "rb+") as whole:
                os.fsync(whole.fileno())  # the name must never point to data that a power cut can lose
            os.replace(partial, target)
            return digests
        wrong.append(digests.md5)
        partial.unlink()
        listener.say(f"{file.name}: MD5 {digests.md5} instead of {file.md5}; the download was removed")
    message = f"Two downloads had a wrong MD5 ({', '.join(wrong)}) and were removed."
    raise _problem(file, partial, "MD5", f"{wrong[-1]} instead of {file.md5}", message)


class _AttemptFailed(Exception):
    """An attempt that failed; waiting may help, unless the reason is lasting."""

    def __init__(self, reason: str, *, is_lasting: bool = False, status: int = 0, wait_seconds: float = 0.0):
        super().__init__(printable(reason))  # it may hold text of the server
        self.is_lasting = is_lasting
        self.status = status
        self.wait_seconds = wait_seconds


def _complete(file: RemoteFile, partial: Path, patience: Patience, listener: Listener) -> None:
    """Receive all missing bytes, in as many attempts as `patience` allows."""
    failures, lasting, most_bytes = 0, 0, size_of(partial)
    while True:
        try:
            _receive(file, partial, patience, listener)
            return
        except _AttemptFailed as failure:
            size = size_of(partial)
            if failure.status == RANGE_NOT_SATISFIABLE and size:
                return  # the server has no more bytes than these; the MD5 decides
            failures = 1 if size - most_bytes >= patience.progress_bytes else failures + 1
            most_bytes = max(most_bytes, size)
            lasting += failure.is_lasting
            if failures >= patience.tries or lasting >= MAX_LASTING_FAILURES:
                message = f"The download failed {failures} time{'s' if failures > 1 else ''} in a row."
                raise _problem(file, partial, "download", str(failure), message) from failure
            wait_seconds = max(failure.wait_seconds, patience.first_wait_seconds * 2 ** (failures - 1))
            wait_seconds = min(wait_seconds, patience.longest_wait_seconds)
            listener.say(
                f"{file.name}: {failure}; attempt {failures + 1} of {patience.tries} in {wait_seconds:.0f} s, "
                f"from byte {size:,} on"
            )
            time.sleep(wait_seconds)


def _receive(file: RemoteFile, partial: Path, patience: Patience, listener: Listener) -> None:
    """Receive the missing bytes over one connection, or all of them where the server cannot resume."""
    size = size_of(partial)
    request = urllib.request.Request(file.url, headers={"User-Agent": "maskperf", "Accept-Encoding": "identity"})
    if size:
        request.add_header("Range", f"bytes={size}-")
    with _network_errors():
        response = urllib.request.build_opener(_Redirects()).open(request, timeout=patience.timeout_seconds)
    with response:
        is_rest = response.status == 206
        if is_rest and not response.headers.get("Content-Range", "").startswith(f"bytes {size}-"):
            partial.unlink(missing_ok=True)
            raise _AttemptFailed("the server sent another part than the missing one")
        total = response.length or 0  # 0: unknown; it counts down while the answer is read
        total += size if total and is_rest else 0
        chunk = _read(response)
        _check_answer(file, response, chunk, total)
        if size and not is_rest:
            listener.say(f"{file.name}: the server starts from byte 0 (it cannot resume)")
            size = 0
        window_start, window_size = time.monotonic(), size
        with open(partial, "ab" if is_rest else "wb") as out:
            while chunk:
                out.write(chunk)
                size += len(chunk)
                listener.advance(file.name, size, total)
                if size > (total or file.about_bytes * WRONG_SIZE_FACTOR):
                    partial.unlink()
                    raise _AttemptFailed("the server sends more than the file can have", is_lasting=True)
                seconds = time.monotonic() - window_start
                if seconds >= patience.window_seconds:
                    rate = (size - window_size) / seconds
                    if rate < patience.slowest_bytes_per_second:
                        raise _AttemptFailed(f"the server sends only {rate:.0f} bytes per second")
                    window_start, window_size = time.monotonic(), size
                chunk = _read(response)
    if size < total:
        raise _AttemptFailed(f"the connection was cut at byte {size:,} of {total:,}")


@contextmanager
def _network_errors() -> Iterator[None]:
    """Turn the errors of a connection into _AttemptFailed; those of the disk must not pass through here."""
    try:
        yield
    except HTTPError as error:
        error.close()
        wait = error.headers.get("Retry-After", "")
        raise _AttemptFailed(
            f"the server answered {error.code} ({' '.join(str(error.reason).split())})",
            is_lasting=300 <= error.code < 500 and error.code not in PASSING_STATUS,
            status=error.code,
            wait_seconds=float(wait) if wait.isdecimal() else 0.0,
        ) from error
    except TimeoutError as error:
        raise _AttemptFailed("the server sent nothing for too long") from error
    except (OSError, http.client.HTTPException) as error:  # URLError and TLS errors are OSErrors
        reason = error.reason if isinstance(error, URLError) else error
        is_lasting = isinstance(reason, ssl.SSLCertVerificationError | http.client.InvalidURL)
        raise _AttemptFailed(f"no connection ({reason or type(reason).__name__})", is_lasting=is_lasting) from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a few redirects to web addresses, and never from https to http."""

    max_redirections = 5

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new != "https" and (old, new) != ("http", "http"):
            fp.close()
            raise _AttemptFailed(f"a redirect from {old} to {new} is not followed", is_lasting=True)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _read(response: http.client.HTTPResponse) -> bytes:
    with _network_errors():
        return response.read1(CHUNK_BYTES)  # what has arrived; a slow server must not delay the check of its speed


def _check_answer(file: RemoteFile, response: http.client.HTTPResponse, first: bytes, total: int) -> None:
    """Refuse another file, and the web pages with status 200 that proxies and lost mirrors send."""
    if response.headers.get_content_type() == "text/html" or first[:200].lstrip().lower().startswith(PAGE_STARTS):
        raise _AttemptFailed("the server sent a web page instead of the file", is_lasting=True)
    smallest, largest = file.about_bytes // WRONG_SIZE_FACTOR, file.about_bytes * WRONG_SIZE_FACTOR
    if total and not smallest <= total <= largest:
        reason = f"the file on the server has {total:,} bytes, but about {file.about_bytes:,} are expected"
        raise _AttemptFailed(reason, is_lasting=True)


def _problem(file: RemoteFile, partial: Path, field: str, value: str, message: str) -> DataError:
    target = partial.with_suffix("")
    fix = (
        f"Check the network and the address; or fetch {file.url} by other means (MD5 {file.md5}) and put it at "
        f"{target}. Then start again."
    )
    return DataError([Problem(file=str(target), where=file.url, field=field, value=value, message=message, fix=fix)])
