"""The batches that one process trains on, a pure function of the seed and the number of the update."""

from collections.abc import Iterator
from functools import partial
from itertools import islice

from maskperf.data.images.loader import TrainingLoader, feeding_for
from maskperf.data.images.raw_images import prepare_images
from maskperf.engine.precision import resolve_precision
from maskperf.run.session import OpenedData, Session
from maskperf.structures import Batch


def micro_batches(session: Session, data: OpenedData, updates_done: int, num_steps: int) -> Iterator[list[Batch]]:
    """Return the micro-batches of each of the next steps, on the device."""
    config, topology = session.config, session.topology
    per_step = config.optimizer.accumulation_steps
    loader = TrainingLoader(
        data.train,
        config.data,
        seed=config.seed,
        rank=topology.rank,
        world=topology.world,
        images_per_rank=session.images_per_rank,
        pin_memory=topology.device.type == "cuda",
        feeding=feeding_for(topology.device),
    )
    prepare = partial(
        prepare_images,
        device=topology.device,
        dtype=resolve_precision(config.speed.precision, topology.device),
    )
    batches = iter(loader.batches(updates_done * per_step, num_steps * per_step))
    while of_one_step := list(islice(batches, per_step)):
        yield [prepare(batch) for batch in of_one_step]
