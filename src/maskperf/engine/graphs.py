"""Forward and backward replayed as CUDA graphs: the launches of a step are recorded once for each shape of batch.

Known shapes are recorded before training begins (`CapturedSteps.record`), others when they have come some times. The
exchange of gradients is recorded, the optimizer is not. Tested on a CPU with a stand-in for the graphs. Not yet run on
a GPU.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from maskperf.engine.capacity import capacity_of, fits, pad_batch
from maskperf.engine.distributed import Topology
from maskperf.engine.forward import mask_slots, training_losses
from maskperf.engine.gradients import BatchResult, Gradients, backward
from maskperf.engine.stopwatch import Stopwatch
from maskperf.model.mask_rcnn import MaskRcnn, padded_anchors
from maskperf.structures import Batch, BatchCapacity, Images, map_tensors, tensors_of
from maskperf.techniques import active

PLAIN_STEPS_FIRST = 2  # of a shape that was not recorded ahead: a rare one is not worth a recording
MAX_GRAPHS = 32
WARM_UPS = 2
USUAL_MASKS = 0.75  # of the positive RoIs that a batch may have: the slots of the mask head in a usual step


class CudaRecorder:
    """Recorder of CUDA graphs on one stream. All share one pool of memory: they never run at the same time."""

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, work: Callable[[], BatchResult]) -> None:
        """Run the work before it is recorded."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.current_stream().wait_stream(self._stream)

    def record(self, work: Callable[[], BatchResult]) -> tuple[BatchResult, Callable[[], None]]:
        """Return the tensors that each replay fills anew, and the replay."""
        graph = torch.cuda.CUDAGraph()
        before = torch.cuda.current_stream()
        try:
            # Other threads load data meanwhile, and their calls are none of this graph's business.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                result = work()
        finally:
            torch.cuda.set_stream(before)  # a capture that fails to end leaves its own stream behind
        return result, graph.replay


@dataclass(frozen=True)
class _Recording:
    inputs: Batch
    result: BatchResult
    replay: Callable[[], None]
    anchors: Tensor  # their address is in the graph, and the cache that made them may forget them


def capture_steps(
    model: MaskRcnn, capacities: Sequence[BatchCapacity], *, topology: Topology, say: Callable[[str], None]
) -> "CapturedSteps | None":
    """Return the captured steps for batches of these capacities; None if switched off."""
    if not active().captured_steps:
        say("captured steps: off (see speed.without), every step is launched anew")
        return None
    max_masks = capacities[0].images * mask_slots(model.config)
    return CapturedSteps(
        model,
        capacities,
        gradients=Gradients(model, topology),
        recorder=CudaRecorder(topology.device),
        say=say,
        num_mask_slots=round(max_masks * USUAL_MASKS) if active().packed_positives else None,
    )


class _Kind(NamedTuple):
    """What a recording does with its batch."""

    parts: int  # micro-batches of a step
    is_last: bool  # of them: the gradients are exchanged
    num_mask_slots: int | None  # see `training_losses`


