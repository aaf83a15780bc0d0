"""The kernels can be compiled for a GPU where there is none; what they then compute is not tested here."""

import re
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from golden_reference import flat_polygons

triton = pytest.importorskip("triton", reason="the Python package triton is not installed")
from triton.backends.compiler import GPUTarget  # noqa: E402 -- after the check that there is a Triton
from triton.runtime.jit import JITFunction  # noqa: E402

from maskperf.data.images.raw_images import UploadBuffers, pack_images  # noqa: E402
from maskperf.ops.kernels import own_class  # noqa: E402
from maskperf.ops.kernels.casts import WeightCasts  # noqa: E402
from maskperf.ops.kernels.matching import match_boxes  # noqa: E402
from maskperf.ops.kernels.nms import nms_sorted  # noqa: E402
from maskperf.ops.kernels.patches import cell_patches  # noqa: E402
from maskperf.ops.kernels.preprocess import resize_images  # noqa: E402
from maskperf.ops.kernels.ranking import best_anchors, best_mask  # noqa: E402
from maskperf.ops.kernels.rasterize import rasterize_crops  # noqa: E402
from maskperf.ops.kernels.residual import add_rectified  # noqa: E402
from maskperf.ops.kernels.roi_align import pyramid_roi_align  # noqa: E402
from maskperf.ops.kernels.sampling import compact, draw_balanced  # noqa: E402

H200 = GPUTarget("cuda", 90, 32)
STRIDES = (4, 8, 16, 32)


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
    """Return how many bytes a thread keeps outside its registers."""
    program = tmp_path / "kernel.cubin"
    program.write_bytes(kernel.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    words = [tool, "--dump-resource-usage", str(program)]
    told = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True).stdout
    return int(told.split("STACK:")[1].split()[0])


