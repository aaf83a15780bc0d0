"""One run of the benchmark: set up, start the clock, train and evaluate by epochs, stop at the targets."""

import time
from collections.abc import Iterable
from functools import partial

import torch

from maskperf.config import RunConfig
from maskperf.data.images.capacity import batch_capacity
from maskperf.data.images.sampler import steps_per_epoch
from maskperf.engine.build import build_model, keep_memory, prepare_steps
from maskperf.engine.distributed import Topology, average_buffers, broadcast_model
from maskperf.engine.graphs import CapturedSteps
from maskperf.engine.optimizer import build_optimizer
from maskperf.engine.precision import set_precision
from maskperf.engine.step import train_step
from maskperf.engine.under_way import Step, StepsUnderWay
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.ops.kernels.selection import describe
from maskperf.run.data import clear_caches, complete_config, micro_batches, open_data
from maskperf.run.evaluations import Evaluations, TrainedEpoch, Training, confirm
from maskperf.run.finish import FinishedRun, finish, saves_lost_run
from maskperf.run.progress import Progress
from maskperf.run.recorder import StepRecorder
from maskperf.run.session import Session, open_session, save_model
from maskperf.run.trackers import Trackers
from maskperf.schema import METRICS_FILE
from maskperf.techniques import chosen_techniques, using


def run_benchmark(config: RunConfig, topology: Topology) -> FinishedRun:
    """Train a recipe until its targets are met at one evaluation, or its steps are used up; return what came of it.

    An epoch is scored while the next one trains; where its verdict ends the run, what was trained beyond is dropped.
    Errors: LostRunError where a number is not finite or the loss collapsed.
    Source: the sequence and cadence of MLPerf Training rules, `tools/train_mlperf.py` of the reference.
    """
    config = complete_config(config, topology)
    with using(chosen_techniques(config.speed)), open_session(config, topology) as session:
        model, optimizer, captured = _initialize(session)
        session.start_clock()
        with session.account.measure("opening the data"), session.working("opening the data"):
            data = open_data(session)
        session.log.samples(len(data.train.image_ids), len(data.val.image_ids))
        if captured is not None:
            captured.make_room(batch_capacity(data.train, session.images_per_rank, config.data))
        num_steps = steps_per_epoch(len(data.train.image_ids), config.optimizer.batch_size)
        training = Training(data, model, optimizer, _open_recorder(session, num_steps), num_steps)
        evaluations = Evaluations(session, training)
        train = partial(train_step, model, optimizer, config=config.optimizer, topology=topology, captured=captured)
        note = partial(_note, session, training, evaluations)
        under_way = StepsUnderWay(train, may_drop_masks=captured is not None and captured.num_mask_slots is not None)
        update, epoch = 0, 0
        with saves_lost_run(session, training, evaluations.rescues):
            while not (evaluations.is_final or _is_used_up(config, update, epoch)):
                epoch += 1
                session.log.epoch_start(epoch)
                training.recorder.start_epoch()
                waited = time.monotonic()
                steps = micro_batches(session, data, update, min(num_steps, config.optimizer.max_steps - update))
                for batches in steps:
                    wait_seconds = time.monotonic() - waited
                    update += 1
                    result = train(batches, update=update, all_masks=False)
                    note(epoch, under_way.add(Step(update, result, wait_seconds), batches))
                    if evaluations.is_final:
                        break
                    waited = time.monotonic()
                steps.close()  # with the threads that make batches ahead, where a verdict came before the last step
                if not evaluations.is_final:
                    note(epoch, under_way.rest())
                if not evaluations.is_final:
                    _end_epoch(session, training, evaluations, epoch, update)
        verdict = evaluations.verdict
        assert verdict is not None  # the last epoch is always evaluated
        session.stop_clock(success=verdict.status != "aborted")
        training.recorder.close()
        session.writer.wait()
        return finish(session, training, confirm(session, data, verdict))


def _initialize(session: Session) -> tuple[MaskRcnn, torch.optim.Optimizer, CapturedSteps | None]:
    """Return model, optimizer and captured steps: all that may be done before the clock starts."""
    config, topology = session.config, session.topology
    session.log.submission(config)
    clear_caches(session)
    session.log.init_start()
    session.log.hyperparameters(config, config.seed)
    model, notices = build_model(config.model, config.seed)
    for notice in notices:
        session.say(notice)
    model.to(topology.device)
    broadcast_model(model, topology)
    set_precision(model, config.speed.precision, topology.device, session.say)
    for line in (describe(topology.device), keep_memory(topology.device)):
        session.say(line)
    optimizer = build_optimizer(model, config.optimizer)
    captured = prepare_steps(model, config, images=session.images_per_rank, topology=topology, say=session.say)
    return model, optimizer, captured


def _open_recorder(session: Session, steps_per_epoch: int) -> StepRecorder:
    config = session.config
    every_steps, is_first = config.system.log_every_steps, session.topology.is_first
    limits = config.optimizer, config.evaluation, steps_per_epoch
    progress = Progress(*limits, enabled=is_first, every_steps=every_steps)
    recorder = StepRecorder(
        session.folder / METRICS_FILE if session.folder else None,
        progress,
        session.account,
        session.log,
        every_steps=every_steps,
        world=session.topology.world,
        stop_on_collapse=config.system.on_collapse == "stop",
        trackers=Trackers(config, session.folder, session.say) if session.folder else None,
    )
    session.resources.callback(recorder.close)
    return recorder


def _note(session: Session, training: Training, evaluations: Evaluations, epoch: int, steps: Iterable[Step]) -> None:
    """Record steps of an epoch, and take the verdict on the epoch before where it is known."""
    for step in steps:
        was_read = training.recorder.add(step, epoch)
        if was_read and not evaluations.is_final:
            evaluations.take_known(step.update)


def _end_epoch(session: Session, training: Training, evaluations: Evaluations, epoch: int, update: int) -> None:
    """Take the verdict on the epoch before, then save the weights of this one and begin their evaluation.

    The evaluation of the last epoch is waited for.
    """
    config = session.config
    # A broken model is noticed here at the latest, and never evaluated.
    mean_loss, speed = training.recorder.epoch_summary()
    session.log.epoch_stop(epoch)
    evaluations.take(update)
    if evaluations.is_final:
        return
    average_buffers(training.model, session.topology)
    with session.account.measure("saving"):
        save_model(session, training.model, training.data.train)
    is_last = _is_used_up(config, update, epoch)
    if epoch % config.evaluation.every_epochs and not is_last:
        return
    evaluations.start(
        TrainedEpoch(epoch=epoch, step=update, mean_loss=mean_loss, images_per_second=speed, is_last=is_last)
    )
    if is_last:
        evaluations.take(update)


def _is_used_up(config: RunConfig, update: int, epoch: int) -> bool:
    limits = config.optimizer
    return update >= limits.max_steps or 0 < limits.max_epochs <= epoch
