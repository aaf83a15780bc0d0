import gc
import weakref
from dataclasses import replace

import pytest
import torch
from refused_waits import refused_waits
from small_batches import SMALL, losses_and_gradients, small_model, varied_batch

from maskperf.config import OptimizerConfig
from maskperf.engine.build import build_model
from maskperf.engine.distributed import Topology
from maskperf.engine.gradients import BatchResult, Gradients
from maskperf.engine.graphs import PLAIN_STEPS_FIRST, CapturedSteps, CudaRecorder, capture_steps
from maskperf.engine.optimizer import build_optimizer
from maskperf.engine.step import train_step
from maskperf.model.mask_rcnn import padded_anchors
from maskperf.ops.anchors import pyramid_anchors
from maskperf.structures import BatchCapacity, to_device
from maskperf.techniques import plain, using

SMALLER = BatchCapacity(images=2, slots=3, polygons=20, points=200, object_polygons=3, object_points=30)
LARGER = BatchCapacity(images=2, slots=6, polygons=40, points=400, object_polygons=3, object_points=30)
CONFIG = OptimizerConfig(batch_size=2, learning_rate=1e-4, warmup_steps=0)
CPU = torch.device("cpu")
ALONE = Topology()


class Repeater(CudaRecorder):
    """A stand-in for CUDA graphs: recording does nothing, and a replay does the recorded work on the same tensors."""

    def __init__(self, fails_with=None):
        self.warm_ups, self.recorded = 0, 0
        self.fails_with = fails_with

    def warm_up(self, work):
        self.warm_ups += 1
        work()

    def record(self, work):
        if self.fails_with is not None:
            raise self.fails_with
        self.recorded += 1
        kept = BatchResult(torch.full((5,), float("nan")), torch.tensor(-1))

        def replay():
            result = work()
            kept.terms.copy_(result.terms)
            kept.dropped_masks.copy_(result.dropped_masks)

        return kept, replay


def captured_of(config=SMALL, capacities=(SMALLER, LARGER), fails_with=None):
    """Return a model, its captured steps, their recorder, and what is said."""
    model, said, recorder = build_model(config, 0)[0], [], Repeater(fails_with)
    gradients = Gradients(model, ALONE)
    captured = CapturedSteps(model, capacities, gradients=gradients, recorder=recorder, say=said.append)
    return model, captured, recorder, said


def run_once(captured, batch):
    """Return the result of a step of one micro-batch."""
    captured.gradients.zero()
    return captured.run(batch, part=1, parts=1)


def step(model, optimizer, batches, update, captured=None, device=CPU):
    topology = Topology(device=device)
    return train_step(model, optimizer, batches, update=update, config=CONFIG, topology=topology, captured=captured)


def run_of(batches_of_steps, model, captured=None):
    """Return the losses of every step; the model is trained on."""
    optimizer = build_optimizer(model, CONFIG)
    results = [step(model, optimizer, batches, n, captured) for n, batches in enumerate(batches_of_steps, start=1)]
    losses = torch.stack([result.losses for result in results])
    assert losses.isfinite().all()
    return losses, results


def assert_trains_as_plain(steps, model, captured, *, config=SMALL, rtol=1e-5, atol=1e-6):
    """Train on the steps, and compare losses and weights with those of a new model without captured steps."""
    plain = build_model(config, 0)[0]
    wanted, _ = run_of(steps, plain)
    found, results = run_of(steps, model, captured)
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol)
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)
    return results


VARIED = [
    [varied_batch(seed, objects, size)]
    for seed, (objects, size) in enumerate(
        [
            *[((2, 1), (64, 96))] * (PLAIN_STEPS_FIRST + 1),
            ((0, 3), (64, 96)),
            ((5, 1), (64, 96)),  # the larger capacity
            ((1,), (64, 96)),  # a short batch
            ((1, 1), (96, 64)),  # another padded size
            *[((6, 4), (64, 96))] * PLAIN_STEPS_FIRST,
            ((7, 1), (64, 96)),  # fits none
            ((3, 3), (64, 96)),
        ]
    )
]


def test_steps_that_are_replayed_train_as_plain_ones_do():
    model, captured, recorder, said = captured_of()
    results = assert_trains_as_plain(VARIED, model, captured)
    assert recorder.recorded == 2 and (captured.replayed, captured.plain) == (4, 7)
    assert "replay" in results[3].stopwatch.seconds() and "forward" in results[0].stopwatch.seconds()
    assert len(said) == 1 and "more ground truth than there is room for" in said[0]


