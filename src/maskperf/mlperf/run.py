"""One run of the benchmark: set up, start the clock, train and evaluate by epochs, stop at the targets."""

import time
from collections.abc import Iterator
from itertools import islice

import torch

from maskperf.config import RunConfig
from maskperf.data.loader import TrainingLoader
from maskperf.data.sampler import steps_per_epoch
from maskperf.engine.build import build_model, warm_up
from maskperf.engine.distributed import broadcast_model, init_topology
from maskperf.engine.optimizer import build_optimizer
from maskperf.engine.step import train_step
from maskperf.mlperf.finish import RunResult, finish
from maskperf.mlperf.judge import Judgement, judge
from maskperf.mlperf.session import (
    OpenedData,
    Session,
    clear_caches,
    generate_data,
    open_data,
    open_recorder,
    open_session,
    save_model,
)
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.records.summary import EpochRecord
from maskperf.structures import Batch, to_device


def run_benchmark(config: RunConfig) -> RunResult:
    """Returns what a run achieved: trains a recipe until both targets are met at one evaluation, or its steps are used.

    Source: the sequence and cadence of MLPerf Training rules, `tools/train_mlperf.py` of the reference.
    """
    topology = init_topology(config.system.device)
    with open_session(config, topology) as session:
        config = session.config
        generate_data(session)
        model, optimizer = _initialize(session)
        session.log.run_start()
        start = time.monotonic()
        data = open_data(session)
        session.log.samples(len(data.train.image_ids), len(data.val.image_ids))
        num_steps = steps_per_epoch(len(data.train.image_ids), config.optimizer.batch_size)
        recorder = open_recorder(session, num_steps)
        records, judgement, update, epoch = [], None, 0, 0
        while not _is_over(config, judgement, update, epoch):
            epoch += 1
            session.log.epoch_start(epoch)
            recorder.start_epoch()
            waited = time.monotonic()
            for micro_batches in _steps(session, data, update, num_steps):
                wait_seconds = time.monotonic() - waited
                update += 1
                result = train_step(
                    model, optimizer, micro_batches, update=update, config=config.optimizer, topology=topology
                )
                recorder.add(result, epoch=epoch, step=update, data_wait_seconds=wait_seconds)
                waited = time.monotonic()
            mean_loss, speed = recorder.epoch_summary()
            session.log.epoch_stop(epoch)
            judgement = judge(session, data, model, epoch)
            record = EpochRecord(
                epoch=epoch,
                step=update,
                mean_loss=mean_loss,
                box_ap=judgement.box_ap,
                mask_ap=judgement.mask_ap,
                images_per_second=speed,
                seconds_since_start=time.monotonic() - start,
                evaluation_seconds=judgement.seconds,
            )
            records.append(record)
            recorder.evaluation(record)
            save_model(session, model, data.train)
        seconds = time.monotonic() - start
        session.log.run_stop(success=judgement.reached)
        recorder.close()
        return finish(session, data, model, records=records, judgement=judgement, seconds=seconds)


def _initialize(session: Session) -> tuple[MaskRcnn, torch.optim.Optimizer]:
    """Returns model and optimizer on the device, everything that may be done before the clock starts done."""
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
    optimizer = build_optimizer(model, config.optimizer)
    warm_up(model, config.data, session.images_per_rank, topology.device)
    return model, optimizer


def _is_over(config: RunConfig, judgement: Judgement | None, update: int, epoch: int) -> bool:
    if judgement is not None and (judgement.reached or judgement.differences):
        return True
    limits = config.optimizer
    return update >= limits.max_steps or 0 < limits.max_epochs <= epoch


def _steps(session: Session, data: OpenedData, update: int, num_steps: int) -> Iterator[list[Batch]]:
    """Returns the micro-batches of each step of an epoch, on the device."""
    config, topology = session.config, session.topology
    per_step = config.optimizer.accumulation_steps
    num_steps = min(num_steps, config.optimizer.max_steps - update)
    loader = TrainingLoader(
        data.train,
        config.data,
        seed=config.seed,
        rank=topology.rank,
        world=topology.world,
        images_per_rank=session.images_per_rank,
    )
    batches = iter(loader.batches(update * per_step, num_steps * per_step))
    while micro_batches := list(islice(batches, per_step)):
        yield [to_device(batch, topology.device) for batch in micro_batches]
