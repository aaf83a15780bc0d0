from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, settings

from maskperf.engine import allocator as memory_allocator

# The same examples in every run, on a machine of any speed, and nothing of them is kept in the folder.
settings.register_profile(
    "unchanging", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("unchanging")

# A run inside a test would make this process keep what all later tests free. The answer is remembered: as on a system
# without glibc, nothing is done.
with pytest.MonkeyPatch.context() as patch:
    patch.setattr(memory_allocator, "ctypes", SimpleNamespace(CDLL=lambda name: object()))
    memory_allocator.keep_freed_memory()


@pytest.fixture(autouse=True)
def _same_number_of_threads():
    """A run inside a test sets the number of threads, and with it how sums are rounded in all later tests."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)
