"""Our side of the benchmark of the recipe `demo`: training as a run does it, some steps at a time."""

from collections.abc import Callable
from contextlib import ExitStack

import torch

from maskperf.bench.ours_model import with_own_techniques
from maskperf.data.coco.categories import categories_of, match_categories
from maskperf.data.coco.index import locate, read_coco
from maskperf.data.images.capacity import batch_capacity
from maskperf.engine.build import build_model, keep_memory, prepare_steps
from maskperf.engine.distributed import init_topology
from maskperf.engine.optimizer import build_optimizer
from maskperf.engine.precision import set_precision
from maskperf.engine.step import train_step
from maskperf.mlperf.log import MlperfLog
from maskperf.overrides import from_json_text
from maskperf.run.batches import micro_batches
from maskperf.run.session import OpenedData, Session


@with_own_techniques
def demo_chunk(inputs: dict) -> tuple[Callable[[], dict], dict]:
    """Return the next steps of a training that goes on from chunk to chunk, pictures read from their files.

    The threads that make batches start anew in each chunk: none of them works while the other side is measured.
    The first loss of all is equal for all ways to compute it, up to rounding; later ones drift apart, since rounding
    decides which of two near boxes is kept, and training goes on from there.
    """
    config = from_json_text(inputs["config"])
    torch.set_num_threads(inputs["threads"])
    topology = init_topology(config.system.device)
    paths = locate(config.data)
    train = read_coco(paths.train_json, paths.train_images, training=True)
    names = categories_of(train)
    categories = match_categories(names, names, source="training", file="training", by_name=False)
    data = OpenedData(paths=paths, train=train, val=train, categories=categories, truth=None)
    session = Session(config=config, topology=topology, folder=None, log=MlperfLog(None), resources=ExitStack())
    keep_memory(topology.device)
    model, _ = build_model(config.model, config.seed)
    model.to(topology.device)
    messages: list[str] = []
    set_precision(model, config.speed.precision, topology.device, messages.append)
    optimizer = build_optimizer(model, config.optimizer)
    captured = prepare_steps(model, config, images=session.images_per_rank, topology=topology, say=messages.append)
    if captured is not None:
        captured.make_room(batch_capacity(train, session.images_per_rank))
    update = 0

    def work() -> dict:
        nonlocal update
        losses = []
        for batches in micro_batches(session, data, update, inputs["steps"]):
            update += 1
            result = train_step(
                model,
                optimizer,
                batches,
                update=update,
                config=config.optimizer,
                topology=topology,
                captured=captured,
            )
            losses.append(result.losses.sum())
        return {"first_loss": float(losses[0]), "last_loss": float(losses[-1])}

    return work, {"items": inputs["steps"] * config.optimizer.batch_size, "item": "images", "messages": messages}
