import io
import json
import sys

import pytest
from test_start_of_a_run import SHORT_RUN

from maskperf.cli.main import main
from maskperf.demo.dataset import write_demo_dataset
from maskperf.pictures import fonts

NAMES = ["Gr\u00f6\u00dfe", "\u7bb1\u5b50", "\u043a\u043e\u043d\u0443\u0441", "\u0642\u0637\u0629", "\U0001f697 car"]


@pytest.fixture
def named(tmp_path):
    """Return the arguments of a short run on a data set whose categories have names of several scripts."""
    write_demo_dataset(tmp_path / "data", train_images=4, val_images=2, seed=3)
    arguments = [*SHORT_RUN, f"run_dir={tmp_path / 'run'}"]
    for split in ("train", "val"):
        path = tmp_path / "data" / "annotations" / f"instances_{split}2017.json"
        document = json.loads(path.read_text())
        for index, category in enumerate(document["categories"]):
            category["name"] = NAMES[index] if index < len(NAMES) else f"thing {index}"
        path.write_text(json.dumps(document))
        arguments += [f"data.{split}_json={path}", f"data.{split}_images={tmp_path / 'data' / f'{split}2017'}"]
    return arguments


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_run_says_once_that_no_font_has_the_names_and_writes_all_its_files(named, encoding, tmp_path, monkeypatch):
    monkeypatch.setattr(fonts, "system_fonts", lambda letters: [])
    fonts._font_of.cache_clear()
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(named) == 0
    fonts._font_of.cache_clear()
    shown = terminal.buffer.getvalue().decode(encoding)
    assert shown.count("no font on this machine has letters such as ") == 1
    assert "\n1 thread: system.threads=1\n" in shown
    letter = "\u7bb1" if encoding == "utf-8" else "\\u7bb1"
    assert f"{letter} (U+7BB1)" in shown
    assert NAMES[1] in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert set(NAMES) <= set(results["box_ap_per_category"])
    assert (tmp_path / "run" / "predictions.png").stat().st_size > 0
