"""`maskperf train` on three kinds of objects with run-length masks: python tests/train_own_data.py

Start it with PYTHONPATH=src:tests. It writes 300 images of tests/own_data.py, of which a fifth is held out, and trains
on them once for each seed, by default 1 to 5, with the defaults of the command. It prints the best box AP and mask AP,
minutes, and minutes of processor time. Exit code 1 where a box AP is below 0.5 or a run took more than ten minutes.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from own_data import write_own_data

SOURCES = Path(__file__).resolve().parents[1] / "src"
IMAGES, DATA_SEED = 300, 1
BOX_AP, MINUTES = 0.5, 10


@dataclass(frozen=True)
class Outcome:
    """What one training came to."""

    box_ap: float
    mask_ap: float
    minutes: float
    processor_minutes: float


def train(data: Path, run_dir: Path, *settings: str) -> Outcome:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "maskperf", "train", str(data), f"run_dir={run_dir}", *settings]
    started, before = time.monotonic(), os.times()
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(SOURCES)}, capture_output=True, text=True)
    after = os.times()
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    best = json.loads((run_dir / "results.json").read_text())["best"]
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return Outcome(best["box_ap"], best["mask_ap"], (time.monotonic() - started) / 60, seconds / 60)


def main() -> int:
    seeds = [int(text) for text in sys.argv[1:]] or [1, 2, 3, 4, 5]
    failed = False
    with tempfile.TemporaryDirectory(prefix="maskperf-own-data-") as folder:
        data = write_own_data(Path(folder) / "data", images=IMAGES, seed=DATA_SEED)
        for seed in seeds:
            found = train(data, Path(folder) / f"seed_{seed}", f"seed={seed}")
            failed = failed or found.box_ap < BOX_AP or found.minutes > MINUTES
            print(
                f"seed {seed}: box AP {found.box_ap:.3f}, mask AP {found.mask_ap:.3f}, {found.minutes:.1f} minutes, "
                f"{found.processor_minutes:.1f} of processor time",
                flush=True,
            )
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
