"""`maskperf predict`: what is read, what is written, and what a broken file does."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

import maskperf as api
from maskperf.errors import EXIT_DATA, EXIT_STORAGE, EXIT_USAGE

LOW = ("--threshold", "0.05", "--set", "system.threads=1")


@pytest.fixture
def photos(folder, tmp_path):
    """Three images in two folders, one of them turned by its EXIF mark."""
    files = sorted((folder / "demo" / "val2017").iterdir())
    target = tmp_path / "photos"
    (target / "more").mkdir(parents=True)
    for number, file in enumerate(files[:3]):
        with Image.open(file) as image:
            exif = Image.Exif()
            exif[0x0112] = 6 if number == 2 else 1
            image.save((target / "more" if number == 1 else target) / f"{number}.png", exif=exif)
    return target


def results(out):
    return json.loads((out / "predictions.json").read_text())


def test_everything_that_is_written_says_the_same(maskperf, weights, photos, tmp_path):
    out = tmp_path / "out"
    shown = maskperf("predict", weights, photos, "--out", out, "--write", "images,json,csv,masks", *LOW)
    assert shown.code == 0, shown.err
    assert "threshold: objects of a score below 0.05 are left out" in shown.out
    assert "note: 1 images have an EXIF orientation, which is ignored as in training" in shown.out
    images = json.loads((out / "images.json").read_text())["images"]
    assert [image["file_name"] for image in images] == [str(photos / name) for name in ("0.png", "2.png", "more/1.png")]
    found = results(out)
    model = api.load(weights, device="cpu")
    expected = [entry for image in images
                for entry in model.predict(image["file_name"], threshold=0.05).to_coco(image["id"])]  # fmt: skip
    assert found == json.loads(json.dumps(expected)) and len(found) > 5
    rows = list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))
    assert [(int(row["image_id"]), int(row["category_id"])) for row in rows] == [
        (entry["image_id"], entry["category_id"]) for entry in found
    ]
    assert [float(row["x1"]) for row in rows] == pytest.approx([entry["bbox"][0] for entry in found], abs=0.006)
    for image, name in zip(images, ("0", "2", "more/1"), strict=True):
        result = model.predict(image["file_name"], threshold=0.05)
        with Image.open(out / "masks" / f"{name}.png") as opened:
            numbers = np.asarray(opened)
        surest = np.zeros(result.size_hw, int)
        for number in range(len(result), 0, -1):
            surest[result.masks[number - 1]] = number
        assert (numbers == surest).all()
        with Image.open(out / "images" / f"{name}.jpg") as opened:
            assert opened.size == result.draw().size


def test_the_results_can_be_scored_by_pycocotools(maskperf, weights, folder, tmp_path):
    assert maskperf("predict", weights, folder / "demo" / "val2017", "--out", "out", "--write", "json", *LOW).code == 0
    loaded = COCO(str(tmp_path / "out" / "images.json")).loadRes(str(tmp_path / "out" / "predictions.json"))
    assert len(loaded.anns) == len(results(tmp_path / "out"))
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["images.json", "predictions.json"]


def test_one_broken_file_of_many_is_named_at_the_end_and_the_others_are_done(maskperf, weights, photos, tmp_path):
    with Image.open(photos / "0.png") as image:
        for number in range(46):
            image.save(photos / f"copy-{number:02d}.png")
    data = (photos / "0.png").read_bytes()
    (photos / "cut.png").write_bytes(data[: len(data) // 2])
    out = tmp_path / "out"
    shown = maskperf("predict", weights, photos, "--out", out, "--write", "json,images", *LOW)
    assert shown.code == EXIT_DATA
    assert f"{photos / 'cut.png'}: whole file" in shown.err and "leave it out" in shown.err
    images = json.loads((out / "images.json").read_text())["images"]
    assert len(images) == 49 and len(list((out / "images").rglob("*.jpg"))) == 49
    assert {entry["image_id"] for entry in results(out)} <= {image["id"] for image in images}
    assert "cut.png" not in {image["file_name"].rpartition("/")[2] for image in images}


@pytest.mark.parametrize(
    ("sources", "more", "code", "text"),
    [
        (["https://example.org/a.jpg"], [], EXIT_USAGE, "nothing is downloaded"),
        (["missing.jpg"], [], EXIT_USAGE, "does not exist"),
        (["*.nothing"], [], EXIT_USAGE, "a pattern"),
        (["empty"], [], EXIT_USAGE, "has no image"),
        (["a.mp4"], ["--tile", "512"], EXIT_USAGE, "--tile is for images"),
        (["a.png"], ["--threshold", "2"], EXIT_USAGE, "'2' is not"),
        (["a.png"], ["--write", "xml"], EXIT_USAGE, "unknown kind 'xml'"),
        (["a.png"], ["--out", "full"], EXIT_STORAGE, "is not empty"),
        (["a.png"], ["--threshold", "0.01"], EXIT_USAGE, "drops detections below 0.05"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(maskperf, weights, tmp_path, sources, more, code, text):
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "full" / "x").write_text("")
    shown = maskperf("predict", weights, *sources, *(more if "--out" in more else [*more, "--out", "out"]))
    assert (shown.code, text in shown.err) == (code, True), shown.err
    assert not (tmp_path / "out").exists() and [entry.name for entry in (tmp_path / "full").iterdir()] == ["x"]


def test_files_of_one_name_keep_apart_and_a_second_prediction_does_not_read_the_first(maskperf, weights, tmp_path):
    for name in ("a/x.png", "b/x.png", "a/x.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), (90, 80, 70)).save(tmp_path / name)
    for more in ([], ["--overwrite"]):
        shown = maskperf("predict", weights, "a", "b", ".", "--out", "out", "--write", "images", *more, *LOW)
        assert shown.code == 0, shown.err
        assert len(list((tmp_path / "out" / "images").rglob("*.jpg"))) == 3
    assert maskperf("predict", weights, "*/x.png", "--out", "glob", "--write", "images", *LOW).code == 0
    assert sorted(file.name for file in (tmp_path / "glob" / "images").iterdir()) == ["x-png.jpg", "x.jpg"]


def test_tiles_are_those_of_the_function(maskperf, weights, tmp_path):
    pixels = np.random.default_rng(3).integers(0, 255, (150, 200, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    assert maskperf("predict", weights, "large.png", "--out", "out", "--tile", "96", *LOW).code == 0
    expected = api.load(weights, device="cpu").predict(tmp_path / "large.png", threshold=0.05, tile=96).to_coco(1)
    assert results(tmp_path / "out") == json.loads(json.dumps(expected))


@pytest.fixture
def video(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number in range(6):
            pixels = np.full((96, 128, 3), 40 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_every_second_frame_of_a_video(maskperf, weights, video, tmp_path):
    import av

    (tmp_path / "broken.mp4").write_bytes(b"no video")
    shown = maskperf("predict", weights, video, "broken.mp4", "--out", "out", "--every", "2", *LOW)
    assert shown.code == EXIT_DATA and "broken.mp4" in shown.err and "is no video" in shown.err
    images = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert [image["file_name"].rpartition("#")[2] for image in images] == ["0", "2", "4"]
    assert len({image["id"] for image in images}) == 3
    with av.open(str(tmp_path / "out" / "videos" / "clip.mp4")) as container:
        assert container.streams.video[0].average_rate == 5
        assert [frame.width for frame in container.decode(video=0)] == [128] * 3


def test_without_pyav_a_video_is_refused_with_what_to_install(maskperf, weights, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"")
    shown = maskperf("predict", weights, "a.mp4", "--out", "out")
    assert shown.code == EXIT_USAGE and "pip install 'maskperf[video]'" in shown.err
