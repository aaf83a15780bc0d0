"""A step of training on weights of another family: finite losses, and a gradient for every trained parameter."""

from dataclasses import replace

import pytest
import torch
from golden_reference import flat_polygons

from maskperf.config import ModelConfig
from maskperf.engine import forward
from maskperf.engine.build import build_model
from maskperf.engine.forward import training_losses
from maskperf.model.conventions import CONVENTIONS
from maskperf.model.proposals import select_proposals
from maskperf.structures import Batch, Images, Targets
from maskperf.techniques import plain, using

SMALL = ModelConfig(
    num_classes=3,
    stage_blocks=(1, 1, 1, 1),
    stem_channels=8,
    stage_channels=(16, 16, 32, 32),
    frozen_stages=0,
    fpn_channels=8,
    box_head_channels=16,
    mask_head_channels=8,
    mask_head_convs=1,
    roi_samples_per_image=64,
)


def one_image():
    generator = torch.Generator().manual_seed(2)
    boxes = torch.tensor([[[20.0, 30.0, 90.0, 100.0], [60.0, 10.0, 120.0, 60.0]]])
    outlines = [box[[0, 1, 2, 1, 2, 3, 0, 3]].view(4, 2).numpy() for box in boxes[0]]
    labels = torch.tensor([[1, 2]])
    return Batch(
        images=Images(torch.randn(1, 3, 128, 128, generator=generator) * 50, torch.tensor([[128, 128]])),
        targets=Targets(boxes=boxes, labels=labels, valid=labels > 0, polygons=flat_polygons(outlines, [0, 1, 2])),
        image_ids=torch.tensor([1]),
        sample_seeds=torch.tensor([5]),
    )


@pytest.mark.parametrize("name", [name for name in CONVENTIONS if name != "reference"])
def test_every_trained_parameter_has_a_gradient_and_techniques_change_nothing(name, monkeypatch):
    model, _ = build_model(replace(SMALL, conventions=name), seed=0)
    # Scores and overlaps of random weights are so near to each other that rounding decides, so both train on the first
    # side's proposals; those of the other one are counted.
    chosen = []

    def proposals_of_the_first(*arguments, **options):
        chosen.append(select_proposals(*arguments, **options))
        return chosen[0]

    monkeypatch.setattr(forward, "select_proposals", proposals_of_the_first)
    losses = training_losses(model, one_image())
    losses.total().backward()
    trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
    assert [key for key, value in trained.items() if value.grad is None or not value.grad.isfinite().all()] == []
    with using(plain()):
        slow = training_losses(model, one_image())
    torch.testing.assert_close(losses.stacked(), slow.stacked(), rtol=1e-4, atol=1e-5)
    first, second = ({tuple(box) for box in found.boxes[found.valid].round().tolist()} for found in chosen)
    assert len(first & second) > 0.99 * len(first) > 100
