import pickle
import struct
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from permissions import UMASKS, common_user, modes, open_folder, umask

from maskperf.config import ModelConfig
from maskperf.errors import DataError
from maskperf.model.backbone_file import (
    BACKBONE_MD5,
    convert_names,
    load_backbone,
    load_backbone_weights,
    read_detectron_pickle,
)
from maskperf.model.mask_rcnn import MaskRcnn
from maskperf.model.quantize import store_backbone
from maskperf.model.weights import read_header

ONE_BLOCK = ModelConfig(
    num_classes=3,
    stage_blocks=(1, 1, 1, 1),
    stem_channels=4,
    stage_channels=(8, 16, 32, 64),
    fpn_channels=4,
    box_head_channels=4,
    mask_head_channels=4,
    mask_head_convs=1,
)
ALL_BLOCKS = replace(ONE_BLOCK, stage_blocks=(3, 4, 6, 3))
BRANCHES = {"downsample.0": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"}
NORM_OF_CONV = {"downsample.0": "downsample.1", "conv1": "bn1", "conv2": "bn2", "conv3": "bn3"}
BODY = "backbone.body."


def state_of(config):
    torch.manual_seed(0)
    return MaskRcnn(config).state_dict()


def pairs_of_names(config):
    """Yield (convolution, batch norm, array, array of the batch norm) of the table in the benchmark's description."""
    yield "stem.conv1", "stem.bn1", "conv1", "res_conv1"
    for stage, blocks in enumerate(config.stage_blocks, start=1):
        for block in range(blocks):
            for conv, branch in BRANCHES.items():
                if conv != "downsample.0" or block == 0:
                    array = f"res{stage + 1}_{block}_branch{branch}"
                    place = f"layer{stage}.{block}."
                    yield place + conv, place + NORM_OF_CONV[conv], array, array


def random_blobs(config, state):
    generator = np.random.default_rng(0)
    blobs = {"fc1000_w": np.ones((2, 3), np.float32), "fc1000_b": np.ones(2, np.float32)}
    for conv, _, array, norm_array in pairs_of_names(config):
        shape = tuple(state[f"{BODY}{conv}.weight"].shape)
        blobs[f"{array}_w"] = generator.normal(size=shape).astype(np.float32)
        blobs[f"{array}_b"] = np.zeros(shape[0], np.float32)
        blobs[f"{norm_array}_bn_s"] = generator.uniform(0.5, 2, shape[0]).astype(np.float32)
        blobs[f"{norm_array}_bn_b"] = generator.normal(size=shape[0]).astype(np.float32)
    return blobs


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


def problems_of(call, *arguments, **named):
    with pytest.raises(DataError) as caught:
        call(*arguments, **named)
    return caught.value.problems


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


def test_a_pickle_of_python3_and_its_scalars_can_be_read(tmp_path):
    path = tmp_path / "a.pkl"
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps({"a": np.eye(3, dtype=np.float32), "b": np.float64(2.5)}, protocol=protocol))
        read = read_detectron_pickle(path)
        assert np.array_equal(read["a"], np.eye(3)) and read["b"] == 2.5


def hostile_pickles(marker):
    command = b"touch " + str(marker).encode()
    text = python2_text(command)
    yield "os.system", b"\x80\x02cos\nsystem\n" + text + b"\x85R."
    yield "posix.system", b"(S'" + command + b"'\niposix\nsystem\n."
    yield (
        "builtins.eval",
        b"\x80\x02cbuiltins\neval\n" + python2_text(b"open('" + str(marker).encode() + b"', 'w')") + b"\x85R.",
    )
    yield "__builtin__.exec", b"\x80\x02c__builtin__\nexec\n" + text + b"\x85R."
    yield "subprocess.Popen", b"\x80\x02csubprocess\nPopen\n" + text + b"\x85\x81."
    yield "numpy.load", b"\x80\x02cnumpy\nload\n" + text + b"\x85R."
    yield "numpy.core.multiarray.fromfile", b"\x80\x02cnumpy.core.multiarray\nfromfile\n" + text + b"\x85R."
    yield "_codecs.decode", b"\x80\x02c_codecs\ndecode\n" + text + b"\x85R."
    yield "copyreg._reconstructor", b"\x80\x02ccopyreg\n_reconstructor\n" + text + b"\x85R."
    yield "os.system", b"\x80\x04\x8c\x02os\x8c\x06system\x93" + text + b"\x85R."


