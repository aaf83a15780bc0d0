"""The kernels can be compiled for a GPU where there is none; what they then compute is not tested here."""

import re
import subprocess
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from golden_reference import flat_polygons

triton = pytest.importorskip("triton", reason="the Python package triton is not installed")
from triton.backends.compiler import GPUTarget  # noqa: E402 -- after the check that there is a Triton
from triton.runtime.jit import JITFunction  # noqa: E402

from maskperf.data.images.raw_images import UploadBuffers, pack_images  # noqa: E402
from maskperf.ops.kernels.matching import match_boxes  # noqa: E402
from maskperf.ops.kernels.nms import nms_sorted  # noqa: E402
from maskperf.ops.kernels.patches import cell_patches  # noqa: E402
from maskperf.ops.kernels.preprocess import resize_images  # noqa: E402
from maskperf.ops.kernels.products import (  # noqa: E402
    WeightCasts,
    add_rectified,
    own_class_gradients,
    own_class_logits,
)
from maskperf.ops.kernels.ranking import best_anchors, best_mask  # noqa: E402
from maskperf.ops.kernels.rasterize import rasterize_crops  # noqa: E402
from maskperf.ops.kernels.roi_align import pyramid_roi_align  # noqa: E402
from maskperf.ops.kernels.sampling import compact, draw_balanced  # noqa: E402

H200 = GPUTarget("cuda", 90, 32)
STRIDES = (4, 8, 16, 32)
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


@pytest.fixture
def compiled(monkeypatch, tmp_path) -> dict:
    """Return the kernels compiled so far, by name: in this test they are compiled when called, and not run."""
    found = {}
    machine = SimpleNamespace(
        get_current_target=lambda: H200,
        get_current_device=lambda: "no device",  # the key under which a kernel remembers what was compiled for it
        get_current_stream=lambda device: 0,
    )
    run = JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **options):
        found[self.__name__] = run(self, *arguments, grid=grid, warmup=True, **options)

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(triton.runtime.driver, "_active", machine)
    return found


def stack_bytes(kernel, tmp_path) -> int:
    """Return how many bytes a thread needs outside its registers."""
    program = tmp_path / "kernel.cubin"
    program.write_bytes(kernel.asm["cubin"])
    words = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(program)]
    usage = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True).stdout
    return int(usage.split("STACK:")[1].split()[0])


