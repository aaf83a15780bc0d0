import importlib.util
import json
import sys

import pytest
import torch

from maskperf.bench import gpu
from maskperf.bench.measure import spread_of
from maskperf.bench.names import SUMMARIES
from maskperf.bench.plan import GpuPlan
from maskperf.bench.view import spread_text
from maskperf.cli.bench import default_cache
from maskperf.cli.main import execute
from maskperf.errors import EXIT_DONE, ConfigError, StorageError


def bench(arguments):
    return execute(["bench", *arguments])


TINY = ["--size", "64x96", "--images", "1", "--threads", "1", "--repeats", "2", "--set", "system.device=cpu"]


def test_one_benchmark_is_measured_shown_and_written(tmp_path, capsys):
    file = tmp_path / "bench.json"
    words = ["mask_targets", *TINY, "--clock", "cpu", "--json", str(file), "--cache", str(tmp_path)]
    assert bench(words) == EXIT_DONE
    output = capsys.readouterr().out
    assert "GFLOP/s by float32 matrix products" in output
    assert "28x28" in output
    assert "RoIs/s" in output
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["command"] == ["maskperf", "bench", *words]
    assert {"commit", "machine", "ceiling", "plan"} <= set(found)
    assert found["ceiling"]["environment"]["packages"]["torch"]
    assert found["ceiling"]["flop_per_second"] > 1e9
    side = found["results"][0]["sides"][0]
    assert len(side["timings"]) == 2
    assert side["seconds"]["median"] == pytest.approx(sum(timing["cpu_seconds"] for timing in side["timings"]) / 2)
    assert 0.05 < side["peak_gib"] < 4


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="this Python has torchvision")
def test_a_peer_without_its_packages_says_what_to_install():
    with pytest.raises(ConfigError) as caught:
        bench(["mask_targets", *TINY, "--peer", "--peer-python", sys.executable])
    assert f"Fix: {sys.executable} -m pip install torchvision" in str(caught.value)


def test_help_names_every_benchmark(capsys):
    assert bench(["--help"]) == EXIT_DONE
    output = capsys.readouterr().out
    for name in SUMMARIES:
        assert f"\n  {name} " in output
    assert "maskperf bench roi_align nms mask_targets --peer" in output
    assert str(default_cache()) in output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["roialign"], "unknown name 'roialign'; did you mean roi_align?"),
        (["--size", "800x1333"], "multiples of 32"),
        (["--size", "big"], "is not HEIGHTxWIDTH"),
        (["--repeats", "0"], "an integer >= 1"),
        (["--recipe", "coco"], "belongs to startup"),
        (["startup", "--recipe", "cocoa"], "unknown name 'cocoa'; did you mean coco?"),
        (["nms", "--peer-python", "/opt/x"], "add --peer"),
        (["nms", "--set", "model.num_clases=3"], "did you mean model.num_classes"),
        (["step", "--set", "model.num_classes=0"], "give a number of 2 or more"),
        (["step", "--peer", "--set", "model.stage_blocks=1,1,1,1"], "model.stage_blocks: changed"),
        (["--peers"], "did you mean --peer?"),
        (["gpu", "nms"], "gpu cannot be measured with other names. Fix: maskperf bench gpu"),
        (["gpu", "--size", "64x96", "--set", "system.device=cpu"], "gpu cannot be measured with --set, --size. Fix:"),
    ],
)
def test_arguments_that_cannot_be_used(words, said):
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        bench(words)


def test_a_file_that_exists_is_not_written_over(tmp_path):
    file = tmp_path / "bench.json"
    file.write_text("{}", encoding="ascii")
    with pytest.raises(StorageError, match="--overwrite"):
        bench(["nms", "--json", str(file)])


def test_a_cache_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("", encoding="ascii")
    with pytest.raises(StorageError, match="file/cache: the folder cannot be made"):
        bench(["nms", "--cache", str(tmp_path / "file" / "cache")])


def test_times_are_shown_in_a_unit_that_fits_them():
    assert spread_text(spread_of([0.0123, 0.0119, 0.014])) == "12.3 ms (11.9 to 14)"
    assert spread_text(spread_of([2.5])) == "2.5 s (2.5 to 2.5)"
    assert spread_text(spread_of([4e-6])) == "4 us (4 to 4)"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_machine_without_a_gpu_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no CUDA GPU here. Fix: "):
        bench(["gpu", "--json", str(tmp_path / "gpu.json")])
    assert list(tmp_path.iterdir()) == []


def test_what_was_measured_on_a_gpu_is_shown_and_written(tmp_path, monkeypatch, capsys):
    found = {"commit": "abc", "sections": {"switches": {"rows": [], "error": "no time", "seconds": 1.0}}}
    plans = []
    monkeypatch.setattr(gpu, "measure", lambda plan, folder, say: plans.append(plan) or found)
    file = tmp_path / "gpu.json"
    assert bench(["gpu", "--repeats", "3", "--json", str(file)]) == EXIT_DONE
    assert plans == [GpuPlan(repeats=3)]
    assert "switches: NOT COMPLETE" in capsys.readouterr().out
    command = ["maskperf", "bench", "gpu", "--repeats", "3", "--json", str(file)]
    assert json.loads(file.read_text(encoding="utf-8")) == {"command": command, **found}
