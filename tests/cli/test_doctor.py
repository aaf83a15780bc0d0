import io
import json
import sys

import pytest
from PIL import Image
from rich.console import Console

from maskperf.cli import doctor as module
from maskperf.cli.doctor import ask_torch, examine_data, show_findings
from maskperf.config import DataConfig
from maskperf.demo.dataset import write_demo_dataset
from maskperf.errors import EXIT_DONE, EXIT_USAGE
from maskperf.machine import torch_probe
from maskperf.machine.facts import DiskSpeed, ImageSpeed, TorchProbe, note, ok, problem

NUM_VAL = 4


@pytest.fixture
def root(tmp_path):
    write_demo_dataset(tmp_path / "demo", train_images=6, val_images=NUM_VAL, seed=1)
    return tmp_path / "demo"


@pytest.fixture
def quick(maskperf):
    return lambda *arguments: maskperf("doctor", "--quick", "--all", *arguments)


def own_data(root, *splits):
    layout = (("json", "annotations/instances_{}2017.json"), ("images", "{}2017"))
    return [f"data.{split}_{kind}={root}/{path.format(split)}" for split in splits for kind, path in layout]


def cut_short(root, count=3):
    for path in sorted((root / "val2017").iterdir())[:count]:
        path.write_bytes(path.read_bytes()[:-400])


def lines_of(shown, name):
    return [line for line in shown.out.splitlines() if f" {name}: " in line]


def test_quick_shows_every_line_with_its_meaning(quick, tmp_path):
    shown = quick("--run-dir", tmp_path)
    assert shown.code == (EXIT_USAGE if "\nproblem " in "\n" + shown.out else EXIT_DONE)
    assert all(part in shown.out for part in ("Python: 3.", str(tmp_path), "left out by --quick"))
    assert "\x1b" not in shown.out and shown.out.isascii()
    assert not lines_of(shown, "training data") and not lines_of(shown, "validation data")


def test_a_named_folder_without_data_is_a_problem(quick, tmp_path):
    shown = quick("--data", tmp_path)
    (line,) = lines_of(shown, "COCO 2017")
    assert shown.code == EXIT_USAGE and "fix: maskperf prepare coco" in shown.out
    assert line.startswith("problem ") and "missing annotations/instances_train2017.json" in line


def test_json_holds_findings_facts_and_every_problem_of_the_data(quick, root):
    for path in sorted((root / "val2017").iterdir())[:3]:
        path.unlink()
    found = json.loads(quick("--json", "--data", root).out)
    assert {"level", "name", "value", "meaning", "fix"} == set(found["findings"][0])
    assert found["machine"]["cpu"]["usable_logical_cores"] >= 1 and found["disk_speed"] is None
    assert [entry["level"] for entry in found["findings"] if entry["name"] == "validation data"] == ["problem"]
    assert [error["field"] for error in found["data_errors"]] == ["file_name"] * 3


@pytest.mark.parametrize("is_full", [False, True])
def test_without_quick_the_measurements_are_shown(maskperf, tmp_path, monkeypatch, is_full):
    def measure_disk(folder, threads):
        if is_full:
            raise OSError("less than 1 GiB free")
        return DiskSpeed(
            place=str(folder), write_mib_per_second=1.0, read_mib_per_second=2.0, pictures_per_second=777.0, threads=2
        )

    monkeypatch.setattr("maskperf.machine.speed.measure_disk", measure_disk)
    monkeypatch.setattr(module, "ask_torch", lambda command: TorchProbe(cpu_gflops=321.0, cpu_threads=2))
    speed = ImageSpeed(decode_per_second=200.0, prepare_per_second=55.0, jpeg_kib=140.0)
    monkeypatch.setattr(module, "_image_speed", lambda data: speed)
    shown = maskperf("doctor", "--all", "--data", tmp_path)
    disk = f"disk speed: not measured; {tmp_path}: less than 1 GiB free" if is_full else "777 "
    assert all(part in shown.out for part in (disk, "321 GFLOP/s", "55 images/s"))


def test_the_speed_of_images_is_measured(monkeypatch):
    monkeypatch.setattr(module, "RATE_SECONDS", 0.03)
    speed = module._image_speed(DataConfig())
    assert min(speed.prepare_per_second, speed.decode_per_second) > 0 and speed.jpeg_kib > 10


def test_the_probe_of_torch_measures_the_cpu():
    found = ask_torch([sys.executable, "-P", torch_probe.__file__])
    assert found.failure is None and found.cpu_gflops > 0.5
    assert len(found.gpu_gflops) == len(found.gpu_names)


