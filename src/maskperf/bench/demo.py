"""How fast the recipe `demo` trains with all switches on, beside the plain path."""

from dataclasses import replace
from pathlib import Path

from maskperf.bench.child import our_side
from maskperf.bench.names import DEMO
from maskperf.bench.plan import SEED, Plan, inputs_of_side
from maskperf.bench.session import CaseResult, Say, compare
from maskperf.bench.switches import ALL_OFF, ALL_ON, speed_with
from maskperf.config import RunConfig
from maskperf.demo.dataset import ensure_demo_dataset
from maskperf.techniques import chosen_techniques

STEPS = 10  # of a chunk: one measurement


def measure_demo(plan: Plan, folder: Path, config: RunConfig, say: Say) -> CaseResult:
    """Return two sides that train on the same batches, chunk by chunk in turn. The first chunk is the warm-up.

    Both sides have `aspect_buckets` as configured, since that switch decides what the batches are.
    """
    config = _on_synthetic_data(config, folder / "demo")
    batching = ("aspect_buckets",) if chosen_techniques(config.speed).aspect_buckets else ()
    plain = replace(config, speed=speed_with(batching, precision="float32"))
    work = [
        (our_side(name), "demo_chunk", inputs_of_side(plan, side_config) | {"steps": STEPS})
        for name, side_config in ((ALL_ON, config), (ALL_OFF, plain))
    ]
    name = f"{STEPS} steps of {config.optimizer.batch_size} images"
    return CaseResult(benchmark=DEMO, case=name, sides=compare(work, plan, optional=set(), say=say))


def _on_synthetic_data(config: RunConfig, root: Path) -> RunConfig:
    data = replace(config.data, root=str(root))
    train_images, val_images = data.generate_images
    ensure_demo_dataset(root, train_images=train_images, val_images=val_images, seed=data.generate_seed)
    return replace(config, data=data, seed=SEED)