def zeros(*shape: int, dtype=torch.int64) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def pyramid_both_ways(function, dtype):
    features = [zeros(1, 256, 256 // stride, 320 // stride, dtype=dtype).requires_grad_() for stride in STRIDES]
    result = function(features)
    torch.autograd.grad(result, features, torch.zeros_like(result))


def pool(features):
    return pyramid_roi_align(features, torch.zeros(1, 6, 4), size=7, strides=STRIDES)


def take_patches(features):
    return cell_patches(features, zeros(1, 6))


def match(images, slots, keep_best_of_truth=True):
    rule = {"positive_iou": 0.7, "negative_iou": 0.3, "keep_best_of_truth": keep_best_of_truth}
    truth, valid = torch.zeros(images, slots, 4), torch.ones(images, slots, dtype=torch.bool)
    match_boxes(torch.zeros(1 if keep_best_of_truth else images, 1000 + slots, 4), truth, valid, **rule)


def draw():
    triangle = np.array([[0, 0], [9, 0], [5, 9]], np.float32)
    rasterize_crops(flat_polygons([triangle], [0, 1]), torch.tensor([0]), torch.ones(1, 4), 28)


def sample(count, images, max_positive=128):
    mask = zeros(images, count, dtype=torch.bool)
    draw_balanced(mask, mask, zeros(images), num_samples=256, max_positive=max_positive)
    compact(mask, max(1, count // 2))


def rank(images, counts):
    best_anchors(torch.zeros(images, sum(counts)), counts, limit=counts[1] + 3)


def resize(dtype):
    buffers = UploadBuffers(max_waiting=1, pin_memory=False)
    options = {"padded_hw": (32, 64), "means_bgr": (1.0, 2.0, 3.0), "buffers": buffers}
    resize_images(pack_images([np.zeros((20, 40, 3), np.uint8)], [(30, 60)], [True], **options), dtype)


def cast():
    (result,) = WeightCasts([torch.nn.Parameter(torch.zeros(64, 32, 3, 3))], [torch.ones(64)], BFLOAT16)()
    torch.autograd.backward(result, torch.zeros_like(result))


def own_class_both_ways():
    maps, weights = zeros(3, 784, 256, dtype=BFLOAT16), zeros(3, 256, dtype=BFLOAT16)
    own_class_logits(maps, weights, torch.zeros(3))
    own_class_gradients(maps, weights, torch.zeros(3, 784))


def add_gradients():
    maps = zeros(1, 256, 64, 64, dtype=BFLOAT16).contiguous(memory_format=torch.channels_last)
    add_rectified(maps, maps, maps)


READS, WRITES = "ld.global.v4.b32", "st.global.v4.b32"  # 16 bytes at a time
EXACT = ("div.rn.f32", "!fma.rn")  # Triton's plain division is not rounded right
# For each case the kernels, and what is in their code, with "!" what is not.
CASES = {
    **{
        f"pooling in {dtype}": (
            partial(pyramid_both_ways, pool, dtype),
            {"_pool_row": [READS], "_list_rois": [], "_gather_tile": [WRITES, mma]},
        )
        for dtype, mma in ((FLOAT32, "!mma"), (BFLOAT16, "mma"))
    },
    **{
        f"patches in {dtype}": (
            partial(pyramid_both_ways, take_patches, dtype),
            {"_take": [READS, WRITES], "_add_up_tile": [READS, WRITES]},
        )
        for dtype in (FLOAT32, BFLOAT16)
    },
    **{f"images in {dtype}": (partial(resize, dtype), {"_resize_row": [WRITES]}) for dtype in (FLOAT32, BFLOAT16)},
    "suppression": (
        lambda: nms_sorted(torch.zeros(1, 2000, 4), torch.ones(1, 2000, dtype=torch.bool), 0.7),
        {"_overlap_bits": EXACT, "_resolve": []},
    ),
    "masks": (draw, {"_draw": ["div.rn.f64", "!fma.rn"]}),
    "matching of anchors": (partial(match, 2, 16), {"_find_best": [*EXACT, ".max.s32"], "_match": EXACT}),
    "matching of RoIs": (partial(match, 16, 45, keep_best_of_truth=False), {"_match": EXACT}),
    "samples": (
        partial(sample, 9001, 3),
        {"_count_classes": [], "_collect": [], "_pick": [], "_compact": []},
    ),
    "ranking": (partial(rank, 2, (9001, 48)), {"_count_digits": [], "_count_best": [], "_write": []}),
    "best mask": (
        lambda: best_mask(torch.zeros(1, 9001), 600),
        {"_count_digits": [], "_count_best": [], "_write": []},
    ),
    "casts": (cast, {"_cast": [], "_add_gradients": []}),
    "own classes": (own_class_both_ways, {"_logits": [], "_gradients": [WRITES]}),
    "sums of gradients": (add_gradients, {"_add_rectified": [WRITES]}),
}


@pytest.mark.parametrize(("work", "kernels"), CASES.values(), ids=CASES)
def test_kernels_compile_without_stack_and_float_atomics(work, kernels, compiled, tmp_path):
    work()
    assert set(compiled) == set(kernels)
    for name, parts in kernels.items():
        text = compiled[name].asm["ptx"]
        assert ".target sm_90" in text, name
        atomics = re.findall(r"\b(?:atom|red)\.\S*", text)
        # Sums of floats would come in any order; a sum or maximum of integers is the same in every order.
        assert [word for word in atomics if not re.search(r"\.(?:add\.u32|max\.s32)$", word)] == [], name
        assert stack_bytes(compiled[name], tmp_path) == 0, name
        for part in parts:
            assert (part.removeprefix("!") in text) != part.startswith("!"), (name, part)


def on_maps(height, width):
    levels = [torch.zeros(1, 8, height, width), torch.zeros(1, 8, height, width)]
    pyramid_roi_align(levels, torch.zeros(1, 3 + height, 4), size=2, strides=(4, 8))
    cell_patches(levels, zeros(1, 3 + height))


@pytest.mark.parametrize(
    ("work", "sizes", "names"),
    [
        (on_maps, [(64, 80), (25, 37), (1, 1)], ["_pool_row", "_take"]),
        (match, [(1, 1), (2, 3), (2, 16), (16, 45)], ["_match"]),
        (sample, [(1, 1), (48, 2), (9001, 3), (9001, 3, 65)], ["_count_classes", "_collect", "_compact"]),
        (rank, [(1, (16, 1)), (2, (9001, 48)), (3, (5, 77))], ["_count_digits", "_count_best", "_write"]),
    ],
)
def test_other_sizes_need_no_new_kernel(work, sizes, names, compiled):
    for number, size in enumerate(sizes):
        work(*size)
        if number == 0:
            first = [compiled[name] for name in names]
        assert all(compiled[name] is kernel for name, kernel in zip(names, first, strict=True)), size
