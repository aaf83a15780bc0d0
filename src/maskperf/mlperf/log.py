"""The benchmark's log: the lines MLPerf's checkers read, written through mlperf-logging."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlperf_logging.mllog import constants as keys
from mlperf_logging.mllog.mllog import MLLogger

from maskperf.config import BENCHMARK, RunConfig
from maskperf.mlperf.read import RESUMED_KEY
from maskperf.overrides import flatten

LARGEST_CLOCK_DRIFT_SECONDS = 1.0
# The names that published logs use for the five losses.
PUBLISHED_LOSS_NAMES = {
    "objectness": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "classification": "loss_classifier",
    "box": "loss_box_reg",
    "mask": "loss_mask",
}
# The field of the configuration behind each key. The batch size comes before the learning rate: the checker needs it
# there for small batches.
HYPERPARAMETERS = {
    keys.GLOBAL_BATCH_SIZE: "optimizer.batch_size",
    keys.GRADIENT_ACCUMULATION_STEPS: "optimizer.accumulation_steps",
    keys.NUM_IMAGE_CANDIDATES: "model.proposals_train",
    keys.MIN_IMAGE_SIZE: "data.short_side",
    keys.MAX_IMAGE_SIZE: "data.long_side",
    keys.OPT_BASE_LR: "optimizer.learning_rate",
    keys.OPT_LR_DECAY_FACTOR: "optimizer.decay_factor",
    keys.OPT_LR_DECAY_STEPS: "optimizer.decay_steps",
    keys.OPT_LR_WARMUP_STEPS: "optimizer.warmup_steps",
    keys.OPT_LR_WARMUP_FACTOR: "optimizer.warmup_factor",
}


class MlperfLog:
    """Writes one run's log to a file; with `path` None (all processes but the first) it writes nothing.

    Times are those of a monotonic clock set to the wall clock once, so a wall clock that jumps changes no duration.
    """

    def __init__(self, path: Path | None):
        self._logger = None
        if path is not None:
            logger = logging.Logger("maskperf.mlperf", logging.INFO)  # its own, not in the global tree
            logger.addHandler(logging.FileHandler(path, encoding="utf-8"))
            self._logger = MLLogger(logger=logger, root_dir=str(Path(__file__).parents[2]))
        self._is_running = False
        self._stop_ms: int | None = None
        self._wall_ms = time.time() * 1000
        self._monotonic = time.monotonic()

    def close(self) -> None:
        if self._logger is not None:
            for handler in list(self._logger.logger.handlers):
                handler.close()
                self._logger.logger.removeHandler(handler)

    def submission(self, config: RunConfig) -> None:
        self._write("event", keys.SUBMISSION_BENCHMARK, BENCHMARK)
        self._write("event", keys.SUBMISSION_ORG, config.mlperf.organization)
        self._write("event", keys.SUBMISSION_DIVISION, config.mlperf.division)
        self._write("event", keys.SUBMISSION_STATUS, config.mlperf.status)
        self._write("event", keys.SUBMISSION_PLATFORM, config.mlperf.platform)
        self._write("event", "maskperf_recipe", config.recipe)
        targets = {"BBOX": config.evaluation.box_target, "SEGM": config.evaluation.mask_target}
        self._write("event", "maskperf_targets", targets)

    def cache_clear(self) -> None:
        self._write("event", keys.CACHE_CLEAR, True)

    def init_start(self, config: RunConfig) -> None:
        values = flatten(config)
        self._write("start", keys.INIT_START)
        self._write("event", keys.SEED, config.seed)
        self._write("event", keys.OPT_NAME, "sgd_with_momentum" if config.optimizer.method == "sgd" else "adamw")
        for key, field in HYPERPARAMETERS.items():
            self._write("event", key, values[field])

    def resumed(self, step: int) -> None:
        """Write that a run was taken up again after this step; `maskperf check` refuses such a log."""
        self._write("event", RESUMED_KEY, step)

    def run_start(self) -> None:
        self._write("end", keys.INIT_STOP)
        self._write("start", keys.RUN_START)
        self._is_running = True

    def samples(self, train: int, evaluation: int) -> None:
        self._write("event", keys.TRAIN_SAMPLES, train)
        self._write("event", keys.EVAL_SAMPLES, evaluation)

    def epoch_start(self, epoch: int) -> None:
        self._write("start", keys.EPOCH_START, metadata={"epoch_num": epoch})

    def epoch_stop(self, epoch: int) -> None:
        self._write("end", keys.EPOCH_STOP, metadata={"epoch_num": epoch})

    def tracked_stats(
        self, step: int, epoch: int, losses: Mapping[str, float], *, learning_rate: float, images_per_second: float
    ) -> None:
        """Write the means over a window of steps, under the names that published logs use; `step` is its last."""
        values = {"loss": sum(losses.values()), **{PUBLISHED_LOSS_NAMES[name]: loss for name, loss in losses.items()}}
        values |= {"learning_rate": learning_rate, "throughput": images_per_second}
        self._write("event", "tracked_stats", values, {"step": step, "epoch_num": epoch})

    def evaluation_start(self, epoch: int) -> None:
        self._write("start", keys.EVAL_START, metadata={"epoch_num": epoch})

    def evaluation_stop(self, epoch: int, box_ap: float, mask_ap: float) -> None:
        """The keys of the value are upper case: the library's own constants are not, and the checker refuses them."""
        metadata = {"epoch_num": epoch}
        self._write("event", keys.EVAL_ACCURACY, {"BBOX": box_ap, "SEGM": mask_ap}, metadata)
        self._write("end", keys.EVAL_STOP, metadata=metadata)

    def run_stop(self, *, success: bool) -> None:
        drift = self.wall_clock_drift_seconds()
        if abs(drift) > LARGEST_CLOCK_DRIFT_SECONDS:
            self._write("event", "maskperf_wall_clock_moved_seconds", round(drift, 3))
        self._stop_ms = self._now_ms()
        status = keys.SUCCESS if success else keys.ABORTED
        self._write("end", keys.RUN_STOP, metadata={"status": status}, time_ms=self._stop_ms)
        self._is_running = False

    def withdraw(self, reason: str) -> None:
        """Take back the success that run_stop logged: a second one, of the same time, is aborted and has the reason.

        Its value makes MLPerf's own checkers refuse the log: they want one run_stop, or several of one value.
        """
        self._write("end", keys.RUN_STOP, reason, {"status": keys.ABORTED}, time_ms=self._stop_ms)

    def abort(self, reason: str | None = None, metadata: dict | None = None) -> None:
        """Close a run that an error cut short, with the reason where it has one; nothing where none is going on."""
        if self._is_running:
            if reason is not None:
                self._write("event", "maskperf_stop", reason, metadata)
            self.run_stop(success=False)

    def wall_clock_drift_seconds(self) -> float:
        """Return by how much the wall clock was moved since the start; all times of this log ignore it."""
        return time.time() - self._now_ms() / 1000

    def _now_ms(self) -> int:
        return int(self._wall_ms + (time.monotonic() - self._monotonic) * 1000)

    def _write(
        self, kind: str, key: str, value: Any = None, metadata: dict | None = None, *, time_ms: int | None = None
    ) -> None:
        """Write a record with `MLLogger.event`, `.start` or `.end`, as of the caller of this class."""
        if self._logger is not None:
            time_ms = self._now_ms() if time_ms is None else time_ms
            getattr(self._logger, kind)(key, value, metadata, time_ms=time_ms, stack_offset=2)
