import math

import pytest
import torch
from small_batches import small_batch, small_model

from maskperf.engine import gradients as gradients_module
from maskperf.engine.distributed import Topology
from maskperf.engine.forward import training_losses
from maskperf.engine.gradients import ALIGNMENT, Gradients, backward

ALONE = Topology()
FIRST_OF_TWO = Topology(world=2)


class Work:
    def __init__(self, waited, number):
        self.waited, self.number = waited, number

    def wait(self):
        self.waited.append(self.number)


@pytest.fixture
def exchanges(monkeypatch):
    """Return what is handed to the exchange and which of it was waited for, where another process adds the same."""
    given, waited = [], []

    def all_reduce(piece, operation, async_op):
        assert async_op and operation == torch.distributed.ReduceOp.SUM
        given.append(piece)
        piece.mul_(2)
        return Work(waited, len(given) - 1)

    monkeypatch.setattr(gradients_module.dist, "all_reduce", all_reduce)
    return given, waited


def model_in(dtype):
    model = small_model(seed=0)
    model.compute_dtype = dtype
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_gradient_has_a_span_of_its_own_in_the_buffer(dtype):
    model = model_in(dtype)
    buffer = Gradients(model, ALONE)
    buffer.zero()
    spans = []
    for parameter in model.parameters():
        gradient = parameter.grad
        assert gradient.untyped_storage().data_ptr() == buffer.flat.untyped_storage().data_ptr()
        assert gradient.stride() == parameter.stride() and gradient.storage_offset() % ALIGNMENT == 0
        spans.append((gradient.storage_offset(), gradient.storage_offset() + gradient.numel()))
    spans.sort()
    assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
    assert spans[-1][1] <= len(buffer.flat)


def test_what_a_gradient_held_is_kept_when_it_moves_into_the_buffer():
    model = model_in(torch.float32)
    buffer = Gradients(model, ALONE)
    first, second, *_ = (parameter for parameter in model.parameters() if parameter.requires_grad)
    first.grad = torch.full_like(first, 3.0)
    buffer.flat.fill_(7.0)
    buffer.hold()
    assert (first.grad == 3).all() and (second.grad == 0).all()
    buffer.hold()
    assert (first.grad == 3).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_piece_is_exchanged_once_waited_for_and_averaged(dtype, exchanges):
    given, waited = exchanges
    model, other = model_in(dtype), model_in(dtype)
    buffer, alone = Gradients(model, FIRST_OF_TWO), Gradients(other, ALONE)
    for side, own in ((buffer, model), (alone, other)):
        side.zero()
        backward(training_losses(own, small_batch(0)), parts=1, exchange=side.exchanged())
    assert torch.equal(buffer.flat, alone.flat)  # the mean of two processes with the same numbers
    assert sum(len(piece) for piece in given) == len(buffer.flat)
    assert sorted(waited) == list(range(len(given))) and len(given) == len(model.weight_casts()) + 1


def test_casts_that_are_done_early_are_exchanged_early(exchanges):
    given, _ = exchanges
    model = model_in(torch.bfloat16)
    buffer = Gradients(model, FIRST_OF_TWO)
    buffer.zero()
    casts = model.weight_casts()
    with buffer.exchanged():
        casts[2].after_gradients()
        assert len(given) == 1 and given[0].data_ptr() == casts[2].parameters[0].grad.data_ptr()
    assert len(given) == len(casts) + 1
    assert all(part.after_gradients is None for part in casts)


@pytest.mark.parametrize("problem", [math.nan, math.inf, -math.inf])
def test_a_problem_is_found_in_the_numbers_before_the_exchange(problem, monkeypatch):
    model = model_in(torch.float32)
    buffer = Gradients(model, FIRST_OF_TWO)
    monkeypatch.setattr(
        gradients_module.dist, "all_reduce", lambda piece, operation, async_op: Work([], piece.fill_(math.nan))
    )
    buffer.zero()
    with buffer.exchanged():
        pass
    assert buffer.largest_magnitude().item() == 0  # what the other process gave is its own problem
    buffer.zero()
    next(iter(model.parameters())).grad[0, 0, 0, 0] = problem
    with buffer.exchanged():
        pass
    assert not buffer.largest_magnitude().isfinite()
