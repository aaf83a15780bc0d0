"""A whole training step with the kernels and without: they are taken where they should be, and change nothing."""

from dataclasses import replace

import pytest
import small_batches
import torch
from kernel_device import DEVICE

from maskperf.bench.gpu_steps import synthetic_batch
from maskperf.bench.plan import GpuPlan
from maskperf.engine.build import build_model
from maskperf.engine.forward import training_losses
from maskperf.ops.kernels import selection
from maskperf.techniques import Techniques, using

MODEL = replace(
    small_batches.SMALL,
    stem_channels=4,
    stage_channels=(4, 4, 4, 4),
    fpn_channels=4,
    box_head_channels=8,
    mask_head_channels=4,
    roi_samples_per_image=8,
    candidates_per_level=(70, 1000),
    proposals_train=40,
)
PLAN = GpuPlan(device=DEVICE, model=MODEL, objects=2)


def losses_and_gradients(with_kernels: bool, monkeypatch) -> tuple[torch.Tensor, dict[str, torch.Tensor], set[str]]:
    taken = set()
    device = torch.device(DEVICE)
    model, _ = build_model(MODEL, 3)  # which looks at its heads on the CPU, where there are no kernels

    def load(name: str, load=selection.load):
        taken.add(name)
        return load(name)

    with monkeypatch.context() as patch, using(Techniques().without("fast_convolutions", "packed_positives")):
        patch.setattr(selection, "load", load)
        patch.setattr(selection, "missing_part", lambda device: "" if with_kernels else "not wanted")
        losses = training_losses(model.to(device), synthetic_batch(PLAN, (64, 96), 1, device))
        losses.total().backward()
    gradients = {name: place.grad for name, place in model.named_parameters() if place.grad is not None}
    return losses.stacked().detach(), gradients, taken


def test_losses_and_gradients_are_those_without_kernels(monkeypatch):
    found, gradients, taken = losses_and_gradients(True, monkeypatch)
    expected, expected_gradients, not_taken = losses_and_gradients(False, monkeypatch)
    assert taken == {"matching", "nms", "patches", "ranking", "rasterize", "roi_align", "sampling"}
    assert not_taken == set()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        largest = float(expected_gradients[name].abs().max())
        # Sums in another order, on their way through the whole network.
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-3, atol=1e-5 * largest + 1e-9)
    assert float(expected[4]) == pytest.approx(0.69, abs=0.1)  # there were positive RoIs