def test_a_torch_that_crashes_or_hangs_is_a_finding(monkeypatch):
    error = "ImportError: libcudart.so.13: cannot open shared object file"
    code = f"raise ImportError({error.partition(': ')[2]!r})"
    assert ask_torch([sys.executable, "-c", code]).failure == error
    monkeypatch.setattr(module, "PROBE_SECONDS", 0.3)
    assert "no answer" in ask_torch([sys.executable, "-c", "import time; time.sleep(60)"]).failure


def test_what_is_in_order_is_counted_and_shown_on_demand(capsys):
    findings = [ok("a", "1", "fine"), note("b", "2", "slow"), ok("c", "3", "fine")]
    show_findings(findings, Console(width=80), show_all=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["note     b: 2; slow", "problem: 0, note: 1, ok: 2 (maskperf doctor --all shows them)"]


def test_findings_are_lines_in_a_file_and_a_table_with_colours_on_a_terminal():
    findings = [ok("a", "1", "fine"), note("b", "2", "slow", "wait"), problem("[bold]c", "3", "bad " * 100, "fix it")]
    shown = []
    for options in ({}, {"force_terminal": True, "color_system": "standard"}):
        stream = io.StringIO()
        show_findings(findings, Console(file=stream, markup=False, highlight=False, **options), show_all=True)
        shown.append(stream.getvalue())
    assert shown[0].splitlines() == [
        "problem  [bold]c: 3; " + "bad " * 100,
        "         fix: fix it",
        "note     b: 2; slow",
        "         fix: wait",
        "ok       a: 1; fine",
        "problem: 1, note: 1, ok: 1",
    ]
    assert all(part in shown[1] for part in ("\x1b[", "fix: fix it", "[bold]c"))  # markup is shown as it is


def test_both_splits_of_a_folder_are_looked_at(root, quick):
    shown = quick("--data", root)
    (train,), (val,) = lines_of(shown, "training data"), lines_of(shown, "validation data")
    assert train.startswith("ok ") and val.startswith("ok ")
    assert f"{NUM_VAL} images in {root}/val2017; head and end of every image were read" in val
    assert not any(line.startswith("problem") for line in lines_of(shown, "COCO 2017"))


def test_own_data_is_named_by_pairs_one_split_or_both_with_keys_that_count(root, quick):
    cut_short(root, 1)
    shown = quick(*own_data(root, "val"), "data.skip_bad=true")
    first, second = lines_of(shown, "validation data")
    assert "1 images left out (data.skip_bad=true)" in first and f"{NUM_VAL - 1} images in" in second
    assert not lines_of(shown, "training data")
    assert lines_of(quick(*own_data(root, "train", "val")), "training data")


def test_problems_are_shown_by_kind_with_the_exit_code(root, quick):
    cut_short(root)
    shown = quick("--data", root)
    (line,) = lines_of(shown, "validation data")
    assert shown.code == EXIT_USAGE and line.startswith("problem ")
    assert "and 2 more of this kind: " in line and "cut short" in line


def test_every_image_is_decoded_unless_quick(root):
    path = sorted((root / "val2017").iterdir())[1]
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)  # between a good head and a good end
    path.write_bytes(data)
    config = DataConfig(root=str(root))
    assert examine_data(config, ["train", "val"], decode=False)[1] == []
    findings, (found,) = examine_data(config, ["train", "val"], decode=True)
    assert found.file == str(path) and "every image was decoded" in [entry.meaning for entry in findings]
    assert [entry.level for entry in findings if entry.name == "validation data"] == ["problem"]


def test_notices_are_notes(root, quick):
    for path in (root / "val2017").iterdir():
        path.rename(path.with_name(path.name.upper()))
    first, second = lines_of(quick("--data", root), "validation data")
    assert first.startswith("note ") and f": {NUM_VAL} of {NUM_VAL} file" in first
    assert second.startswith("ok ")


@pytest.mark.parametrize("broken", ["missing", "torn"])
def test_annotations_that_cannot_be_read_are_a_problem(root, quick, broken):
    path = root / "annotations" / "instances_val2017.json"
    path.unlink() if broken == "missing" else path.write_text("{")
    shown = quick(*own_data(root, "val"))
    (line,) = lines_of(shown, "validation data")
    assert shown.code == EXIT_USAGE and line.startswith("problem ") and str(path) in line
