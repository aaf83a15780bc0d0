import io
import json

import pytest
from PIL import Image

from maskperf.cli import doctor_data
from maskperf.cli.doctor import doctor
from maskperf.cli.doctor_data import examine_data, progress_line
from maskperf.config import DataConfig
from maskperf.demo.dataset import write_demo_dataset
from maskperf.errors import EXIT_DONE, EXIT_USAGE, ConfigError

NUM_TRAIN, NUM_VAL = 6, 4


@pytest.fixture
def root(tmp_path):
    write_demo_dataset(tmp_path / "demo", train_images=NUM_TRAIN, val_images=NUM_VAL, seed=1)
    return tmp_path / "demo"


@pytest.fixture
def quick(tmp_path):
    return ["--quick", "--run-dir", str(tmp_path)]


def own_data(root, *splits):
    return [
        pair
        for split in splits
        for pair in (
            f"data.{split}_json={root}/annotations/instances_{split}2017.json",
            f"data.{split}_images={root}/{split}2017",
        )
    ]


def break_inside(path):
    """Put a PNG in the place of a picture, whose pixels are broken between a good head and a good end."""
    with Image.open(path) as image:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    path.write_bytes(data)


def lines_of(capsys, name):
    return [line for line in capsys.readouterr().out.splitlines() if f"{name} data: " in line]


def test_both_splits_of_a_folder_are_looked_at(root, quick, capsys):
    code = doctor([*quick, "--data", str(root)])
    output = capsys.readouterr().out
    (train,) = [line for line in output.splitlines() if line.startswith("ok       training data: ")]
    (val,) = [line for line in output.splitlines() if line.startswith("ok       validation data: ")]
    assert f"{NUM_VAL} images in {root}/val2017; head and end of every image were read" in val
    assert "images in" in train
    assert code == (EXIT_USAGE if "\nproblem " in "\n" + output else EXIT_DONE)
    assert "problem  COCO 2017" not in output


def test_without_data_nothing_is_looked_at(quick, capsys):
    doctor(quick)
    output = capsys.readouterr().out
    assert "training data" not in output
    assert "validation data" not in output


def test_own_data_is_named_by_pairs_one_split_or_both(root, quick, capsys):
    doctor([*quick, *own_data(root, "val")])
    output = capsys.readouterr().out
    assert "validation data: " in output
    assert "training data: " not in output
    doctor([*quick, *own_data(root, "train", "val")])
    assert "training data: " in capsys.readouterr().out


def test_problems_are_problems_by_kind_with_the_exit_code(root, quick, capsys):
    for path in sorted((root / "val2017").iterdir())[:3]:
        path.write_bytes(path.read_bytes()[:-400])
    assert doctor([*quick, "--data", str(root)]) == EXIT_USAGE
    (line,) = lines_of(capsys, "validation")
    assert line.startswith("problem  validation data: ")
    assert "and 2 more of this kind (image id " in line
    assert line.endswith("; The image is cut short or broken.")


def test_json_has_the_findings_and_every_error(root, quick, capsys):
    for path in sorted((root / "val2017").iterdir())[:3]:
        path.unlink()
    doctor([*quick, "--json", "--data", str(root)])
    found = json.loads(capsys.readouterr().out)
    (finding,) = [entry for entry in found["findings"] if entry["name"] == "validation data"]
    assert finding["level"] == "problem"
    assert len(found["data_errors"]) == 3
    assert {error["field"] for error in found["data_errors"]} == {"file_name"}


def test_every_image_is_decoded_unless_quick(root, capsys):
    broken = sorted((root / "val2017").iterdir())[1]
    break_inside(broken)
    data = DataConfig(root=str(root))
    findings, problems = examine_data(data, ["train", "val"], decode=False)
    assert problems == []
    findings, (problem,) = examine_data(data, ["train", "val"], decode=True)
    assert problem.file == str(broken)
    assert "every image was decoded" in [entry.meaning for entry in findings]
    assert [entry.level for entry in findings if entry.name == "validation data"] == ["problem"]


def test_notices_are_notes(root, quick, capsys):
    for path in (root / "val2017").iterdir():
        path.rename(path.with_name(path.name.upper()))
    doctor([*quick, "--data", str(root)])
    first, second = lines_of(capsys, "validation")
    assert first.startswith(
        f"note     validation data: {root}/annotations/instances_val2017.json: {NUM_VAL} of {NUM_VAL} file"
    )
    assert second.startswith("ok ")


def test_the_words_of_the_configuration_count(root, quick, capsys):
    sorted((root / "val2017").iterdir())[0].unlink()
    doctor([*quick, *own_data(root, "val"), "data.skip_bad=true"])
    first, second = lines_of(capsys, "validation")
    assert "1 images left out (data.skip_bad=true): There is no such file" in first
    assert f"{NUM_VAL - 1} images in" in second


def test_a_path_that_is_not_there_is_a_problem(root, quick, capsys):
    assert doctor([*quick, f"data.val_json={root}/none.json", f"data.val_images={root}/val2017"]) == EXIT_USAGE
    (line,) = lines_of(capsys, "validation")
    assert line.startswith(f"problem  validation data: {root}/none.json: not found")


def test_annotations_that_cannot_be_read_are_a_problem(root, quick, capsys):
    (root / "annotations" / "instances_val2017.json").write_text("{")
    assert doctor([*quick, "--data", str(root)]) == EXIT_USAGE
    assert lines_of(capsys, "validation")[0].startswith("problem  validation data: ")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.num_classes=3", "keys of the section data only"),
        ("data.root=/x", "give --data instead"),
        ("data.skip_bad=maybe", "skip_bad"),
        ("data.short_side=0", "short_side"),
    ],
)
def test_words_that_cannot_be_used_are_refused(word, message):
    with pytest.raises(ConfigError, match=message):
        doctor(["--quick", word])


@pytest.mark.parametrize("is_live", [True, False])
def test_the_progress_is_told_now_and_then(is_live, monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(doctor_data.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_live, raising=False)
    tell = progress_line("training images")
    for done in range(1, 101):
        now[0] += 0.25
        tell(done, 100)
    text = capsys.readouterr().err
    assert text.endswith("\n")
    told = [line for line in text.replace("\r", "\n").splitlines() if line]
    assert told[0] == (
        "training images: 2 of 100 decoded, 4 images/s" if is_live else "training images: 40 of 100 decoded, 4 images/s"
    )
    assert len(told) == (50 if is_live else 2)
