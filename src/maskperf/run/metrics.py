"""What a run measures, one JSON object a line, so that a cut-short run keeps all but its last line."""

from pathlib import Path
from types import TracebackType

import msgspec

from maskperf.structures import LOSS_NAMES


class MetricsWriter:
    """Appends lines of `kind` "step", "evaluation" and "guard"; numbers that are not finite become null.

    With `path` None (all processes but the first) it writes nothing.
    """

    def __init__(self, path: Path | None):
        self._stream = path.open("ab") if path is not None else None

    def step(self, *, step: int, epoch: int, losses: dict[str, float], **measured: float | None) -> None:
        """Return nothing; `losses` has the five terms by the names of `LOSS_NAMES`; `total` is their sum."""
        terms = {name: float(losses[name]) for name in LOSS_NAMES}
        total = sum(terms.values())
        self._write({"kind": "step", "step": step, "epoch": epoch, **terms, "total": total, **measured})

    def evaluation(self, *, step: int, epoch: int, **measured: float) -> None:
        self._write({"kind": "evaluation", "step": step, "epoch": epoch, **measured})

    def guard(self, *, step: int, epoch: int, event: str, text: str) -> None:
        """Return nothing; `event` is "non-finite", "collapse" or "plateau"."""
        self._write({"kind": "guard", "step": step, "epoch": epoch, "event": event, "text": text})

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: dict[str, str | int | float | None]) -> None:
        if self._stream is not None:
            self._stream.write(msgspec.json.encode(line) + b"\n")  # msgspec writes NaN and infinity as null
            self._stream.flush()


def read_metrics(path: Path) -> list[dict]:
    """Return the lines of a metrics file in order; a last line without its end, cut off by a crash, is left out."""
    whole_lines = path.read_bytes().split(b"\n")[:-1]
    return [msgspec.json.decode(line) for line in whole_lines]
