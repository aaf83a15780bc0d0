"""Started by torchrun in test_evaluations.py: a run whose first evaluation meets the targets, known after step 4.

Arguments: a folder for the number of the last step of each process, then the arguments of the run.
"""

import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

from maskperf.cli.main import main
from maskperf.run import evaluations
from maskperf.run import loop as run

honest_score, honest_step = evaluations.score, run.train_step
path = Path(sys.argv[1]) / f"last_update_{os.environ['RANK']}"
is_far_enough = threading.Event()


def score(*arguments, **options):
    assert is_far_enough.wait(200)  # so that the next epoch trains while this one is scored
    found = honest_score(*arguments, **options)
    return replace(found, box_ap=0.5, mask_ap=0.5)


def step(*arguments, update, **options):
    result = honest_step(*arguments, update=update, **options)
    path.write_text(str(update))
    if update == 4:
        is_far_enough.set()
    return result


evaluations.score, run.train_step = score, step
code = main(sys.argv[2:])
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)  # as maskperf.__main__ does under torchrun