def test_a_pickle_that_asks_for_anything_else_is_refused_by_name_and_not_run(tmp_path):
    marker = tmp_path / "was_here"
    path = tmp_path / "bad.pkl"
    for name, content in hostile_pickles(marker):
        path.write_bytes(content)
        (problem,) = problems_of(read_detectron_pickle, path)
        assert (problem.file, problem.field, problem.value) == (str(path), "global", name)
        assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02cnumpy\ndtype\n" + python2_text(b"O8") + b"\x85R.",  # an array of objects
        b"\x80\x02cnumpy\nndarray\n}X\x01\x00\x00\x00aK\x01sb.",  # attributes for a class that others use
        b"\x80\x02cnumpy\ndtype\n}X\x05\x00\x00\x00dtypeK\x01sb.",
        b"\x80\x02cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85\x85R.",  # a huge array from nothing
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00bz2\x86R.",
        b"\x80\x02}r\xff\xff\xff\xff.",  # 64 GiB of empty memo places
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


def test_entries_that_are_no_arrays_are_all_listed(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"a": np.ones(2), "b": "text", 7: np.ones(2), "c": {}}, protocol=2))
    assert [problem.field for problem in problems_of(read_detectron_pickle, path)] == [
        "entry 'b'",
        "entry 7",
        "entry 'c'",
    ]


def test_a_pickle_cut_short_anywhere_is_damaged(tmp_path):
    whole = write_pickle(tmp_path / "a.pkl", {"conv1_w": np.ones((2, 2), np.float32)}).read_bytes()
    path = tmp_path / "short.pkl"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert problems_of(read_detectron_pickle, path)[0].field == "content"


def test_any_changed_byte_is_read_or_refused_but_never_another_error(tmp_path):
    whole = write_pickle(tmp_path / "a.pkl", {"conv1_w": np.ones((2, 2), np.float32)}).read_bytes()
    generator = np.random.default_rng(0)
    path = tmp_path / "changed.pkl"
    outcomes = set()
    for place in range(len(whole)):
        for value in generator.integers(0, 256, 4):
            path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            try:
                outcomes.add(type(read_detectron_pickle(path)))
            except DataError as error:
                outcomes.add(type(error))
    assert outcomes == {dict, DataError}


def test_a_missing_file_is_named(tmp_path):
    (problem,) = problems_of(load_backbone, tmp_path / "none.pkl", {})
    assert "none.pkl" in problem.value and "No such file" in problem.message


def test_every_convolution_and_batch_norm_of_the_50_layers_gets_its_own_array():
    state = state_of(ALL_BLOCKS)
    blobs = random_blobs(ALL_BLOCKS, state)
    tensors = convert_names(blobs, state)
    pairs = list(pairs_of_names(ALL_BLOCKS))
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
    state = state_of(ONE_BLOCK)
    blobs = random_blobs(ONE_BLOCK, state)
    del blobs["res2_0_branch2a_w"]
    blobs["res3_1_branch2a_w"] = np.ones((4, 4, 1, 1), np.float32)
    blobs["res_conv1_bn_s"] = np.ones(5, np.float32)
    blobs["conv1_w"][0, 0, 0, 0] = np.nan
    problems = problems_of(convert_names, blobs, state, file="x.pkl")
    assert {(problem.file, problem.where, problem.field, problem.value) for problem in problems} == {
        ("x.pkl", "tensor conv1_w", "values", "1 of 588"),
        ("x.pkl", "tensor res2_0_branch2a_w", "name", "missing"),
        ("x.pkl", "tensor res3_1_branch2a_w", "name", "shape (4, 4, 1, 1)"),
        ("x.pkl", "tensor res_conv1_bn_s", "shape", "(5,)"),
    }
    assert "shape (4,)" in next(problem for problem in problems if problem.field == "shape").message


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


def test_unfolded_batch_norms_become_the_same_scale_and_shift():
    state = state_of(ONE_BLOCK)
    blobs = random_blobs(ONE_BLOCK, state)
    folded, split = convert_names(blobs, state), convert_names(unfolded(blobs), state)
    assert folded.keys() == split.keys()
    for name, tensor in folded.items():
        torch.testing.assert_close(split[name], tensor, rtol=1e-6, atol=1e-6)


def test_a_negative_variance_is_a_problem():
    state = state_of(ONE_BLOCK)
    blobs = unfolded(random_blobs(ONE_BLOCK, state))
    blobs["res_conv1_bn_running_var"][1] = -1
    (problem,) = problems_of(convert_names, blobs, state)
    assert problem.where == f"2 tensors ({BODY}stem.bn1.weight, {BODY}stem.bn1.bias)"


def test_the_pickle_is_converted_once_and_again_when_it_changed(tmp_path):
    state = state_of(ONE_BLOCK)
    blobs = random_blobs(ONE_BLOCK, state)
    path = write_pickle(tmp_path / "R-50.pkl", blobs)
    converted = tmp_path / "R-50.safetensors"
    first = load_backbone(path, state, cache_dir=tmp_path / "cache")
    assert f"is not that ({BACKBONE_MD5})" in first.notices[0] and str(converted) in first.notices[1]
    written = converted.stat().st_mtime_ns
    second = load_backbone(path, state, cache_dir=tmp_path / "cache")
    assert converted.stat().st_mtime_ns == written and "stored as float32" in second.notices[1]
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name])
    blobs["conv1_w"] += 1
    write_pickle(path, blobs)
    third = load_backbone(path, state, cache_dir=tmp_path / "cache")
    assert torch.equal(third.tensors[f"{BODY}stem.conv1.weight"], first.tensors[f"{BODY}stem.conv1.weight"] + 1)
    assert "kept here" in third.notices[-1]
    assert not (tmp_path / "cache").exists()


