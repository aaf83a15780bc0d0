"""Waiting for a GPU as an error, for a part of a test."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def refused_waits() -> Iterator[None]:
    """Make every wait for the device inside the `with` block a RuntimeError; the mode never outlives the block."""
    try:
        with warnings.catch_warnings():
            # Said once a process. As an error it would leave the mode on and fail every later test.
            warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype feature")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