def assert_compiled(compiled: dict, names: set[str], tmp_path) -> None:
    assert set(compiled) == names
    for name, kernel in compiled.items():
        text = kernel.asm["ptx"]
        assert ".target sm_90" in text, name
        atomics = re.findall(r"\b(?:atom|red)\.\S*", text)
        # Sums of floats would come in any order; a sum or maximum of whole numbers is the same in every order.
        assert [word for word in atomics if not re.search(r"\.(?:add\.u32|max\.s32)$", word)] == [], name
        assert stack_bytes(kernel, tmp_path) == 0, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooling_both_ways(dtype, compiled, tmp_path):
    shapes = [(1, 256, 256 // stride, 320 // stride) for stride in STRIDES]
    features = [torch.zeros(shape, dtype=dtype).requires_grad_() for shape in shapes]
    pooled = pyramid_roi_align(features, torch.zeros(1, 6, 4), size=7, strides=STRIDES)
    torch.autograd.grad(pooled, features, torch.zeros_like(pooled))
    assert_compiled(compiled, {"_pool_row", "_list_rois", "_gather_tile"}, tmp_path)
    assert "ld.global.v4.b32" in compiled["_pool_row"].asm["ptx"]  # 16 bytes at a time
    assert "st.global.v4.b32" in compiled["_gather_tile"].asm["ptx"]
    assert ("mma" in compiled["_gather_tile"].asm["ptx"]) == (dtype == torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_both_ways(dtype, compiled, tmp_path):
    shapes = [(1, 256, 256 // stride, 320 // stride) for stride in STRIDES]
    features = [torch.zeros(shape, dtype=dtype).requires_grad_() for shape in shapes]
    patches = cell_patches(features, torch.zeros(1, 6, dtype=torch.int64))
    torch.autograd.grad(patches, features, torch.zeros_like(patches))
    assert_compiled(compiled, {"_take", "_add_up_tile"}, tmp_path)
    for kernel in compiled.values():
        assert "ld.global.v4.b32" in kernel.asm["ptx"]  # 16 bytes at a time
        assert "st.global.v4.b32" in kernel.asm["ptx"]


def test_other_maps_need_no_new_kernel(compiled):
    for height, width in ((64, 80), (25, 37), (1, 1)):
        levels = [torch.zeros(1, 8, height, width), torch.zeros(1, 8, height, width)]
        pyramid_roi_align(levels, torch.zeros(1, 3 + height, 4), size=2, strides=(4, 8))
        cell_patches(levels, torch.zeros(1, 3 + height, dtype=torch.int64))
        for name in ("_pool_row", "_take"):
            assert compiled.setdefault(f"first {name}", compiled[name]) is compiled[name]


def test_suppression_and_masks_without_fused_rounding(compiled, tmp_path):
    nms_sorted(torch.zeros(1, 2000, 4), torch.ones(1, 2000, dtype=torch.bool), 0.7)
    triangle = np.array([[0, 0], [9, 0], [5, 9]], np.float32)
    rasterize_crops(flat_polygons([triangle], [0, 1]), torch.tensor([0]), torch.ones(1, 4), 28)
    assert_compiled(compiled, {"_overlap_bits", "_resolve", "_draw"}, tmp_path)
    for name in ("_overlap_bits", "_draw"):
        assert not compiled[name].metadata.enable_fp_fusion
        assert "fma.rn" not in compiled[name].asm["ptx"]
    assert "div.rn.f32" in compiled["_overlap_bits"].asm["ptx"]  # Triton's plain division is not rounded right
    assert "div.rn.f64" in compiled["_draw"].asm["ptx"]


def test_matching_without_fused_rounding_and_for_any_number_of_objects(compiled, tmp_path):
    rule = {"positive_iou": 0.7, "negative_iou": 0.3}
    for images, slots in ((1, 1), (2, 3), (2, 16), (16, 45)):
        truth, valid = torch.zeros(images, slots, 4), torch.ones(images, slots, dtype=torch.bool)
        match_boxes(torch.zeros(1, 1000 + slots, 4), truth, valid, keep_best_of_truth=True, **rule)
        compiled.setdefault("first", compiled["_match"])
        assert compiled["_match"] is compiled["first"]
    compiled["of RoIs"] = compiled.pop("first")
    match_boxes(torch.zeros(16, 48, 4), truth, valid, keep_best_of_truth=False, **rule)
    compiled["of RoIs"], compiled["_match"] = compiled["_match"], compiled["of RoIs"]
    assert_compiled(compiled, {"_find_best", "_match", "of RoIs"}, tmp_path)
    for kernel in compiled.values():
        assert "fma.rn" not in kernel.asm["ptx"]
        assert "div.rn.f32" in kernel.asm["ptx"]
    assert re.search(r"\b(?:atom|red)\.\S*\.max\.s32", compiled["_find_best"].asm["ptx"])


def test_samples_from_any_number_of_boxes(compiled, tmp_path):
    for count, images in ((1, 1), (48, 2), (9001, 3)):
        mask, seeds = torch.zeros(images, count, dtype=torch.bool), torch.zeros(images, dtype=torch.int64)
        draw_balanced(mask, mask, seeds, num_samples=256, max_positive=128)
        compact(mask, max(1, count // 2))
        if count >= 256:
            draw_balanced(mask, mask, seeds, num_samples=256, max_positive=64 + count % 2)
        for name in ("_count_classes", "_collect", "_compact"):
            assert compiled.setdefault(f"first {name}", compiled[name]) is compiled[name]
    names = {"_count_classes", "_collect", "_pick", "_compact"}
    assert_compiled({name: compiled[name] for name in names}, names, tmp_path)


def test_ranking_on_any_canvas(compiled, tmp_path):
    for images, counts in ((1, (16, 1)), (2, (9001, 48)), (3, (5, 77))):
        best_anchors(torch.zeros(images, sum(counts)), counts, limit=counts[1] + 3)
        for name in ("_count_digits", "_count_best", "_write"):
            assert compiled.setdefault(f"first {name}", compiled[name]) is compiled[name]
    names = {"_count_digits", "_count_best", "_write"}
    assert_compiled({name: compiled[name] for name in names}, names, tmp_path)
    best_mask(torch.zeros(1, 9001), 600)
    assert_compiled({name: compiled[name] for name in names}, names, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pictures(dtype, compiled, tmp_path):
    raw = pack_images(
        [np.zeros((20, 40, 3), np.uint8)],
        [(30, 60)],
        [True],
        padded_hw=(32, 64),
        means_bgr=(1.0, 2.0, 3.0),
        buffers=UploadBuffers(max_waiting=1, pin_memory=False),
    )
    resize_images(raw, dtype)
    assert_compiled(compiled, {"_resize_row"}, tmp_path)
    assert "st.global.v4.b32" in compiled["_resize_row"].asm["ptx"]


def test_weight_casts_and_their_gradients(compiled, tmp_path):
    parameter = torch.nn.Parameter(torch.zeros(64, 32, 3, 3))
    (cast,) = WeightCasts([parameter], [torch.ones(64)], torch.bfloat16)()
    torch.autograd.backward(cast, torch.zeros_like(cast))
    assert_compiled(compiled, {"_cast", "_add_gradients"}, tmp_path)


def test_mask_logits_of_own_classes(compiled, tmp_path):
    maps, weights = torch.zeros(3, 784, 256, dtype=torch.bfloat16), torch.zeros(3, 256, dtype=torch.bfloat16)
    own_class.logits(maps, weights, torch.zeros(3))
    own_class.gradients(maps, weights, torch.zeros(3, 784))
    assert_compiled(compiled, {"_logits", "_gradients"}, tmp_path)
    assert "st.global.v4.b32" in compiled["_gradients"].asm["ptx"]


def test_sums_of_gradients(compiled, tmp_path):
    maps = torch.zeros(1, 256, 64, 64, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    add_rectified(maps, maps, maps)
    assert_compiled(compiled, {"_add_rectified"}, tmp_path)
    assert "st.global.v4.b32" in compiled["_add_rectified"].asm["ptx"]