def test_the_benchmarks_own_file_is_recognised(tmp_path, monkeypatch):
    state = state_of(ONE_BLOCK)
    path = write_pickle(tmp_path / "R-50.pkl", random_blobs(ONE_BLOCK, state))
    load_backbone(path, state)
    md5 = read_header(tmp_path / "R-50.safetensors")["source_md5"]
    monkeypatch.setattr("maskperf.model.backbone_file.BACKBONE_MD5", md5)
    assert load_backbone(path, state).notices[0].endswith(f"{md5} is that of the file the benchmark names")


def test_where_the_folder_cannot_be_used_the_cache_folder_is_and_it_is_said(tmp_path):
    state = state_of(ONE_BLOCK)
    path = write_pickle(tmp_path / "R-50.pkl", random_blobs(ONE_BLOCK, state))
    (tmp_path / "R-50.safetensors").mkdir()  # a name that cannot be written, for root as well
    first = load_backbone(path, state, cache_dir=tmp_path / "cache")
    (cached,) = (tmp_path / "cache").iterdir()
    assert "cannot be kept" in first.notices[1] and str(cached) in first.notices[2]
    second = load_backbone(path, state, cache_dir=tmp_path / "cache")
    assert str(cached) in second.notices[1]
    blocked = tmp_path / "file"
    blocked.write_text("")
    third = load_backbone(path, state, cache_dir=blocked)
    assert "kept nowhere" in third.notices[-1]
    assert third.tensors.keys() == first.tensors.keys()
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_file_that_the_user_stored_is_neither_overwritten_nor_taken_for_the_conversion(tmp_path):
    state = state_of(ONE_BLOCK)
    path = write_pickle(tmp_path / "R-50.pkl", random_blobs(ONE_BLOCK, state))
    exact = load_backbone(path, state).tensors
    digest = read_header(tmp_path / "R-50.safetensors")["source_sha256"]
    store_backbone(exact, tmp_path / "R-50.safetensors", "int8", metadata={"source_sha256": digest})
    before = (tmp_path / "R-50.safetensors").read_bytes()
    again = load_backbone(path, state, cache_dir=tmp_path / "cache")
    assert (tmp_path / "R-50.safetensors").read_bytes() == before
    assert "not overwritten" in again.notices[1]
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in exact.items())


def test_a_quantized_file_is_loaded_and_its_loss_reported(tmp_path):
    state = state_of(ONE_BLOCK)
    exact = convert_names(random_blobs(ONE_BLOCK, state), state)
    store_backbone(exact, tmp_path / "small.safetensors", "int8")
    loaded = load_backbone(tmp_path / "small.safetensors", state)
    assert "stored as int8" in loaded.notices[0] and "dB" in loaded.notices[0]
    difference = (loaded.tensors[f"{BODY}stem.conv1.weight"] - exact[f"{BODY}stem.conv1.weight"]).abs().max()
    assert 0 < difference < 0.05


def test_a_stored_backbone_of_another_model_is_refused_with_one_problem_that_names_the_key(tmp_path):
    state = state_of(ONE_BLOCK)
    exact = convert_names(random_blobs(ONE_BLOCK, state), state)
    store_backbone(exact, tmp_path / "one.safetensors", "float32")
    (problem,) = problems_of(load_backbone, tmp_path / "one.safetensors", state_of(ALL_BLOCKS))
    count = 12 * 3 * 5  # 12 more blocks, of three convolutions with their four vectors
    assert problem.where.startswith(f"{count} tensors ({BODY}layer1.1.conv1.weight, ")
    assert (problem.field, problem.value) == (
        "model.stage_blocks",
        "1,1,1,1",
    ) and "this model has 3,4,6,3" in problem.message


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"stem_channels": 6}, "model.stem_channels"),
        ({"stage_channels": (12, 16, 32, 64)}, "model.stage_channels"),
        ({"stage_channels": (8, 16, 32, 96)}, "model.stage_channels"),
        ({"stage_blocks": (1, 2, 1, 1)}, "model.stage_blocks"),
        ({"stem_channels": 8, "stage_channels": (16, 32, 64, 128)}, "model.stem_channels, model.stage_channels"),
        ({"stem_channels": 8, "stage_blocks": (2, 2, 2, 2)}, "model.stem_channels, model.stage_blocks"),
    ],
)
def test_a_pickle_of_another_width_or_depth_is_one_problem_that_names_the_keys(changes, keys, folded):
    blobs = random_blobs(ONE_BLOCK, state_of(ONE_BLOCK))
    other = state_of(replace(ONE_BLOCK, **changes))
    (problem,) = problems_of(convert_names, blobs if folded else unfolded(blobs), other, file="R-50.pkl")
    assert problem.field == keys and " tensors (" in problem.where
    for key in keys.replace("model.", "").split(", "):
        value = getattr(ONE_BLOCK, key)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert f"model.{key}={text}" in problem.fix


