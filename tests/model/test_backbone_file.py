import pickle
import struct
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from permissions import common_user, open_folder
from weight_files import TINY, assert_equal, assert_sizes_named, problems_of, state_of

from maskperf.errors import DataError
from maskperf.model.backbone_file import (
    BACKBONE_MD5,
    convert_names,
    load_backbone,
    load_backbone_weights,
)
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.model.pickles import ALLOWED_GLOBALS, read_detectron_pickle
from maskperf.model.quantize import store_backbone
from maskperf.model.weights import read_header

BRANCHES = {"downsample.0": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"}
NORM_OF_CONV = {"downsample.0": "downsample.1", "conv1": "bn1", "conv2": "bn2", "conv3": "bn3"}
BODY = "backbone.body."


def pairs_of_names(stage_blocks):
    """Yield (convolution, batch norm, array, array of the batch norm) of the table in the benchmark's description."""
    yield "stem.conv1", "stem.bn1", "conv1", "res_conv1"
    for stage, blocks in enumerate(stage_blocks, start=1):
        for block in range(blocks):
            for conv, branch in BRANCHES.items():
                if conv != "downsample.0" or block == 0:
                    array = f"res{stage + 1}_{block}_branch{branch}"
                    module = f"layer{stage}.{block}."
                    yield module + conv, module + NORM_OF_CONV[conv], array, array


def random_blobs(stage_blocks=TINY.stage_blocks):
    state = state_of(stage_blocks=stage_blocks)
    generator = np.random.default_rng(0)
    blobs = {"fc1000_w": np.ones((2, 3), np.float32), "fc1000_b": np.ones(2, np.float32)}
    for conv, _, array, norm_array in pairs_of_names(stage_blocks):
        shape = tuple(state[f"{BODY}{conv}.weight"].shape)
        blobs[f"{array}_w"] = generator.normal(size=shape).astype(np.float32)
        blobs[f"{array}_b"] = np.zeros(shape[0], np.float32)
        blobs[f"{norm_array}_bn_s"] = generator.uniform(0.5, 2, shape[0]).astype(np.float32)
        blobs[f"{norm_array}_bn_b"] = generator.normal(size=shape[0]).astype(np.float32)
    return blobs


def unfolded(blobs):
    """Split every scale and shift into four vectors that fold to them, but for rounding."""
    generator = np.random.default_rng(1)
    result = {name: array for name, array in blobs.items() if not name.endswith(("_bn_s", "_bn_b"))}
    for base in (name.removesuffix("_s") for name in blobs if name.endswith("_bn_s")):
        mean = generator.normal(size=blobs[f"{base}_s"].shape)
        variance = generator.uniform(0.1, 3, mean.shape)
        result[f"{base}_running_mean"], result[f"{base}_running_var"] = mean, variance
        result[f"{base}_gamma"] = blobs[f"{base}_s"] * np.sqrt(variance + 1e-5)
        result[f"{base}_beta"] = blobs[f"{base}_b"] + mean * blobs[f"{base}_s"]
    return result


def python2_text(text: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(text)) + text


def python2_array(array: np.ndarray) -> bytes:
    """The opcodes that Python 2 writes for an array: plain byte strings, old module names, no memo."""
    code, order = array.dtype.str[1:].encode(), array.dtype.str[:1].encode()
    shape = b"(" + b"".join(b"J" + struct.pack("<i", side) for side in array.shape) + b"t"
    number_type = b"cnumpy\ndtype\n" + python2_text(code) + b"K\x00K\x01\x87R"
    number_type += b"(K\x03" + python2_text(order) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    column_major = array.ndim > 1 and array.flags.f_contiguous
    flag, content = (b"\x88", array.tobytes("F")) if column_major else (b"\x89", array.tobytes())
    start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + python2_text(b"b") + b"\x87R"
    return start + b"(K\x01" + shape + number_type + flag + python2_text(content) + b"tb"


def python2_dict(entries: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(python2_text(key.encode()) + value for key, value in entries.items()) + b"u"


def write_pickle(path, blobs, top=True):
    content = python2_dict({name: python2_array(array) for name, array in blobs.items()})
    path.write_bytes(b"\x80\x02" + (python2_dict({"blobs": content}) if top else content) + b".")
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of the user's cache, which is not there yet."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home" / ".cache" / "maskperf"


@pytest.fixture
def pickle_path(tmp_path):
    return write_pickle(tmp_path / "R-50.pkl", random_blobs())


@pytest.fixture
def saved(pickle_path):
    """The path of the conversion beside the pickle."""
    load_backbone(pickle_path, state_of())
    return pickle_path.with_suffix(".safetensors")


@pytest.mark.parametrize("top", [True, False])
def test_a_python2_pickle_gives_what_numpy_itself_reads(tmp_path, top):
    arrays = {
        "all_bytes": np.arange(256, dtype=np.uint8),
        "weights": np.linspace(-3, 3, 24, dtype=np.float32).reshape(2, 3, 2, 2),
        "columns": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        "big_endian": np.arange(5, dtype=">f4"),
    }
    path = write_pickle(tmp_path / "a.pkl", {**arrays, "weights_momentum": np.ones(3)}, top)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns about the module names of old files
        plain = pickle.loads(path.read_bytes(), encoding="latin-1")
    plain = plain["blobs"] if top else plain
    read = read_detectron_pickle(path)
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(read[name], array) and np.array_equal(plain[name], array)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_of_python3_and_its_scalars_can_be_read(tmp_path, protocol):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"a": np.eye(3, dtype=np.float32), "b": np.float64(2.5)}, protocol=protocol))
    read = read_detectron_pickle(path)
    assert np.array_equal(read["a"], np.eye(3)) and read["b"] == 2.5


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("os.system", b"\x80\x02cos\nsystem\nTEXT\x85R."),
        ("os.system", b"\x80\x04\x8c\x02os\x8c\x06system\x93TEXT\x85R."),
        ("posix.system", b"(S'TOUCH'\niposix\nsystem\n."),
        ("builtins.eval", b"\x80\x02cbuiltins\neval\nTEXT\x85R."),
        ("__builtin__.exec", b"\x80\x02c__builtin__\nexec\nTEXT\x85R."),
        ("subprocess.Popen", b"\x80\x02csubprocess\nPopen\nTEXT\x85\x81."),
        ("numpy.load", b"\x80\x02cnumpy\nload\nTEXT\x85R."),
        ("numpy.core.multiarray.fromfile", b"\x80\x02cnumpy.core.multiarray\nfromfile\nTEXT\x85R."),
        ("_codecs.decode", b"\x80\x02c_codecs\ndecode\nTEXT\x85R."),
        ("copyreg._reconstructor", b"\x80\x02ccopyreg\n_reconstructor\nTEXT\x85R."),
    ],
)
def test_a_pickle_that_asks_for_anything_else_is_refused_by_name_and_not_run(tmp_path, name, content):
    marker, path = tmp_path / "was_here", tmp_path / "bad.pkl"
    touch = f"open({str(marker)!r}, 'w')" if name in ("builtins.eval", "__builtin__.exec") else f"touch {marker}"
    path.write_bytes(content.replace(b"TEXT", python2_text(touch.encode())).replace(b"TOUCH", touch.encode()))
    (problem,) = problems_of(read_detectron_pickle, path)
    assert (problem.file, problem.field, problem.value) == (str(path), "global", name)
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02cnumpy\ndtype\n" + python2_text(b"O8") + b"\x85R.",  # an array of objects
        b"\x80\x02cnumpy\nndarray\n}X\x01\x00\x00\x00aK\x01sb.",  # attributes for a class that others use
        b"\x80\x02cnumpy\ndtype\n}X\x05\x00\x00\x00dtypeK\x01sb.",
        b"\x80\x02c_codecs\nencode\nN}X\x01\x00\x00\x00aK\x01s\x86b.",
        b"\x80\x02cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85\x85R.",  # a huge array from nothing
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00bz2\x86R.",
        b"\x80\x02}r\xff\xff\xff\xff.",  # 64 GiB of empty memo slots
        b"Pname\n.",  # a persistent id
        b"\x80\x02\x82\x01.",  # an extension code
        b"\x80\x02]].",
        b"",
        b"not a pickle at all",
    ],
)
def test_malformed_pickles_are_named_as_such(tmp_path, content):
    path = tmp_path / "bad.pkl"
    path.write_bytes(content)
    (problem,) = problems_of(read_detectron_pickle, path)
    assert problem.file == str(path) and problem.fix
    assert not any(hasattr(allowed, name) for allowed in ALLOWED_GLOBALS.values() for name in ("a", "dtype"))


