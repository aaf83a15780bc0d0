"""Weights of the smallest network of the recipe demo, as a run writes them, and the demo's data set beside them."""

from pathlib import Path

from maskperf.config import RunConfig
from maskperf.demo.dataset import write_demo_dataset
from maskperf.demo.shapes import CATEGORIES
from maskperf.engine.build import build_model
from maskperf.model.weights import save_state
from maskperf.overrides import with_overrides
from maskperf.recipes import demo
from maskperf.weights.categories import model_metadata

SIZES = [
    *("model.stem_channels=4", "model.stage_channels=8,8,16,16", "model.stage_blocks=1,1,1,1"),
    *("model.fpn_channels=8", "model.box_head_channels=16", "model.mask_head_channels=8", "model.mask_head_convs=1"),
    *("model.detections_per_image=20", "data.short_side=64", "data.long_side=96", "evaluation.batch_size=2"),
]
NAMES = {entry.id: entry.name for entry in CATEGORIES}


def write_small_weights(folder: Path, *, images: int = 5, pairs: tuple[str, ...] = ()) -> tuple[Path, RunConfig]:
    """Return the file of random weights and its configuration; the validation images are in folder / "demo"."""
    write_demo_dataset(folder / "demo", train_images=1, val_images=images, seed=3)
    config = with_overrides(demo(), [*SIZES, f"data.root={folder / 'demo'}", *pairs])
    model, _ = build_model(config.model, seed=1)
    save_state(model.state_dict(), folder / "model.safetensors", model_metadata(config, NAMES))
    return folder / "model.safetensors", config