def test_recording_leaves_gradients_and_running_statistics_as_they_were():
    config = replace(SMALL, batch_norm="trainable")
    model, captured, recorder, _ = captured_of(config)
    steps = [[varied_batch(seed, (2, 1)), varied_batch(seed + 50, (1, 2))] for seed in range(4)]  # two micro-batches
    # The weights are compared with num_batches_tracked and the running statistics.
    assert_trains_as_plain(steps, model, captured, config=config, rtol=1e-4, atol=1e-5)
    assert captured.replayed == 8 - 2 * PLAIN_STEPS_FIRST and recorder.warm_ups > 0  # first and last part apart


def test_replay_works_on_the_tensors_it_was_recorded_with():
    model, captured, _, _ = captured_of()
    for seed in range(PLAIN_STEPS_FIRST):
        run_once(captured, varied_batch(seed, (2, 1)))
    assert captured.replayed == 0
    first = run_once(captured, varied_batch(7, (2, 1)))
    assert captured.replayed == 1
    places = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    gradients = [place.clone() for place in places]
    model.zero_grad(set_to_none=True)  # as somebody else may do
    again = captured.run(varied_batch(7, (2, 1)), part=1, parts=1)
    for parameter, place, gradient in zip(model.parameters(), places, gradients, strict=True):
        assert parameter.grad is place
        assert torch.equal(place, gradient)
    assert torch.equal(first.terms, again.terms) and again.terms is not first.terms
    other = run_once(captured, varied_batch(8, (1, 1)))
    assert not torch.equal(other.terms, first.terms)
    assert torch.equal(again.terms, first.terms)  # a later replay does not write into a result


def test_a_recording_owns_the_anchors_that_its_graph_reads():
    model, captured, _, _ = captured_of()
    pyramid_anchors.cache_clear()
    for _ in range(PLAIN_STEPS_FIRST + 1):
        run_once(captured, varied_batch(0, (2, 1)))
    used = weakref.ref(padded_anchors(model, (64, 96), CPU))
    (recording,) = captured._recordings.values()
    assert used() is recording.anchors
    pyramid_anchors.cache_clear()  # as other sizees would do in time
    gc.collect()
    assert used() is not None


def test_after_a_failed_recording_every_step_is_plain_and_the_cause_is_reported_once():
    error = RuntimeError("the capture was made invalid")
    error.__context__ = RuntimeError("operation not permitted\nwhen stream is capturing")
    model, captured, recorder, said = captured_of(fails_with=error)
    steps = [[varied_batch(seed, (2, 1))] for seed in range(PLAIN_STEPS_FIRST + 3)]
    assert_trains_as_plain(steps, model, captured, rtol=0, atol=0)
    assert (captured.replayed, captured.plain) == (0, len(steps))
    assert len(said) == 1 and "operation not permitted when stream is capturing" in said[0]


def test_an_error_that_is_no_failure_of_recording_is_not_hidden():
    model, captured, _, said = captured_of(fails_with=KeyError("a bug"))
    with pytest.raises(KeyError, match="a bug"):
        run_of([[varied_batch(seed, (2, 1))] for seed in range(PLAIN_STEPS_FIRST + 1)], model, captured)
    assert said == []


def test_recorded_shapes_are_limited_and_it_is_reported(monkeypatch):
    monkeypatch.setattr("maskperf.engine.graphs.MAX_GRAPHS", 1)
    model, captured, recorder, said = captured_of()
    for size in ((64, 96), (96, 64)):
        for seed in range(PLAIN_STEPS_FIRST + 2):
            run_once(captured, varied_batch(seed, (1, 1), size))
    assert recorder.recorded == 1 and captured.replayed == 2
    assert said == ["captured steps: 1 graphs are made; other shapes are launched anew"]


