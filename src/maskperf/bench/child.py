"""A process that prepares a benchmark once and measures it on request."""

import json
import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from maskperf import errors
from maskperf.bench.measure import Timing
from maskperf.errors import ConfigError

PEERS = Path(__file__).with_name("peers")
SOURCES = Path(__file__).resolve().parents[2]
LONGEST_ANSWER_SECONDS = 3600.0
SHOWN_LOG_BYTES = 4000
MISSING_PACKAGE = re.compile(r"ModuleNotFoundError: No module named '([^'.]+)")
PACKAGE_OF_MODULE = {"PIL": "pillow", "faster_coco_eval": "faster-coco-eval"}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


class MissingPackageError(ConfigError):
    """A package that the Python of a peer does not have."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the implementations or configurations that are compared, and the command of its process."""

    name: str
    command: tuple[str, ...]
    is_peer: bool


def maskperf_side(name: str = "maskperf") -> Side:
    return Side(name=name, command=(sys.executable, "-m", "maskperf.bench.maskperf_side"), is_peer=False)


def peer_side(name: str, script: str, python: str) -> Side:
    """Return a side that runs a script of bench/peers, with its name, in the Python that has the peer's packages."""
    return Side(name=name, command=(python, str(PEERS / script), name), is_peer=True)


def environment_of(threads: int, *, is_peer: bool = False) -> dict[str, str]:
    """Return the environment of a process; a peer must not find the packages of this Python."""
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    search_path = environment.pop("PYTHONPATH", "")
    if is_peer:
        environment.pop("PYTHONHOME", None)
    else:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SOURCES), search_path]))
    return environment


@contextmanager
def start_child(side: Side, threads: int) -> Iterator["Child"]:
    """Let the process of a side live until the block ends. Errors: ConfigError where it cannot be started."""
    pipe, environment = subprocess.PIPE, environment_of(threads, is_peer=side.is_peer)
    with TemporaryFile() as log:
        try:
            process = subprocess.Popen(side.command, stdin=pipe, stdout=pipe, stderr=log, env=environment)
        except OSError as error:
            text = f"{side.command[0]}: cannot be started ({error.strerror})."
            raise ConfigError(f"{text} Fix: give the path of a Python with --peer-python.") from error
        with process:
            try:
                yield Child(side, process, log)
            finally:
                process.kill()  # it has nothing to save


class Child:
    """Requests to a side's process.

    Errors: ConfigError where it lacks a package, was killed or gives no answer; RuntimeError for a bug in it.
    """

    def __init__(self, side: Side, process: subprocess.Popen[bytes], log: IO[bytes]):
        assert process.stdin and process.stdout
        self._side, self._process, self._log = side, process, log
        self._requests, self._answers = process.stdin, process.stdout

    def prepare(self, benchmark: str, inputs: dict) -> dict:
        """Return facts about the work, which is then ready to be measured."""
        return self._ask("prepare", benchmark=benchmark, inputs=inputs)

    def warm_up(self) -> dict:
        """Return what the first call found, its seconds, and the number of calls of one measurement."""
        return self._ask("warm_up")

    def measure(self) -> Timing:
        return Timing(**self._ask("measure"))

    def memory(self) -> dict:
        """Return in GiB the peak since `prepare` ended and the memory in use then; None where unknown."""
        return self._ask("memory")

    def _ask(self, command: str, **arguments: object) -> dict:
        try:
            self._requests.write(json.dumps({"command": command, "arguments": arguments}).encode() + b"\n")
            self._requests.flush()
        except BrokenPipeError:
            raise self._early_end() from None
        answer = self._answer()
        if answer.get("module") == errors.__name__:  # the message of a UserError stays as it is
            raise ConfigError(answer["error"])
        if "error" in answer:
            raise self._error_of(answer["trace"])
        return answer["done"]

    def _answer(self) -> dict:
        ready, _, _ = select.select([self._answers], [], [], LONGEST_ANSWER_SECONDS)
        if not ready:
            text = f"{self._side.name}: no answer within {LONGEST_ANSWER_SECONDS:.0f} s."
            raise ConfigError(f"{text} Fix: choose less work with --size or --images.")
        line = self._answers.readline()  # written as a whole, and the only one: requests are answered in turn
        if not line.endswith(b"\n"):
            raise self._early_end()
        return json.loads(line)

    def _early_end(self) -> Exception:
        """Return the error for a process that ended although it should not."""
        code = self._process.wait()
        if code < 0:
            text = f"{self._side.name}: its process was ended by signal {-code}."
            return ConfigError(f"{text} Fix: if memory ran out, choose less work with --size or --images.")
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - SHOWN_LOG_BYTES))
        return self._error_of(self._log.read().decode("utf-8", "replace"))

    def _error_of(self, trace: str) -> Exception:
        missing = MISSING_PACKAGE.search(trace)
        if missing and self._side.is_peer:
            package = PACKAGE_OF_MODULE.get(missing[1], missing[1])
            python = self._side.command[0]
            text = f"{python}: the package {package} of the peer {self._side.name} is missing."
            fix = f"Fix: {python} -m pip install {package} (in a virtual environment of its own)"
            return MissingPackageError(f"{text} {fix}, and name that Python with --peer-python.")
        return RuntimeError(f"{self._side.name} failed:\n{trace}")
