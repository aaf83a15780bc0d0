"""A web server on this machine that cuts, lies, stalls and changes its mind, one planned answer after the other."""

import socket
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STALL_SECONDS = 20.0  # never waited for: the server's end wakes the sleepers


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How one request is answered; by default correctly, with a part where a part is asked for."""

    status: int = 0  # 0: 200 or 206, as it should be
    body: bytes | None = None  # in place of the file
    headers: dict[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()  # headers that are not sent
    sends_bytes: int | None = None  # then the connection is cut
    declared_bytes: int | None = None  # what Content-Length says
    stalls: bool = False  # sends nothing more after `sends_bytes`, but keeps the connection
    piece_bytes: int = 1 << 16
    piece_seconds: float = 0.0  # between two pieces
    ignores_range: bool = False


@dataclass(frozen=True, kw_only=True)
class Request:
    path: str
    headers: dict[str, str]


class HostileServer:
    """Serves `files`; the answers in `plans[path]` are used up first, one for each request."""

    def __init__(self, files=None, plans=None):
        self.files = dict(files or {})
        self.plans = {path: list(answers) for path, answers in (plans or {}).items()}
        self.requests = []
        self.closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.owner = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def ranges(self):
        """Return the header Range of every request so far, None where there was none."""
        return [request.headers.get("Range") for request in self.requests]


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        owner = self.server.owner
        owner.requests.append(Request(path=self.path, headers=dict(self.headers)))
        plan = owner.plans.get(self.path)
        answer = plan.pop(0) if plan else Answer()
        content = answer.body if answer.body is not None else owner.files.get(self.path)
        if content is None and not answer.status:
            answer, content = Answer(status=404), b"nothing here"
        with suppress(BrokenPipeError, ConnectionResetError):  # the client has gone
            self._send(answer, content or b"")
        self.close_connection = True

    def _send(self, answer, content):
        start = self._start(answer, len(content))
        if start > 0 and start >= len(content):
            answer, start, content = Answer(status=416), 0, b""
        status = answer.status or (206 if start else 200)
        body = content[start:]
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(len(body) if answer.declared_bytes is None else answer.declared_bytes),
        }
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        headers = {**headers, **answer.headers}
        self.send_response(status)
        for name, value in headers.items():
            if name not in answer.without:
                self.send_header(name, value)
        self.end_headers()
        body = body if answer.sends_bytes is None else body[: answer.sends_bytes]
        for place in range(0, len(body), answer.piece_bytes):
            self.wfile.write(body[place : place + answer.piece_bytes])
            if answer.piece_seconds and self.server.owner.closing.wait(answer.piece_seconds):
                return
        if answer.stalls:
            self.wfile.flush()
            self.server.owner.closing.wait(STALL_SECONDS)

    def _start(self, answer, num_bytes):
        asked = self.headers.get("Range")
        if asked is None or answer.status or answer.ignores_range:
            return 0
        return int(asked.removeprefix("bytes=").removesuffix("-"))

    def log_message(self, *_):
        pass


@contextmanager
def refused_url():
    """Return an address at which nobody listens, nor can begin to while the `with` block runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
