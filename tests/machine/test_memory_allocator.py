import ctypes
import subprocess
import sys

import pytest

from maskperf.engine import allocator as memory_allocator
from maskperf.engine.allocator import keep_freed_memory

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
    done = subprocess.run(
        [sys.executable, "-c", SECOND_BLOCK, mode], capture_output=True, text=True, timeout=300, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(
    not (sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")),
    reason="the allocator is not glibc's",
)
def test_freed_memory_is_used_again_without_page_faults():
    plain, reused = page_faults_of_the_second_block("plain"), page_faults_of_the_second_block("keep")
    assert reused < 20
    assert plain > 10 * max(reused, 1)


@pytest.mark.parametrize(("platform", "library"), [("darwin", None), ("linux", object())])
def test_other_allocators_are_left_alone_and_that_is_reported(monkeypatch, platform, library):
    def open_library(name):
        assert library is not None, "no library may be opened on another system"
        return library

    monkeypatch.setattr(memory_allocator.sys, "platform", platform)
    monkeypatch.setattr(memory_allocator.ctypes, "CDLL", open_library)
    assert keep_freed_memory.__wrapped__() is False


def test_refusal_of_the_allocator_is_returned(monkeypatch):
    class Refusing:
        gnu_get_libc_version = None

        def mallopt(self, option, value):
            return 0

    monkeypatch.setattr(memory_allocator.sys, "platform", "linux")
    monkeypatch.setattr(memory_allocator.ctypes, "CDLL", lambda name: Refusing())
    assert keep_freed_memory.__wrapped__() is False
