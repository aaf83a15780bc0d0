import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
DENSE_OVERLAPS_MIB = 608 * 800 // 16 * 3 * 500 * 4 >> 20  # of the anchors of P2 alone with 500 boxes: one matrix


def peak_mib(num_objects: int, num_polygons: int) -> int:
    """Return the largest memory of a process that trains on one image with so many objects."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])}
    command = [sys.executable, str(TESTS / "engine" / "crowded_step.py"), str(num_objects), str(num_polygons)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_five_hundred_boxes_and_an_object_of_190_polygons_need_no_memory_of_their_own():
    usual, crowded = peak_mib(2, 1), peak_mib(500, 190)
    assert crowded - usual < DENSE_OVERLAPS_MIB / 2, (usual, crowded)
