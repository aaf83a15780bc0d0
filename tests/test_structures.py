import pytest
import torch
from small_batches import small_batch

from maskperf.structures import begin_copy_to_host, pinned, tensors_of, to_device


@pytest.mark.parametrize(("device", "waits"), [("cpu", True), ("meta", False)])
def test_only_a_copy_towards_a_device_is_not_waited_for(monkeypatch, device, waits):
    honest, asked = torch.Tensor.to, []

    def to(tensor, *arguments, **keywords):
        asked.append(keywords["non_blocking"])
        return honest(tensor, *arguments, **keywords)

    monkeypatch.setattr(torch.Tensor, "to", to)
    to_device(small_batch(0), torch.device(device))
    assert asked and set(asked) == {not waits}


def test_pinned_reaches_every_tensor_and_leaves_pinned_ones_alone(monkeypatch):
    asked = []

    def pin_memory(tensor):
        asked.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: tensor.dtype == torch.bool)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    batch = small_batch(0)
    found = pinned(batch)
    assert found.targets.valid is batch.targets.valid
    assert found.targets.polygons.points is not batch.targets.polygons.points
    assert torch.equal(found.targets.polygons.points, batch.targets.polygons.points)
    assert found.targets.polygons.max_points == batch.targets.polygons.max_points
    assert len(asked) == len([tensor for tensor in tensors_of(batch) if tensor.dtype != torch.bool])


def test_what_is_on_the_host_already_is_handed_over_as_it_is():
    batch = small_batch(0)
    assert begin_copy_to_host(batch) == (batch, None)
    count = torch.tensor(3)
    assert begin_copy_to_host(count)[0] is count
