import ctypes
import subprocess
import sys

import pytest

from maskperf.engine import allocator

# Prints the page faults of the second of two equal blocks of 64 MiB, 16384 pages of 4 KiB.
SECOND_BLOCK = """
import resource, sys
from maskperf.engine.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory() and keep_freed_memory()
page_faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2):
    before = page_faults()
    block = bytearray(b"x") * 2**26
    after = page_faults()
    del block
print(after - before)
"""


def page_faults_of_the_second_block(mode):
    return int(subprocess.check_output([sys.executable, "-c", SECOND_BLOCK, mode], timeout=300))


@pytest.mark.skipif(
    not (sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")),
    reason="the allocator is not glibc's",
)
def test_freed_memory_is_used_again_without_page_faults():
    plain, reused = page_faults_of_the_second_block("plain"), page_faults_of_the_second_block("keep")
    assert reused < 20
    assert plain > 10 * max(reused, 1)


class Refusing:
    gnu_get_libc_version = None

    def mallopt(self, option, value):
        return 0


@pytest.mark.parametrize(("platform", "library"), [("darwin", None), ("linux", object()), ("linux", Refusing())])
def test_other_allocators_are_left_alone_and_that_is_reported_as_is_a_refusal(monkeypatch, platform, library):
    def open_library(name):
        assert library is not None, "no library may be opened on another system"
        return library

    monkeypatch.setattr(allocator.sys, "platform", platform)
    monkeypatch.setattr(allocator.ctypes, "CDLL", open_library)
    assert allocator.keep_freed_memory.__wrapped__() is False
