"""The tests marked `gpu` run on the null CUDA: launches, waits, refusals, kinds and shapes, up to their comparisons.

Those that compare numbers can only come as far as that; a card has to show the rest.
"""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
NOT_ABOUT_NUMBERS = (
    "test_on_a_gpu_the_phases_are_those_of_the_device",
    "test_every_kernel_is_measured_against_its_twin",
    "test_all_families_are_here_or_with_the_preprocessing",
    "test_dispatch_and_kernels_never_wait_for_the_device",
    "test_empty_groups",
    "test_no_boxes_give_no_maps_and_zero_gradients",
    "test_a_mask_of_more_rows_than_a_word_has_bits_is_refused",
    "test_gradients_of_other_strides_are_refused",
)


def gpu_test_files() -> list[str]:
    marked = [path for path in TESTS.rglob("test_*.py") if re.search(r"^@?\S*.*mark\.gpu\b", path.read_text(), re.M)]
    marked = [path for path in marked if path.parent != Path(__file__).resolve().parent]
    return sorted(map(str, {*marked, *TESTS.glob("ops/kernels/test_*_kernel.py")}))


@pytest.mark.slow
def test_the_tests_marked_gpu_run_up_to_their_comparisons(null_cuda):
    options = ["-p", "null_comparisons", "-p", "no:cacheprovider", "-rA", "-m", "gpu"]
    files = gpu_test_files()
    operators = [name for name in files if "/ops/" in name]
    others = [name for name in files if "/ops/" not in name]
    # New memory is all zeros, so that what tests of operators read back is a valid index; a graph needs PyTorch's own
    # keeping of memory.
    no_keeping = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    told = ""
    for chosen, variables in ((operators, no_keeping), (others, {})):
        # Without rewritten assertions, which would print the numbers, and with them as many as there seem to be.
        done = null_cuda.run("-m", "pytest", "--assert=plain", *options, *chosen, variables=variables)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr
        told += done.stdout
    passed = re.findall(r"^PASSED \S+::(\w+)", told, re.M)
    assert set(NOT_ABOUT_NUMBERS) - set(passed) == set()
    assert len(re.findall(r"^XFAIL ", told, re.M)) > 50