@pytest.mark.parametrize("batch_norm", ["frozen", "trainable"])
def test_only_the_backbone_of_the_model_changes(tmp_path, batch_norm):
    config = replace(ONE_BLOCK, batch_norm=batch_norm)
    model = MaskRcnn(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    blobs = random_blobs(config, before)
    notices = load_backbone_weights(model, write_pickle(tmp_path / "R-50.pkl", blobs))
    after = model.state_dict()
    assert len(notices) == 2
    assert np.array_equal(after[f"{BODY}stem.conv1.weight"], blobs["conv1_w"])
    assert np.array_equal(after[f"{BODY}layer4.0.bn3.bias"], blobs["res5_0_branch2c_bn_b"])
    assert all(torch.equal(after[name], before[name]) for name in before if not name.startswith(BODY))


@pytest.mark.parametrize("mask", UMASKS)
def test_the_conversion_has_the_permissions_of_the_umask(tmp_path, mask):
    state = state_of(ONE_BLOCK)
    path = write_pickle(tmp_path / "R-50.pkl", random_blobs(ONE_BLOCK, state))
    with umask(mask):
        load_backbone(path, state)
    assert modes(tmp_path)["R-50.safetensors"] == f"{0o666 & ~mask:o}"


def test_the_conversion_of_a_user_who_keeps_files_for_himself_stops_nobody_else():
    state = state_of(ONE_BLOCK)
    with open_folder() as folder:
        path = write_pickle(folder / "R-50.pkl", random_blobs(ONE_BLOCK, state))
        path.chmod(0o644)
        theirs = folder / "R-50.safetensors"
        first = load_backbone(path, state)
        before = theirs.read_bytes()
        theirs.chmod(0)
        with common_user():
            second = load_backbone(path, state, cache_dir=folder / "cache")
            third = load_backbone(path, state, cache_dir=folder / "cache")
        theirs.chmod(0o600)
        assert theirs.read_bytes() == before
    assert second.notices[1] == f"{theirs}: passed over: cannot be read: Permission denied."
    assert second.notices[2].startswith(f"{folder / 'cache'}/R-50-") and "kept here" in second.notices[2]
    assert third.notices[1] == second.notices[1] and "stored as float32" in third.notices[2]
    for loaded in (second, third):
        assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in first.tensors.items())


def test_a_cache_that_this_user_may_not_search_is_done_without():
    state = state_of(ONE_BLOCK)
    with open_folder() as folder:
        path = write_pickle(folder / "R-50.pkl", random_blobs(ONE_BLOCK, state))
        path.chmod(0o644)
        (folder / "cache").mkdir()
        (folder / "cache").chmod(0)
        folder.chmod(0o555)
        with common_user():
            loaded = load_backbone(path, state, cache_dir=folder / "cache" / "maskperf")
        folder.chmod(0o777)
        assert sorted(entry.name for entry in folder.iterdir()) == ["R-50.pkl", "cache"]
    assert "kept nowhere" in loaded.notices[-1] and len(loaded.notices) == 4


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped"])
def test_a_damaged_conversion_is_passed_over_and_left_as_it_is(tmp_path, damage):
    state = state_of(ONE_BLOCK)
    path = write_pickle(tmp_path / "R-50.pkl", random_blobs(ONE_BLOCK, state))
    exact = load_backbone(path, state).tensors
    place = tmp_path / "R-50.safetensors"
    whole = place.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    place.write_bytes({"cut": whole[:-5], "empty": b"", "text": b"hello", "flipped": flipped}[damage])
    damaged = place.read_bytes()
    assert damaged != whole
    again = load_backbone(path, state, cache_dir=tmp_path / "cache")
    assert again.notices[1].startswith(f"{place}: passed over: ")
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in exact.items())
    assert place.read_bytes() == damaged
    assert "stored as float32" in load_backbone(path, state, cache_dir=tmp_path / "cache").notices[2]


def test_a_user_without_a_home_has_the_place_beside_the_pickle(tmp_path, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    state = state_of(ONE_BLOCK)
    path = write_pickle(tmp_path / "R-50.pkl", random_blobs(ONE_BLOCK, state))
    assert "kept here" in load_backbone(path, state).notices[-1]