def test_shapes_recorded_ahead_are_replayed_from_the_first_step():
    model, captured, recorder, said = captured_of()
    captured.record([varied_batch(99, (1, 1), size) for size in ((64, 96), (96, 64))], parts=1)
    assert recorder.recorded == 2
    assert said == ["captured steps: 2 recorded, each with room for 3 objects an image"]
    steps = [
        [varied_batch(seed, objects, size)]
        for seed, (objects, size) in enumerate([((2, 1), (64, 96)), ((3, 0), (96, 64)), ((1, 1), (64, 96))])
    ]
    assert_trains_as_plain(steps, model, captured)
    assert (captured.replayed, captured.plain) == (3, 0)
    run_of([[varied_batch(9, (1, 1)), varied_batch(8, (1, 1))]], model, captured)
    assert captured.plain == 2  # another number of micro-batches is another recording
    assert len(said) == 1
    captured.record([varied_batch(99, (1, 1))], parts=2)
    assert recorder.recorded == 4  # the last micro-batch exchanges the gradients, the others do not
    run_of([[varied_batch(9, (1, 1)), varied_batch(8, (1, 1))]], model, captured)
    assert (captured.replayed, captured.plain) == (5, 2)


def test_a_recording_ahead_that_fails_is_reported_and_every_step_is_plain():
    model, captured, recorder, said = captured_of(fails_with=RuntimeError("no memory"))
    captured.record([varied_batch(99, (1, 1), size) for size in ((64, 96), (96, 64))], parts=1)
    captured.make_room(LARGER)
    run_of([[varied_batch(0, (1, 1))]], model, captured)
    assert (captured.replayed, captured.plain) == (0, 1)
    assert len(said) == 1 and "no memory" in said[0]


def test_what_a_data_set_needs_beyond_the_known_room_is_recorded_when_it_comes():
    model, captured, recorder, said = captured_of(capacities=(SMALLER,))
    captured.record([varied_batch(99, (1, 1))], parts=1)
    captured.make_room(replace(SMALLER, slots=2))
    assert len(said) == 1  # that was no more than there is
    captured.make_room(LARGER)
    assert len(said) == 2 and "need more room" in said[1]
    steps = [[varied_batch(seed, (6, 2))] for seed in range(PLAIN_STEPS_FIRST + 2)] + [[varied_batch(50, (2, 1))]]
    assert_trains_as_plain(steps, model, captured)
    assert (captured.replayed, captured.plain) == (3, PLAIN_STEPS_FIRST)
    assert recorder.recorded == 2 and len(said) == 2


def test_switched_off_nothing_is_captured():
    said = []
    model = small_model(seed=0)
    with using(plain()):
        assert capture_steps(model, [SMALLER], topology=Topology(device=torch.device("cuda")), say=said.append) is None
    assert len(said) == 1 and "captured steps: off" in said[0]


def detached(losses, gradients):
    """Return both without any part of the graph: a capture must not meet nodes from outside."""
    return losses.stacked().detach(), [gradient.clone() for gradient in gradients.values()]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_graphs_give_the_losses_and_gradients_of_plain_steps(dtype):
    device = torch.device("cuda", torch.cuda.current_device())
    model = small_model(seed=0).to(device)
    model.compute_dtype = dtype
    said = []
    gradients, recorder = Gradients(model, Topology(device=device)), CudaRecorder(device)
    captured = CapturedSteps(model, (SMALLER, LARGER), gradients=gradients, recorder=recorder, say=said.append)
    for batch in [to_device(micro_batches[0], device) for micro_batches in VARIED]:
        terms, gradients = detached(*losses_and_gradients(model, batch))
        replayed = captured.replayed
        result = run_once(captured, batch)
        if captured.replayed > replayed:
            torch.testing.assert_close(result.terms, terms, rtol=1e-3, atol=1e-5)  # sums in another order
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                largest = gradient.abs().max().item()
                torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-2 * largest + 1e-6)
    assert (captured.replayed, captured.plain) == (4, 7), said


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_on_a_gpu_a_step_never_waits_plain_or_replayed():
    device = torch.device("cuda", torch.cuda.current_device())
    model = small_model(seed=0).to(device)
    gradients, recorder = Gradients(model, Topology(device=device)), CudaRecorder(device)
    captured = CapturedSteps(model, (SMALLER,), gradients=gradients, recorder=recorder, say=print)
    optimizer = build_optimizer(model, CONFIG)
    batch = to_device(varied_batch(0, (2, 1)), device)
    for update in range(1, PLAIN_STEPS_FIRST + 2):
        step(model, optimizer, [batch], update, captured, device)
    assert captured.replayed == 1
    with refused_waits():
        for with_graphs in (captured, None):
            result = step(model, optimizer, [batch], PLAIN_STEPS_FIRST + 2, with_graphs, device)
    assert captured.replayed == 2 and result.losses.isfinite().all()