def test_entries_that_are_no_arrays_are_all_listed(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"a": np.ones(2), "b": "text", 7: np.ones(2), "c": {}}, protocol=2))
    fields = [problem.field for problem in problems_of(read_detectron_pickle, path)]
    assert fields == ["entry 'b'", "entry 7", "entry 'c'"]


def test_a_pickle_cut_short_anywhere_is_damaged_and_a_missing_one_is_named(tmp_path):
    whole = write_pickle(tmp_path / "a.pkl", {"conv1_w": np.ones((2, 2), np.float32)}).read_bytes()
    path = tmp_path / "short.pkl"
    (problem,) = problems_of(load_backbone, path, {})
    assert (problem.field, problem.value) == ("path", str(path)) and "no such file" in problem.message
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert problems_of(read_detectron_pickle, path)[0].field == "content"


def test_any_changed_byte_is_read_or_refused_but_never_another_error(tmp_path):
    whole = write_pickle(tmp_path / "a.pkl", {"conv1_w": np.ones((2, 2), np.float32)}).read_bytes()
    generator = np.random.default_rng(0)
    path = tmp_path / "changed.pkl"
    outcomes = set()
    for index in range(len(whole)):
        for value in generator.integers(0, 256, 4):
            path.write_bytes(whole[:index] + bytes([value]) + whole[index + 1 :])
            try:
                outcomes.add(type(read_detectron_pickle(path)))
            except DataError as error:
                outcomes.add(type(error))
    assert outcomes == {dict, DataError}


