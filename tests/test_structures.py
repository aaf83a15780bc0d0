import pytest
import torch
from small_batches import small_batch

from maskperf.structures import to_device


@pytest.mark.parametrize(("device", "waits"), [("cpu", True), ("meta", False)])
def test_only_a_copy_towards_a_device_is_not_waited_for(monkeypatch, device, waits):
    honest, asked = torch.Tensor.to, []

    def to(tensor, *arguments, **keywords):
        asked.append(keywords["non_blocking"])
        return honest(tensor, *arguments, **keywords)

    monkeypatch.setattr(torch.Tensor, "to", to)
    to_device(small_batch(0), torch.device(device))
    assert asked and set(asked) == {not waits}
