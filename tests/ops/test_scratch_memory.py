import threading

import torch

from maskperf.ops.scratch_memory import Scratch


def test_memory_is_kept_grows_where_needed_and_is_apart_for_names_and_formats():
    scratch = Scratch()
    first = scratch.take("a", torch.float32, 2, 3)
    assert first.shape == (2, 3)
    assert scratch.take("a", torch.float32, 4).data_ptr() == first.data_ptr()
    assert scratch.take("b", torch.float32, 4).data_ptr() != first.data_ptr()
    assert scratch.take("a", torch.float64, 4).dtype == torch.float64
    grown = scratch.take("a", torch.float32, 7)
    assert grown.shape == (7,)
    assert scratch.buffers["a", torch.float32].numel() == 7


def test_each_thread_has_its_own():
    scratch = Scratch()
    own = scratch.take("a", torch.float32, 5)
    taken = []
    thread = threading.Thread(target=lambda: taken.append(scratch.take("a", torch.float32, 5)))
    thread.start()
    thread.join()
    assert taken[0].data_ptr() != own.data_ptr()
