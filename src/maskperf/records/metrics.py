"""What a run measures, one JSON object a line, so that a cut-short run keeps all but its last line."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import msgspec

from maskperf.structures import LOSS_NAMES


class MetricsWriter:
    """Appends lines of `kind` "step" and "evaluation" to a file; numbers that are not finite become null."""

    def __init__(self, path: Path):
        self._stream = path.open("ab")

    def step(
        self,
        *,
        step: int,
        epoch: int,
        losses: Mapping[str, float],
        learning_rate: float,
        images_per_second: float,
        data_wait_seconds: float,
        step_seconds: float,
    ) -> None:
        """Returns nothing; `losses` has the five terms by the names of `LOSS_NAMES`; `total` is their sum."""
        terms = {name: float(losses[name]) for name in LOSS_NAMES}
        self._write(
            {
                "kind": "step",
                "step": step,
                "epoch": epoch,
                **terms,
                "total": sum(terms.values()),
                "learning_rate": learning_rate,
                "images_per_second": images_per_second,
                "data_wait_seconds": data_wait_seconds,
                "step_seconds": step_seconds,
            }
        )

    def evaluation(self, *, step: int, epoch: int, box_ap: float, mask_ap: float, seconds: float) -> None:
        """Returns nothing; `seconds` is what the evaluation took."""
        line = {"kind": "evaluation", "step": step, "epoch": epoch, "box_ap": box_ap, "mask_ap": mask_ap}
        self._write({**line, "evaluation_seconds": seconds})

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: dict[str, str | int | float]) -> None:
        self._stream.write(msgspec.json.encode(line) + b"\n")  # msgspec writes NaN and infinity as null
        self._stream.flush()


def read_metrics(path: Path) -> list[dict]:
    """Returns the lines of a metrics file in order; a last line without its end, cut off by a crash, is left out."""
    whole_lines = path.read_bytes().split(b"\n")[:-1]
    return [msgspec.json.decode(line) for line in whole_lines]
