"""One run of the benchmark: set up, start the clock, train and evaluate by epochs, stop at the targets."""

import time
from collections.abc import Callable, Iterable
from functools import partial

from maskperf.config import RunConfig
from maskperf.data.images.capacity import batch_capacity
from maskperf.data.images.sampler import steps_per_epoch
from maskperf.engine.average import WeightAverage
from maskperf.engine.build import build_model, keep_memory, prepare_steps
from maskperf.engine.distributed import Topology, average_buffers, broadcast_tensors, wait_for_all
from maskperf.engine.gradients import require_gradients
from maskperf.engine.optimizer import build_optimizer
from maskperf.engine.precision import set_precision
from maskperf.engine.step import StepResult, train_step
from maskperf.engine.under_way import Step, StepsUnderWay
from maskperf.ops.kernels.selection import describe
from maskperf.run.checkpoint import Checkpoints, restore
from maskperf.run.data import clear_caches, complete_config, micro_batches, open_data
from maskperf.run.evaluations import Evaluations, Training, confirm
from maskperf.run.finish import FinishedRun, finish, saves_lost_run
from maskperf.run.progress import working
from maskperf.run.recorder import StepRecorder
from maskperf.run.resume import Resumption
from maskperf.run.session import Session, images_per_rank, open_session, save_model
from maskperf.run.stop_signals import StopSignals
from maskperf.schema import TrainedEpoch
from maskperf.techniques import chosen_techniques, using


def run_benchmark(config: RunConfig, topology: Topology, resumption: Resumption | None = None) -> FinishedRun:
    """Train a recipe until its targets are met at one evaluation, or its steps are used up; return what came of it.

    An epoch is scored while the next one trains; where its verdict ends the run, what was trained beyond is dropped.
    With `resumption` a run goes on from its checkpoint, `config` being that of the run.

    Errors: LostRunError where a number is not finite or the loss collapsed; KeyboardInterrupt or SystemExit after a
    signal.
    Source: the sequence and cadence of MLPerf Training rules, `tools/train_mlperf.py` of the reference.
    """
    config = complete_config(config, topology)
    with using(chosen_techniques(config.speed)), open_session(config, topology, resumption) as session:
        training, train, may_drop_masks = _set_up(session)
        num_steps, max_steps = training.steps_per_epoch, config.optimizer.max_steps
        evaluations, under_way = Evaluations(session, training), StepsUnderWay(train, may_drop_masks=may_drop_masks)
        batches_of = partial(micro_batches, config, topology, training.data.train)
        note = partial(_note, training, evaluations)
        with saves_lost_run(session, training, evaluations.rescues), StopSignals(speaks=topology.is_first) as stop:
            update, epoch = restore(session, training, evaluations, resumption) if resumption is not None else (0, 0)
            checkpoints = Checkpoints(session, training, evaluations, stop)
            # A checkpoint may be of the last step, before the end of its epoch.
            while not evaluations.is_final and (not _is_used_up(config, update, epoch) or update > epoch * num_steps):
                session.log.epoch_start(epoch + 1)
                if update == epoch * num_steps:  # else the epoch was begun before a checkpoint
                    training.recorder.start_epoch()
                epoch, first, waited = epoch + 1, update + 1, time.monotonic()
                steps = batches_of(update, min(epoch * num_steps, max_steps) - update)
                for batches in steps:
                    wait_seconds = time.monotonic() - waited
                    update += 1
                    result = train(batches, update=update, all_masks=False)
                    training.average.add()
                    if update == first:
                        require_gradients(result.without_gradient)
                    was_read = note(under_way.add(Step(update, epoch, result, wait_seconds), batches))
                    asked = 0 if evaluations.is_final else checkpoints.asked(was_read=was_read)
                    if asked:
                        note(under_way.rest())
                    if evaluations.is_final:
                        break
                    if asked:
                        checkpoints.take(update, epoch, asked)
                    waited = time.monotonic()
                steps.close()  # with the threads that make batches ahead, where a verdict came before the last step
                if not evaluations.is_final:
                    note(under_way.rest())
                if not evaluations.is_final:
                    _end_epoch(session, training, evaluations, epoch, update)
                if not (evaluations.is_final or _is_used_up(config, update, epoch)):
                    asked = checkpoints.asked(was_read=True)  # a signal may have come during the evaluation
                    if asked:
                        checkpoints.take(update, epoch + 1, asked)
        verdict = evaluations.verdict
        assert verdict is not None  # the last epoch is always evaluated
        session.account.stop()
        session.log.run_stop(success=verdict.status != "aborted")
        training.recorder.close()
        session.writer.wait()
        return finish(session, training, confirm(session, training.data, verdict))


def _set_up(session: Session) -> tuple[Training, Callable[..., StepResult], bool]:
    """Return what is trained, the step, and whether a step may drop masks; on the way the clock starts."""
    config, topology, images = session.config, session.topology, images_per_rank(session.config, session.topology)
    session.log.submission(config)
    clear_caches(session)
    session.log.init_start(config)
    model, notices = build_model(config.model, config.seed)
    for notice in notices:
        session.say(notice)
    model.to(topology.device)
    broadcast_tensors(model.state_dict().values(), topology)
    set_precision(model, config.speed.precision, topology.device, session.say)
    for line in (describe(topology.device), keep_memory(topology.device)):
        session.say(line)
    optimizer = build_optimizer(model, config.optimizer)
    captured = prepare_steps(model, config, images=images, topology=topology, say=session.say)
    wait_for_all(topology)
    session.log.run_start()  # before it, no data set may be read
    session.account.start()
    with session.account.measure("opening the data"), working("opening the data", enabled=topology.is_first):
        data = open_data(session)
    session.log.samples(len(data.train.image_ids), len(data.val.image_ids))
    if captured is not None:
        captured.make_room(batch_capacity(data.train, images, config.data))
    num_steps = steps_per_epoch(len(data.train.image_ids), config.optimizer.batch_size)
    average = WeightAverage(model, config.optimizer.average_decay)
    training = Training(data, model, optimizer, StepRecorder(session, num_steps), num_steps, average)
    train = partial(train_step, model, optimizer, config=config.optimizer, topology=topology, captured=captured)
    return training, train, captured is not None and captured.num_mask_slots is not None


def _note(training: Training, evaluations: Evaluations, steps: Iterable[Step]) -> bool:
    """Record steps, and take the verdict on the epoch before where it is known.

    Return whether the device was read.
    """
    has_read = False
    for step in steps:
        if training.recorder.add(step):
            has_read = True
            if not evaluations.is_final:
                evaluations.take_known(step.update)
    return has_read


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
    is_last = _is_used_up(config, update, epoch)
    with training.average.in_place():
        if training.average.tensors:  # its running statistics are those of this process
            average_buffers(training.model, session.topology)
        with session.account.measure("saving"):
            save_model(session, training.model, training.data.train)
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
