"""Checkpoints of a run: copied at once, written while training goes on, and restored bit for bit.

A checkpoint is a folder checkpoint/step_<number> of the run folder: tensors.safetensors (weights, statistics and
the optimizer's state), state.json, the weights that were saved last and those of the best evaluation, and manifest.json
with the SHA-256 of each. It is written under another name, synced and renamed, and the one before it stays: whenever a
run is killed, one is whole. An evaluation that is not over is not waited for: it is made again from the weights of its
epoch.
"""

import os
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import NoReturn

import msgspec
import torch
from torch import Tensor

from maskperf.engine.distributed import (
    broadcast_tensors,
    gather_to_first,
    largest_of_all,
    running_statistics,
    share_from_first,
)
from maskperf.engine.optimizer import optimizer_tensors
from maskperf.errors import EXIT_REQUEUE, ConfigError, StorageError
from maskperf.files import link_or_copy, replace_file, sha256_of_file, sync_folder
from maskperf.model.weights import read_tensor_file, write_tensor_file
from maskperf.overrides import path_as_argument
from maskperf.run.evaluations import Evaluations, Training
from maskperf.run.resume import CHECKPOINTS, MANIFEST_FILE, STATE_FILE, TENSORS_FILE, Resumption
from maskperf.run.session import BEST_WEIGHTS_FILE, WEIGHTS_FILE, Session
from maskperf.run.stop_signals import StopSignals
from maskperf.schema import CONFIG_FILE, CheckpointState, Manifest, file_error

GENERATIONS = 2
PERIODIC = 1  # below the number of every signal that stops a run


class Checkpoints:
    """When a checkpoint is due, and the checkpoints of one run. Every call is made by all processes at one step."""

    def __init__(self, session: Session, training: Training, evaluations: Evaluations, stop: StopSignals):
        self._session, self._training, self._evaluations, self._stop = session, training, evaluations, stop
        self._last_time = time.monotonic()
        self._writing: Future | None = None

    def asked(self, *, was_read: bool) -> int:
        """Return 0, `PERIODIC` or the number of a signal, the same in every process.

        Several processes on GPUs agree only where the device was read anyway; elsewhere it costs nothing to ask.
        """
        topology = self._session.topology
        if topology.world > 1 and topology.device.type == "cuda" and not was_read:
            return 0
        return largest_of_all(self._stop.number or (PERIODIC if self._is_due() else 0), topology)

    def take(self, step: int, epoch: int, asked: int) -> None:
        """Save the run after this step, in this epoch or before it; where a signal asked for it, end the run.

        Errors: KeyboardInterrupt or SystemExit for a signal, StorageError where nothing could be written.
        """
        with self._session.account.measure("saving"):
            self._save(step, epoch)
        self._last_time = time.monotonic()
        if asked > PERIODIC:
            self._leave(step, asked)

    def _is_due(self) -> bool:
        seconds = self._session.config.checkpoint.minutes * 60
        if not self._session.topology.is_first or not seconds or (self._writing and not self._writing.done()):
            return False
        return time.monotonic() - self._last_time >= seconds

    def _save(self, step: int, epoch: int) -> None:
        session, training = self._session, self._training
        recorder = training.recorder.state()
        tensors = {name: _copied(value) for name, value in live_tensors(training).items()}
        if session.topology.world > 1:
            own = {name: _copied(value) for name, value in running_statistics(training.model).items()}
            for rank, found in enumerate(gather_to_first(own, session.topology)):
                tensors |= {f"process.{rank}.{name}": value for name, value in found.items()}
        if session.folder is None:
            return
        state = CheckpointState(
            step=step,
            epoch=epoch,
            **_data_facts(training),
            processes=session.topology.world,
            rounding=_rounding(session),
            seconds=session.account.total_seconds(),
            phase_seconds=session.account.named_phases(),
            pending=self._evaluations.pending,
            recorder=recorder,
            resumed_at_steps=session.resumed_at_steps,
            extra=training.average.state,
        )
        text = msgspec.json.encode(state)  # now: training changes what it is made of
        files = [session.folder / name for name in (WEIGHTS_FILE, BEST_WEIGHTS_FILE)]
        folder = session.folder / CHECKPOINTS / f"step_{step:09d}"
        self._writing = session.writer.submit(partial(write_checkpoint, folder, tensors, text, files))

    def _leave(self, step: int, asked: int) -> NoReturn:
        session = self._session
        session.writer.wait()
        share_from_first(None, session.topology)  # nobody leaves before the first process has written all
        if session.folder is not None:
            folder, world = path_as_argument(session.folder), session.topology.world
            processes = f" processes={world}" if world > 1 else ""
            command = f"maskperf run {folder}/{CONFIG_FILE} resume={folder}{processes}"
            name = signal.Signals(asked).name
            session.say(f"{name}: a checkpoint of step {step:,} is in {session.folder / CHECKPOINTS}; go on: {command}")
        if asked == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(EXIT_REQUEUE)