def test_every_convolution_and_batch_norm_of_the_50_layers_gets_its_own_array():
    stage_blocks = (3, 4, 6, 3)
    blobs, state = random_blobs(stage_blocks), state_of(stage_blocks=stage_blocks)
    tensors = convert_names(blobs, state)
    pairs = list(pairs_of_names(stage_blocks))
    assert len(pairs) == 53
    assert tensors.keys() == {name for name in state if name.startswith(BODY)}
    for conv, norm, array, norm_array in pairs:
        channels = blobs[f"{array}_w"].shape[0]
        assert np.array_equal(tensors[f"{BODY}{conv}.weight"], blobs[f"{array}_w"])
        assert np.array_equal(tensors[f"{BODY}{norm}.weight"], blobs[f"{norm_array}_bn_s"])
        assert np.array_equal(tensors[f"{BODY}{norm}.bias"], blobs[f"{norm_array}_bn_b"])
        assert torch.equal(tensors[f"{BODY}{norm}.running_mean"], torch.zeros(channels))
        assert torch.equal(tensors[f"{BODY}{norm}.running_var"], torch.ones(channels))


def test_missing_unexpected_wrongly_shaped_and_nan_arrays_are_all_listed():
    blobs = random_blobs()
    del blobs["res2_0_branch2a_w"]
    blobs["res3_1_branch2a_w"] = np.ones((4, 4, 1, 1), np.float32)
    blobs["res_conv1_bn_s"] = np.ones(5, np.float32)
    blobs["conv1_w"][0, 0, 0, 0] = np.nan
    problems = problems_of(convert_names, blobs, state_of(), file="x.pkl")
    assert {(problem.file, problem.where, problem.field, problem.value) for problem in problems} == {
        ("x.pkl", "tensor conv1_w", "values", "1 of 588"),
        ("x.pkl", "tensor res2_0_branch2a_w", "name", "missing"),
        ("x.pkl", "tensor res3_1_branch2a_w", "name", "shape (4, 4, 1, 1)"),
        ("x.pkl", "tensor res_conv1_bn_s", "shape", "(5,)"),
    }
    assert "shape (4,)" in next(problem for problem in problems if problem.field == "shape").message


