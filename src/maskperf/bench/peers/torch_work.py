"""What both sides of a benchmark share: threads, inputs, the count of FLOP, and a classifier that is confident.

Plain PyTorch that imports nothing of maskperf: it also runs in the Python of a peer.
"""

from functools import wraps

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

LOGIT_DEVIATION = 2.0
THRESHOLD = 0.05
PASSING_PER_IMAGE = 500
POOLED_SIZES = {"7x7": 7, "14x14": 14}
IOU_OF_GROUPS = {"levels": 0.7, "classes": 0.5}


def with_threads(make_work):
    """Return the same benchmark, prepared with the number of threads of its inputs."""

    @wraps(make_work)
    def prepared(inputs):
        torch.set_num_threads(inputs["threads"])
        return make_work(inputs)

    return prepared


def read_arrays(path, device="cpu"):
    """Return the arrays of a file as tensors by name."""
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]).to(device) for name in arrays.files}


def first_call(work, images):
    """Return what the work found, and facts with its FLOP as counted by PyTorch."""
    with FlopCounterMode(display=False) as counter:
        found = work()
    return found, {"items": images, "item": "images", "flop": counter.get_total_flops()}


@torch.no_grad()
def sharpen(linear, logits, images):
    """Change `linear`, which gave the `logits` [rois, classes], class 0 being the background.

    Afterwards about PASSING_PER_IMAGE pairs of RoI and class pass the score threshold, as those of a trained network:
    the logits of every class get the same mean and deviation, and those of the background are moved until the number
    is right.
    """
    mean, deviation = logits.mean(dim=0), logits.std(dim=0).clamp(min=1e-12)
    factor = LOGIT_DEVIATION / deviation
    sharp = (logits - mean) * factor
    low, high = -20.0, 40.0
    for _ in range(40):
        middle = (low + high) / 2
        if passing(sharp, middle) > PASSING_PER_IMAGE * images:
            low = middle
        else:
            high = middle
    linear.bias.copy_((linear.bias - mean) * factor)
    linear.bias[0] += low
    linear.weight.mul_(factor[:, None])


def passing(logits, background):
    """Return how many pairs of RoI and class are above the threshold with this much added to the background."""
    moved = logits.clone()
    moved[:, 0] += background
    return int((moved.softmax(dim=1)[:, 1:] > THRESHOLD).sum())
