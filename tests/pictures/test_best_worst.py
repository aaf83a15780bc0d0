import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from maskperf.data.coco.document import read_document
from maskperf.errors import DataError
from maskperf.pictures.best_worst import (
    LARGEST_JPEG_BYTES,
    ImageJudgement,
    choose_best_and_worst,
    write_picture_entries,
)

HEIGHT, WIDTH = 60, 80
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]


def square(x, y, side):
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def truth(annotation_id, image_id, x, *, category_id=3, crowd=False):
    """Return an object of 20 by 20 pixels."""
    counts = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x, 10, 20, 20],
        "area": 400,
        "iscrowd": int(crowd),
        "segmentation": counts if crowd else [square(x, 10, 20)],
    }


def found(image_id, x, *, score=0.9, category_id=3):
    """Return the entries of a detection of 20 by 20 pixels: boxes, masks."""
    code = coco_masks.merge(coco_masks.frPyObjects([square(x, 10, 20)], HEIGHT, WIDTH))
    owner = {"image_id": image_id, "category_id": category_id, "score": score}
    rle = {"size": list(code["size"]), "counts": code["counts"].decode()}
    return {**owner, "bbox": [x, 10, 20, 20]}, {**owner, "segmentation": rle}


def entries_of(folder, annotations, detections, *, images=1, count=4, broken=None):
    """Return pictures.json for images 1 ... `images`."""
    rows = [{"id": n, "file_name": f"{n}.jpg", "height": HEIGHT, "width": WIDTH} for n in range(1, images + 1)]
    for row in rows:
        pixels = np.random.default_rng(row["id"]).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / row["file_name"], quality=90)
    if broken is not None:
        (folder / f"{broken}.jpg").write_bytes(b"no picture")
    val_json = folder / "val.json"
    val_json.write_text(json.dumps({"images": rows, "annotations": annotations, "categories": CATEGORIES}))
    boxes, masks = [box for box, _ in detections], [mask for _, mask in detections]
    write_picture_entries(read_document(val_json)[0], folder, boxes, masks, count=count, folder=folder)
    return json.loads((folder / "pictures.json").read_text())


def caption_of(folder, annotations, detections):
    """Return the caption of image 1, where image 2 is better or worse and takes the other place."""
    entries = entries_of(folder, annotations, detections)
    assert len(entries) == 1
    return entries[0]["kind"], entries[0]["caption"]


def test_a_perfect_image_scores_one(tmp_path):
    kind, caption = caption_of(tmp_path, [truth(1, 1, 5)], [found(1, 5)])
    assert (kind, caption) == ("best", "score 1.00: 1 of 1 object found, mean mask overlap 1.00, no wrong detection")


def test_the_overlap_counts_not_only_the_hit(tmp_path):
    _, caption = caption_of(tmp_path, [truth(1, 1, 5)], [found(1, 15)])  # 200 of 600 pixels
    assert caption.startswith("score 0.33: 1 of 1 object found, mean mask overlap 0.33")


def test_wrong_detections_and_missed_objects_lower_the_score(tmp_path):
    annotations = [truth(1, 1, 5), truth(2, 1, 50)]
    _, caption = caption_of(tmp_path, annotations, [found(1, 5), found(1, 28, score=0.6)])
    assert caption == "score 0.33: 1 of 2 objects found, mean mask overlap 1.00, 1 wrong detection"


def test_a_second_detection_of_one_object_is_wrong(tmp_path):
    _, caption = caption_of(tmp_path, [truth(1, 1, 5)], [found(1, 5), found(1, 6), found(1, 7)])
    assert caption == "score 0.33: 1 of 1 object found, mean mask overlap 1.00, 2 wrong detections"


def test_the_right_place_with_the_wrong_category_is_wrong(tmp_path):
    kind, caption = caption_of(tmp_path, [truth(1, 1, 5)], [found(1, 5, category_id=7)])
    assert (kind, caption) == ("worst", "score 0.00: 0 of 1 object found, 1 wrong detection")


def test_a_detection_that_is_not_sure_does_not_count(tmp_path):
    _, caption = caption_of(tmp_path, [truth(1, 1, 5)], [found(1, 5, score=0.49)])
    assert caption == "score 0.00: 0 of 1 object found, no wrong detection"


def test_the_larger_overlap_gets_the_object(tmp_path):
    _, caption = caption_of(tmp_path, [truth(1, 1, 5)], [found(1, 10, score=0.99), found(1, 5, score=0.5)])
    assert "mean mask overlap 1.00, 1 wrong detection" in caption