class CapturedSteps:
    """Forward and backward by replay, where that can be, and launched anew elsewhere.

    A batch is padded to the first capacity that holds it; one that fits none, and the first ones of a shape that was
    not recorded ahead, are launched anew. If recording fails, all are from then on.
    """

    def __init__(
        self,
        model: MaskRcnn,
        capacities: Sequence[BatchCapacity],
        *,
        gradients: Gradients,
        recorder: CudaRecorder,
        say: Callable[[str], None],
        num_mask_slots: int | None = None,
    ):
        self.gradients = gradients
        self.num_mask_slots = num_mask_slots  # of all images of a batch together; None: room for all masks
        self.replayed, self.plain = 0, 0  # micro-batches so far
        self._model = model
        self._capacities = tuple(capacities)
        self._recorder = recorder
        self._say, self._say_once = say, cache(say)
        self._seen: Counter[tuple] = Counter()
        self._recordings: dict[tuple, _Recording] = {}
        self._gave_up = False

    def record(self, batches: Iterable[Batch], *, parts: int) -> None:
        """Record steps on batches of these shapes now; what the batches hold does not matter.

        `parts` is the number of micro-batches of a step, of which the last also exchanges the gradients. Gradients and
        running statistics are left as they were.
        """
        self.gradients.hold()
        before = self.gradients.flat.clone()
        with self.gradients.exchanged():  # once outside of a recording, where NCCL may still prepare itself
            pass
        self.gradients.flat.copy_(before)
        for batch in batches:
            capacity = self._capacity_of(batch)
            for is_last in (True,) if parts == 1 else (False, True):
                for num_mask_slots in dict.fromkeys((None, self.num_mask_slots)):
                    if capacity is not None and not self._gave_up:
                        self._record(batch, capacity, _Kind(parts, is_last, num_mask_slots))
        if not self._gave_up:
            slots = self._capacities[0].slots
            self._say(f"captured steps: {len(self._recordings)} recorded, each with room for {slots} objects an image")

    def make_room(self, needed: BatchCapacity) -> None:
        """Take batches that need up to so much as well; they are recorded when their shapes have come some times."""
        if not self._gave_up and not any(fits(needed, room) for room in self._capacities):
            self._capacities = (*self._capacities, needed)
            self._say(
                "captured steps: some images of this data set need more room; batches of them are recorded when their "
                f"shape has come {PLAIN_STEPS_FIRST} times"
            )

    def run(
        self, batch: Batch, *, part: int, parts: int, all_masks: bool = True, stopwatch: Stopwatch | None = None
    ) -> BatchResult:
        """Add the batch's gradients, divided by `parts`, to those in the buffer and return its losses.

        The last part's backward averages them over the processes, whether it is replayed or launched anew.
        """
        is_last = part == parts
        recording, padded = self._recording_of(batch, _Kind(parts, is_last, None if all_masks else self.num_mask_slots))
        self.gradients.hold()
        if recording is None:
            self.plain += 1
            exchange = self.gradients.exchanged() if is_last else None
            losses = training_losses(self._model, batch)
            return backward(losses, parts=parts, exchange=exchange, stopwatch=stopwatch)
        for recorded, new in zip(tensors_of(recording.inputs), tensors_of(padded), strict=True):
            if recorded.shape != new.shape or recorded.dtype != new.dtype:
                raise AssertionError(f"recorded: {recorded.shape} {recorded.dtype}; new: {new.shape} {new.dtype}")
            recorded.copy_(new)
        recording.replay()
        self.replayed += 1
        if stopwatch is not None:
            stopwatch.mark("replay")
        return BatchResult(recording.result.terms.clone(), recording.result.dropped_masks.clone())

    def _recording_of(self, batch: Batch, kind: _Kind) -> tuple[_Recording | None, Batch]:
        """Return the recording for this shape of batch, made now if it is time, and the batch padded to it."""
        capacity = self._capacity_of(batch)
        if self._gave_up or capacity is None:
            if not self._gave_up:
                self._say_once("captured steps: a batch has more ground truth than there is room for, launched anew")
            return None, batch
        key = _key(batch, capacity, kind)
        if key not in self._recordings:
            self._seen[key] += 1
            if self._seen[key] <= PLAIN_STEPS_FIRST:
                return None, batch
            if len(self._recordings) >= MAX_GRAPHS:
                self._say_once(f"captured steps: {MAX_GRAPHS} graphs are made; other shapes are launched anew")
                return None, batch
            self._record(batch, capacity, kind)
            if self._gave_up:
                return None, batch
        return self._recordings[key], pad_batch(batch, capacity)

    def _capacity_of(self, batch: Batch) -> BatchCapacity | None:
        needed = capacity_of(batch)
        return next((room for room in self._capacities if fits(needed, room)), None)

    def _record(self, batch: Batch, capacity: BatchCapacity, kind: _Kind) -> None:
        """Store a recording, or give up. Gradients and running statistics are left as they were."""
        self.gradients.hold()
        inputs: Batch = map_tensors(Tensor.clone, pad_batch(batch, capacity))

        def work(exchange: AbstractContextManager | None = None) -> BatchResult:
            losses = training_losses(self._model, inputs, kind.num_mask_slots)
            return backward(losses, parts=kind.parts, exchange=exchange)

        changing = [self.gradients.flat, *self._model.buffers()]
        before = [tensor.clone() for tensor in changing]
        try:
            for _ in range(WARM_UPS):
                self._recorder.warm_up(work)  # without an exchange: other processes may be at something else
            recorded_work = (lambda: work(self.gradients.exchanged())) if kind.is_last else work
            result, replay = self._recorder.record(recorded_work)
        except RuntimeError as error:
            self._gave_up = True
            self._recordings.clear()
            cause = _first_cause(error)
            self._say(f"captured steps: off from now on, every step is launched anew; recording failed: {cause}")
        else:
            assert isinstance(inputs.images, Images)
            height, width = inputs.images.pixels.shape[2:]
            anchors = padded_anchors(self._model, (height, width), inputs.images.pixels.device)
            self._recordings[_key(batch, capacity, kind)] = _Recording(inputs, result, replay, anchors)
        with torch.no_grad():
            for tensor, value in zip(changing, before, strict=True):
                tensor.copy_(value)


def _key(batch: Batch, capacity: BatchCapacity, kind: _Kind) -> tuple:
    """Return what a recording depends on, besides the numbers that are copied into it."""
    assert isinstance(batch.images, Images)
    pixels = batch.images.pixels
    return pixels.shape, pixels.dtype, pixels.stride(), capacity, kind


def _first_cause(error: BaseException) -> str:
    """Return, in one line, what went wrong first: the end of a failed capture raises an error of its own."""
    while error.__context__ is not None:
        error = error.__context__
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
