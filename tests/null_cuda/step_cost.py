"""What a training step moves, computes and launches, by part: python tests/null_cuda/step_cost.py IMAGES OBJECTS

Of 800 x 1344 images in bfloat16, with that many objects in each. Counted on the null CUDA, see null_step_cost.py for
the rules; nothing is measured on a card. MASKPERF_CUDA_PYTHON names a Python with a CUDA build of PyTorch, if the one
that runs this has none; the null CUDA is built anew unless MASKPERF_NULL_CUDA_FOLDER says where it is kept.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from build_null_cuda import build, environment_on, missing_part

HERE = Path(__file__).resolve().parent
COLUMNS = ("GB", "TFLOP", "operators", "launches")


def costs(images: str, objects: str, folder: Path) -> dict[str, dict[str, int]]:
    """Return the costs by part, as null_step_cost.py finds them."""
    python = os.environ.get("MASKPERF_CUDA_PYTHON", sys.executable)
    if missing := missing_part(python):
        sys.exit(f"step_cost.py: {missing}")
    environment = environment_on(build(python, folder)) | {"PYTHONPATH": str(HERE.parents[1] / "src")}
    command = [python, HERE / "null_step_cost.py", images, objects]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(found: dict[str, dict[str, int]]) -> str:
    """Return one line for each part, and their sum."""
    total = {name: sum(cost[name] for cost in found.values()) for name in next(iter(found.values()))}
    lines = [f"{'':32}" + "".join(f"{column:>11}" for column in COLUMNS)]
    for part, cost in (found | {"all": total}).items():
        amounts = f"{cost['bytes'] / 1e9:11.2f}{cost['flop'] / 1e12:11.3f}"
        lines.append(f"{part:32}{amounts}{cost['operators']:11}{cost['launches']:11}")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: step_cost.py IMAGES OBJECTS")
    with tempfile.TemporaryDirectory(prefix="maskperf-null-cuda-") as temporary:
        print(table(costs(*sys.argv[1:], Path(os.environ.get("MASKPERF_NULL_CUDA_FOLDER", temporary)))))