def test_unfolded_batch_norms_become_the_same_scale_and_shift_and_a_negative_variance_a_problem():
    blobs, state = random_blobs(), state_of()
    folded, split = convert_names(blobs, state), convert_names(unfolded(blobs), state)
    assert folded.keys() == split.keys()
    for name, tensor in folded.items():
        torch.testing.assert_close(split[name], tensor, rtol=1e-6, atol=1e-6)
    negative = unfolded(blobs)
    negative["res_conv1_bn_running_var"][1] = -1
    (problem,) = problems_of(convert_names, negative, state)
    assert problem.where == f"2 tensors ({BODY}stem.bn1.weight, {BODY}stem.bn1.bias)"


@pytest.mark.parametrize("form", ["folded", "unfolded", "stored"])
def test_a_backbone_of_another_width_or_depth_is_one_problem_that_names_the_keys(tmp_path, form):
    blobs, other = random_blobs(), state_of(stem_channels=8, stage_blocks=(2, 2, 2, 2))
    if form == "stored":
        store_backbone(convert_names(blobs, state_of()), tmp_path / "a.safetensors", "float32")
        (problem,) = problems_of(load_backbone, tmp_path / "a.safetensors", other)
    else:
        (problem,) = problems_of(convert_names, blobs if form == "folded" else unfolded(blobs), other)
    assert problem.field == "model.stem_channels, model.stage_blocks" and " tensors (" in problem.where
    assert_sizes_named(problem, TINY)


def test_the_pickle_is_converted_once_and_again_when_it_changed(tmp_path, pickle_path, cache):
    state, converted = state_of(), tmp_path / "R-50.safetensors"
    first, notices = load_backbone(pickle_path, state)
    assert f"is not that ({BACKBONE_MD5})" in notices[0] and f"{converted}: the converted" in notices[1]
    written = converted.stat().st_mtime_ns
    second, notices = load_backbone(pickle_path, state)
    assert converted.stat().st_mtime_ns == written and "stored as float32" in notices[1]
    assert_equal(second, first)
    blobs = random_blobs()
    blobs["conv1_w"] += 1
    third, notices = load_backbone(write_pickle(pickle_path, blobs), state)
    assert torch.equal(third[f"{BODY}stem.conv1.weight"], first[f"{BODY}stem.conv1.weight"] + 1)
    assert "saved here" in notices[-1] and not cache.exists()


def test_the_benchmarks_own_file_is_recognised(pickle_path, saved, monkeypatch):
    md5 = read_header(saved)["source_md5"]
    monkeypatch.setattr("maskperf.model.backbone_file.BACKBONE_MD5", md5)
    notice = load_backbone(pickle_path, state_of())[1][0]
    assert notice.endswith(f"{md5} is that of the file the benchmark names")


