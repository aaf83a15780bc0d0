"""The reference convergence points: how many epochs the reference implementation needed at each batch size.

Source: mlperf-logging, rcp_checker/training_3.1.0/rcps_maskrcnn.json; the same in rounds 2.0 to 3.1.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ReferencePoint:
    """One published set of runs of the reference implementation."""

    batch_size: int
    learning_rate: float
    decay_steps: tuple[int, int]
    warmup_steps: int
    warmup_factor: float
    proposals: int
    epochs: tuple[int, ...]  # to both targets, one number for each run


REFERENCE_POINTS = (
    ReferencePoint(
        batch_size=8,
        learning_rate=0.01,
        decay_steps=(144000, 192000),
        warmup_steps=500,
        warmup_factor=2e-5,
        proposals=1000,
        epochs=(13, 13, 12, 13, 13, 13, 13, 12, 13, 12),
    ),
    ReferencePoint(
        batch_size=48,
        learning_rate=0.06,
        decay_steps=(24000, 32000),
        warmup_steps=800,  # as published, although 0.06 / 9.6e-5 is 625
        warmup_factor=9.6e-5,
        proposals=6000,
        epochs=(14,) * 10,
    ),
    ReferencePoint(
        batch_size=64,
        learning_rate=0.08,
        decay_steps=(18000, 24000),
        warmup_steps=800,
        warmup_factor=1e-4,
        proposals=6000,
        epochs=(14, 14, 14, 14, 14, 14, 14, 14, 14, 20),
    ),
    ReferencePoint(
        batch_size=96,
        learning_rate=0.12,
        decay_steps=(12000, 16000),
        warmup_steps=625,
        warmup_factor=1.92e-4,
        proposals=6000,
        epochs=(14, 15, 14, 14, 14, 14, 14, 14, 14, 13, 14, 14, 15, 14, 14, 14, 14, 14, 14, 14),
    ),
    ReferencePoint(
        batch_size=128,
        learning_rate=0.16,
        decay_steps=(9000, 12000),
        warmup_steps=625,
        warmup_factor=2.56e-4,
        proposals=6000,
        epochs=(14,) * 10,
    ),
    ReferencePoint(
        batch_size=256,
        learning_rate=0.24,
        decay_steps=(5625, 7500),
        warmup_steps=1800,
        warmup_factor=1.33e-4,
        proposals=6000,
        epochs=(17, 17, 18, 17, 17, 17, 17, 17, 17, 17),
    ),
    ReferencePoint(
        batch_size=272,
        learning_rate=0.24,
        decay_steps=(5294, 7058),
        warmup_steps=1800,
        warmup_factor=1.33e-4,
        proposals=6000,
        epochs=(18, 17, 17, 18, 17, 17, 17, 17, 17, 16),
    ),
)