def test_an_overlap_by_chance_finds_nothing(tmp_path):
    _, caption = caption_of(tmp_path, [truth(1, 1, 5)], [found(1, 23)])  # 40 of 760 pixels
    assert caption == "score 0.00: 0 of 1 object found, 1 wrong detection"


def test_a_detection_in_a_crowd_of_its_category_is_not_wrong(tmp_path):
    annotations = [truth(1, 1, 5), truth(2, 1, 0, crowd=True)]
    detections = [found(1, 5), found(1, 50), found(1, 50, category_id=7)]
    _, caption = caption_of(tmp_path, annotations, detections)
    assert caption == "score 0.50: 1 of 1 object found, mean mask overlap 1.00, 1 wrong detection"


def test_images_without_objects_are_left_out(tmp_path):
    annotations = [truth(1, 1, 5), truth(2, 2, 0, crowd=True)]
    entries = entries_of(tmp_path, annotations, [found(1, 5), found(3, 5)], images=3)
    assert [(entry["kind"], entry["title"]) for entry in entries] == [("best", "1.jpg")]


def test_the_best_come_first_then_the_worst(tmp_path):
    annotations = [truth(number, number, 5) for number in range(1, 7)]
    detections = [found(number, 5 + 2 * number) for number in range(1, 7)]
    entries = entries_of(tmp_path, annotations, detections, images=6, count=2)
    shown = [(entry["kind"], entry["title"]) for entry in entries]
    assert shown == [("best", "1.jpg"), ("best", "2.jpg"), ("worst", "6.jpg"), ("worst", "5.jpg")]


def judgement(image_id, score, objects=1):
    return ImageJudgement(image_id=image_id, score=score, objects=objects, overlaps=(), wrong=0)


def test_no_image_is_best_and_worst():
    chosen = choose_best_and_worst([judgement(1, 0.5), judgement(2, 0.9), judgement(3, 0.1)], 4)
    assert [(kind, entry.image_id) for kind, entry in chosen] == [("best", 2), ("best", 1), ("worst", 3)]
    assert choose_best_and_worst([], 4) == []


def test_nothing_found_is_never_among_the_best():
    chosen = choose_best_and_worst([judgement(1, 0.0), judgement(2, 0.0, objects=5)], 1)
    assert [(kind, entry.image_id) for kind, entry in chosen] == [("worst", 2)]


def test_the_truth_is_on_the_left_and_what_was_found_on_the_right(tmp_path):
    entries = entries_of(tmp_path, [truth(1, 1, 5)], [found(1, 40, category_id=7)])
    with Image.open(io.BytesIO(base64.b64decode(entries[0]["jpeg_base64"]))) as picture:
        assert picture.format == "JPEG" and picture.width <= 930
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    middle = pixels.shape[1] // 2
    cat, dog = (np.abs(pixels - colour).max(axis=-1) < 25 for colour in ((230, 57, 70), (251, 120, 20)))
    assert cat[:, :middle].sum() > 100 > cat[:, middle:].sum()
    assert dog[:, middle:].sum() > 100 > dog[:, :middle].sum()


def test_a_noisy_picture_stays_small(tmp_path):
    rows = [{"id": 1, "file_name": "1.png", "height": 400, "width": 460}]
    pixels = np.random.default_rng(0).integers(0, 256, (400, 460, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "1.png")
    annotation = {**truth(1, 1, 5), "segmentation": [square(5, 10, 20)]}
    (tmp_path / "val.json").write_text(
        json.dumps({"images": rows, "annotations": [annotation], "categories": CATEGORIES})
    )
    write_picture_entries(read_document(tmp_path / "val.json")[0], tmp_path, [], [], folder=tmp_path)
    jpeg = base64.b64decode(json.loads((tmp_path / "pictures.json").read_text())[0]["jpeg_base64"])
    assert 20_000 < len(jpeg) <= 1.5 * LARGEST_JPEG_BYTES  # pure noise, at the lowest quality


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"1\.jpg"):
        entries_of(tmp_path, [truth(1, 1, 5)], [], broken=1)


def test_results_that_do_not_belong_together_are_refused(tmp_path):
    with pytest.raises(ValueError, match="same detections"):
        entries_of(tmp_path, [truth(1, 1, 5)], [(found(1, 5)[0], found(2, 5)[1])])
    (tmp_path / "val.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    with pytest.raises(ValueError, match="1 box results, but 0 mask results"):
        write_picture_entries(read_document(tmp_path / "val.json")[0], tmp_path, [found(1, 5)[0]], [], folder=tmp_path)
