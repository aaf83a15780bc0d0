"""A step of training on weights of another family: finite losses, and a gradient for every trained parameter."""

from dataclasses import replace

import pytest
import torch
from small_batches import SMALL, batch_of, rectangle

from maskperf.engine import forward
from maskperf.engine.build import build_model
from maskperf.engine.forward import training_losses
from maskperf.model.conventions import CONVENTIONS
from maskperf.model.proposals import select_proposals
from maskperf.techniques import plain, using

MODEL = replace(SMALL, num_classes=3, candidates_per_level=(2000, 2000), proposals_train=2000, roi_samples_per_image=64)


def one_image():
    boxes = ([20.0, 30, 90, 100], [60.0, 10, 120, 60])
    objects = [(box, label, [rectangle(*box)]) for label, box in enumerate(boxes, start=1)]
    pixels = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(2)) * 50
    return batch_of(pixels, [objects], (128, 128), [1])


@pytest.mark.parametrize("name", [name for name in CONVENTIONS if name != "reference"])
def test_every_trained_parameter_has_a_gradient_and_techniques_change_nothing(name, monkeypatch):
    model, _ = build_model(replace(MODEL, conventions=name), seed=0)
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