def restore(session: Session, training: Training, evaluations: Evaluations, resumption: Resumption) -> tuple[int, int]:
    """Return the last step and the number of whole epochs, after all was restored; an evaluation may be under way.

    Errors: ConfigError where the data set is another; DataError for tensors that do not fit the model.
    """
    session.log.resumed(resumption.step)
    for notice in resumption.notices:
        session.notice(notice)
    state, folder = resumption.state, resumption.checkpoint
    if state is None or folder is None:
        session.notice(f"begun again from step 0: no checkpoint was in {resumption.folder} yet; {NO_RESULT}")
        return 0, 0
    found = _data_facts(training)
    wrong = [f"{name} {getattr(state, name):,}, now {count:,}" for name, count in found.items()
             if count != getattr(state, name)]  # fmt: skip
    if wrong:
        raise ConfigError(f"{folder}: made with other data: {'; '.join(wrong)}. Fix: give the same data set")
    _say_what_is_resumed(session, state, folder)
    if session.folder is not None:
        for name in (WEIGHTS_FILE, BEST_WEIGHTS_FILE):
            if (folder / name).exists():
                replace_file(session.folder / name, partial(link_or_copy, folder / name))
    if state.pending is not None:
        _load(training.model.state_dict(), folder / WEIGHTS_FILE, session)
        evaluations.start(state.pending)
    _load(live_tensors(training), folder / TENSORS_FILE, session, running_statistics(training.model))
    training.average.state.update(state.extra)
    session.account.restore(state.seconds, state.phase_seconds)
    training.recorder.restore(state.recorder)
    return state.step, state.epoch - 1


NO_RESULT = "the run is no result of the benchmark, which is trained in one piece"


def live_tensors(training: Training) -> dict[str, Tensor]:
    """Return every tensor that training changes, under its name in a checkpoint."""
    model, optimizer = training.model, training.optimizer
    found = {f"model.{name}": value for name, value in model.state_dict().items()}
    found |= {f"optimizer.{name}": value for name, value in optimizer_tensors(model, optimizer).items()}
    return found | {f"extra.{name}": value for name, value in training.average.tensors.items()}


def write_checkpoint(folder: Path, tensors: Mapping[str, Tensor], state: bytes, files: Sequence[Path]) -> None:
    """Write a checkpoint, complete or not at all, and remove all but the newest `GENERATIONS`.

    Errors: StorageError where it cannot be written; the ones before it stay.
    """
    root, temporary = folder.parent, folder.with_name(f".{folder.name}.tmp")
    try:
        for left_over in root.glob(".step_*.tmp"):
            shutil.rmtree(left_over)
        temporary.mkdir(parents=True)
        write_tensor_file(tensors, temporary / TENSORS_FILE, {})
        replace_file(temporary / STATE_FILE, lambda path: path.write_bytes(state))
        for file in files:
            if file.exists():
                link_or_copy(file, temporary / file.name)
        digests = {path.name: sha256_of_file(path) for path in sorted(temporary.iterdir())}
        manifest = msgspec.json.format(msgspec.json.encode(Manifest(sha256=digests)))
        replace_file(temporary / MANIFEST_FILE, lambda path: path.write_bytes(manifest))
        sync_folder(temporary)
        if folder.exists():  # a damaged one that was passed over, or the same one again
            shutil.rmtree(folder)
        os.rename(temporary, folder)
        sync_folder(root)
        for older in sorted(root.glob("step_*"))[:-GENERATIONS]:
            shutil.rmtree(older)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        fix = "Fix: free some space there; the checkpoint before it is whole"
        raise StorageError(f"{folder}: cannot be written ({error.strerror or error}). {fix}") from error


def _load(live: Mapping[str, Tensor], path: Path, session: Session, own: Mapping[str, Tensor] | None = None) -> None:
    """Fill the tensors of every process from a file that the first one reads; `own` from its own."""
    statistics: dict[str, Tensor] = {}
    if session.topology.is_first:
        stored, _ = read_tensor_file(path)
        statistics = {name: stored.pop(name) for name in list(stored) if name.startswith("process.")}
        wrong = sorted(live.keys() ^ stored.keys())
        wrong += [name for name in live.keys() & stored.keys() if live[name].shape != stored[name].shape]
        if wrong:
            message = f"{len(wrong)} tensors do not fit the model and optimizer of this version."
            fix = "Resume with the version of the program that began the run."
            raise file_error(path, message, where=wrong[0], fix=fix)
        with torch.no_grad():
            for name, value in live.items():
                value.copy_(stored[name])
    broadcast_tensors(live.values(), session.topology)
    statistics = share_from_first(statistics, session.topology) if own else {}
    with torch.no_grad():
        for name, value in (own or {}).items():
            of_process = f"process.{session.topology.rank}.{name}"
            if of_process in statistics:
                value.copy_(statistics[of_process])


def _copied(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True)


def _data_facts(training: Training) -> dict[str, int]:
    train, val = (len(split.image_ids) for split in (training.data.train, training.data.val))
    return {"train_images": train, "val_images": val, "steps_per_epoch": training.steps_per_epoch}


def _rounding(session: Session) -> dict[str, str]:
    """Return what the order of sums depends on: a run is equal bit for bit only where these are."""
    name = torch.cuda.get_device_name() if session.topology.device.type == "cuda" else "cpu"
    return {"threads": str(torch.get_num_threads()), "torch": str(torch.__version__), "device": name}


def _say_what_is_resumed(session: Session, state: CheckpointState, folder: Path) -> None:
    limits = session.config.optimizer
    last = min(limits.max_steps, limits.max_epochs * state.steps_per_epoch or limits.max_steps)
    session.notice(f"resuming step {state.step:,} of {last:,}, epoch {state.epoch}, from {folder}; {NO_RESULT}")
    if state.pending is not None:
        session.say(f"the evaluation of epoch {state.pending.epoch} was not over and is made again")
    for name, value in _rounding(session).items():
        before = state.rounding.get(name, "unknown")
        if before != value:
            session.notice(f"{name}: {before} before, {value} now; from here on sums may be rounded otherwise")
