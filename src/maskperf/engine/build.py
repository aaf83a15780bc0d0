"""A model ready to train: made from a seed, weights loaded, kernels warmed up."""

import copy

import torch

from maskperf.config import DataConfig, ModelConfig, SpeedConfig
from maskperf.engine.forward import training_losses
from maskperf.machine.memory_allocator import keep_freed_memory
from maskperf.model.backbone_file import load_backbone_weights
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.model.weights import load_model_weights
from maskperf.seeds import derive_seed
from maskperf.structures import Batch, Images, Polygons, Targets, to_device


def build_model(config: ModelConfig, seed: int, speed: SpeedConfig | None = None) -> tuple[MaskRcnn, list[str]]:
    """Returns a model on the CPU and notices about the weights it loaded. Random weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "initial weights") % 2**63)
        model = MaskRcnn(config, speed)
    notices = []
    if config.backbone_weights:
        notices += load_backbone_weights(model, config.backbone_weights)
    if config.initial_weights:
        notices += load_model_weights(model, config.initial_weights)
    return model, notices


def keep_memory(speed: SpeedConfig, device: torch.device) -> str:
    """Returns one line about what becomes of freed memory, after it was decided. Cannot be undone in this process."""
    if device.type != "cpu":
        return "memory: kept by PyTorch's allocator for the GPU"
    if not speed.keep_freed_memory:
        return "memory: freed memory goes back to the system (speed.keep_freed_memory=false)"
    if keep_freed_memory():
        return "memory: freed memory stays with the process"
    return "memory: freed memory goes back to the system, although speed.keep_freed_memory=true: there is no glibc here"


def padded_size_hw(data: DataConfig) -> tuple[int, int]:
    """Returns the canvas of the widest landscape picture."""
    divisor = data.size_divisor
    return -(-data.short_side // divisor) * divisor, -(-data.long_side // divisor) * divisor


def made_up_batch(data: DataConfig, images: int) -> Batch:
    """Returns a gray batch with one square object an image, of the size most batches will have."""
    height, width = padded_size_hw(data)
    side = float(data.short_side // 2)
    box = torch.tensor([0.0, 0.0, side, side])
    square = torch.tensor([[0.0, 0.0], [side, 0.0], [side, side], [0.0, side]])
    polygons = Polygons(
        points=square.repeat(images, 1),
        point_offsets=torch.arange(images + 1) * 4,
        ring_offsets=torch.arange(images + 1),
        max_points=4,
        max_rings=1,
    )
    return Batch(
        images=Images(
            pixels=torch.zeros(images, 3, height, width),
            sizes_hw=torch.tensor([[data.short_side, min(data.long_side, width)]] * images),
        ),
        targets=Targets(
            boxes=box.repeat(images, 1, 1),
            labels=torch.ones(images, 1, dtype=torch.int64),
            valid=torch.ones(images, 1, dtype=torch.bool),
            polygons=polygons,
        ),
        image_ids=torch.zeros(images, dtype=torch.int64),
        sample_seeds=torch.arange(images),
    )


def warm_up(model: MaskRcnn, data: DataConfig, images: int, device: torch.device) -> None:
    """Runs forward and backward once on made-up data, so that no kernel is first met inside the timed run.

    The model is as it was before: no gradient and no running statistic stays.
    """
    state = copy.deepcopy(model.state_dict())
    training_losses(model, to_device(made_up_batch(data, images), device)).total().backward()
    model.zero_grad(set_to_none=True)
    model.load_state_dict(state)