def test_where_the_folder_cannot_be_used_the_cache_folder_is_and_it_is_said(tmp_path, pickle_path, cache):
    state = state_of()
    (tmp_path / "R-50.safetensors").mkdir()  # a name that cannot be written, for root as well
    first, notices = load_backbone(pickle_path, state)
    (cached,) = cache.iterdir()
    assert "cannot be saved" in notices[1] and str(cached) in notices[2]
    assert str(cached) in load_backbone(pickle_path, state)[1][1]
    cached.unlink()
    cache.rmdir()
    cache.touch()  # no folder
    third, notices = load_backbone(pickle_path, state)
    assert "saved nowhere" in notices[-1]
    assert_equal(third, first)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_file_that_the_user_stored_is_neither_overwritten_nor_taken_for_the_conversion(tmp_path, pickle_path, saved):
    state = state_of()
    exact = convert_names(random_blobs(), state)
    store_backbone(exact, saved, "int8", metadata={"source_sha256": read_header(saved)["source_sha256"]})
    before = saved.read_bytes()
    again, notices = load_backbone(pickle_path, state)
    assert saved.read_bytes() == before and "not overwritten" in notices[1]
    assert_equal(again, exact)
    quantized, notices = load_backbone(saved, state)
    assert "stored as int8" in notices[0] and "dB" in notices[0]
    assert 0 < (quantized[f"{BODY}stem.conv1.weight"] - exact[f"{BODY}stem.conv1.weight"]).abs().max() < 0.05


@pytest.mark.parametrize("batch_norm", ["frozen", "trainable"])
def test_only_the_backbone_of_the_model_changes(pickle_path, batch_norm):
    model = MaskRcnn(replace(TINY, batch_norm=batch_norm))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert len(load_backbone_weights(model, pickle_path)) == 2
    after, blobs = model.state_dict(), random_blobs()
    assert np.array_equal(after[f"{BODY}stem.conv1.weight"], blobs["conv1_w"])
    assert np.array_equal(after[f"{BODY}layer4.0.bn3.bias"], blobs["res5_0_branch2c_bn_b"])
    assert all(torch.equal(after[name], before[name]) for name in before if not name.startswith(BODY))


@pytest.fixture
def shared(monkeypatch):
    """A pickle in a folder that every user may look into, which is the home of all."""
    with open_folder() as folder:
        monkeypatch.setenv("HOME", str(folder))
        path = write_pickle(folder / "R-50.pkl", random_blobs())
        path.chmod(0o644)
        yield path
        folder.chmod(0o777)


def test_the_conversion_of_a_user_who_lets_nobody_read_it_stops_nobody_else(shared):
    state, theirs = state_of(), shared.with_suffix(".safetensors")
    first, _ = load_backbone(shared, state)
    before = theirs.read_bytes()
    theirs.chmod(0)
    with common_user():
        second, notices = load_backbone(shared, state)
        third, later = load_backbone(shared, state)
    theirs.chmod(0o600)
    assert theirs.read_bytes() == before
    assert notices[1] == later[1] == f"{theirs}: passed over: cannot be read: Permission denied."
    assert notices[2].startswith(f"{shared.parent}/.cache/maskperf/R-50-") and "saved here" in notices[2]
    assert "stored as float32" in later[2]
    for tensors in (second, third):
        assert_equal(tensors, first)


def test_a_cache_that_this_user_may_not_search_is_done_without(shared):
    (shared.parent / ".cache").mkdir(mode=0)
    shared.parent.chmod(0o555)
    with common_user():
        _, notices = load_backbone(shared, state_of())
    assert sorted(entry.name for entry in shared.parent.iterdir()) == [".cache", "R-50.pkl"]
    assert "saved nowhere" in notices[-1] and len(notices) == 4


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped"])
def test_a_damaged_conversion_is_passed_over_and_left_as_it_is(pickle_path, saved, damage):
    state = state_of()
    exact = convert_names(random_blobs(), state)
    whole = saved.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    damaged = {"cut": whole[:-5], "empty": b"", "text": b"hello", "flipped": flipped}[damage]
    saved.write_bytes(damaged)
    again, notices = load_backbone(pickle_path, state)
    assert notices[1].startswith(f"{saved}: passed over: ") and saved.read_bytes() == damaged
    assert_equal(again, exact)
    assert "stored as float32" in load_backbone(pickle_path, state)[1][2]


def test_a_user_without_a_home_has_the_conversion_beside_the_pickle(pickle_path, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert "saved here" in load_backbone(pickle_path, state_of())[1][-1]
