"""When a run is lost: who says so, what the log gets, and what is kept so that the step can be run again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from maskperf.engine.distributed import gather_to_first, share_from_first
from maskperf.errors import LostRunError, StorageError
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.run.batches import micro_batches
from maskperf.run.black_box import Facts, polygon_limits, save_black_box
from maskperf.run.collapse import evaluation_collapse
from maskperf.run.finish import save_results
from maskperf.run.plateau import find_plateau
from maskperf.run.session import OpenedData, Session
from maskperf.run.step_recorder import GuardEvent, StepRecorder
from maskperf.structures import Batch, to_device

BLACK_BOX = "black_box"
SHOWN_IMAGE_IDS = 32


@dataclass(frozen=True)
class Training:
    """What a run trains with, and where its numbers go."""

    data: OpenedData
    model: MaskRcnn
    optimizer: torch.optim.Optimizer
    recorder: StepRecorder
    steps_per_epoch: int


@contextmanager
def keep_black_box(session: Session, training: Training, rescues: Callable[[int], bool]) -> Iterator[None]:
    """Turn a lost run inside the `with` block into a black box, a reason in the log, and results; raises it again.

    Unless `rescues` says that the run had succeeded before this step, by weights that were still being judged: then the
    block just ends. Every process comes here at the same step, because all of them saw the same numbers.
    """
    try:
        yield
    except LostRunError as error:
        if rescues(error.step):
            return
        text, image_ids = _save(session, training, error)
        metadata = {"step": error.step, "event": error.event, "image_ids": image_ids[:SHOWN_IMAGE_IDS]}
        session.log.reason_of_stop(text, metadata)
        session.log.abort()
        save_results(session, training.recorder, reason=text)
        session.writer.wait()
        text = share_from_first(text, session.topology)  # nobody leaves before the first process has written all
        raise type(error)(text, step=error.step) from error


def _save(session: Session, training: Training, error: LostRunError) -> tuple[str, list[int]]:
    """Return the whole message and the ids of the images of the step, after the black box was written."""
    own = next(micro_batches(session, training.data, error.step - 1, 1))
    gathered = gather_to_first([to_device(batch, torch.device("cpu")) for batch in own], session.topology)
    batches: list[Batch] = [batch for of_process in gathered for batch in of_process]
    image_ids = [batch.image_ids.tolist() for batch in batches]
    flat_ids = [image_id for ids in image_ids for image_id in ids]
    positions = np.searchsorted(training.data.train.image_ids, flat_ids[:SHOWN_IMAGE_IDS])
    shown = ", ".join(str(training.data.train.image_key(int(position))) for position in positions)
    more = f" and {len(flat_ids) - SHOWN_IMAGE_IDS} more" if len(flat_ids) > SHOWN_IMAGE_IDS else ""
    text = f"{error} Image ids: {shown}{more}."
    if session.folder is None:
        return text, flat_ids
    facts = Facts(
        event=error.event,
        text=text,
        update=error.step,
        epoch=-(-error.step // training.steps_per_epoch),
        processes=session.topology.world,
        accumulation_steps=session.config.optimizer.accumulation_steps,
        image_ids=image_ids,
        polygon_limits=[polygon_limits(batch) for batch in batches],
        weights_are_from_before_the_step=error.event == "non-finite",
    )
    folder = session.folder / BLACK_BOX
    try:
        save_black_box(folder, training.model, training.optimizer, batches, facts=facts, config=session.config)
    except (OSError, StorageError) as problem:
        return f"{text} The black box could not be written to {folder} ({problem}).", flat_ids
    fix = "lower optimizer.learning_rate or lengthen optimizer.warmup_steps; to see the step again:"
    return f"{text} Fix: {fix} maskperf replay {folder}", flat_ids


def watch_evaluations(session: Session, training: Training, update: int) -> None:
    """Notes a plateau when it begins. `update`: the steps trained so far, some beyond the evaluated epoch perhaps.

    Errors: LostRunError where the APs fell to nothing; its step is the last one trained, that of the weights at hand.
    """
    recorder, config = training.recorder, session.config
    last = recorder.records[-1]
    points = [(record.epoch, record.box_ap, record.mask_ap) for record in recorder.records]
    collapse = evaluation_collapse(points)
    if collapse is not None:
        error = LostRunError(f"step {last.step} (epoch {last.epoch}): {collapse.text}", step=update)
        recorder.note(GuardEvent(error.event, last.step, last.epoch, str(error)))
        if config.system.on_collapse == "stop":
            raise error
    plateau = find_plateau(
        points,
        box_target=config.evaluation.box_target,
        mask_target=config.evaluation.mask_target,
        steps_per_epoch=training.steps_per_epoch,
        last_decay_step=config.optimizer.decay_steps[-1] if config.optimizer.decay_steps else 0,
    )
    if plateau is not None and not any(event.event == "plateau" for event in recorder.events):
        recorder.note(GuardEvent("plateau", last.step, last.epoch, plateau.sentence))
