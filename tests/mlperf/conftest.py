import pytest
from official_checkers import run_in_process
from synthetic_logs import log_text

from maskperf.mlperf import checkers
from maskperf.mlperf.read import read_log


@pytest.fixture(autouse=True)
def in_process(request, monkeypatch):
    if "own_process" not in request.fixturenames:
        monkeypatch.setattr(checkers, "_run", run_in_process)


@pytest.fixture
def own_process():
    """Leave each checker in a process of its own."""


@pytest.fixture
def log_of(tmp_path):
    """Return a function that returns the log of these records, or of this text."""

    def write_and_read(content):
        path = tmp_path / "log.txt"
        path.write_text(content if isinstance(content, str) else log_text(content), encoding="utf-8")
        return read_log(path)

    return write_and_read
