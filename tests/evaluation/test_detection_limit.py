import json

import pytest

from maskperf.data.coco.index import read_coco
from maskperf.evaluation.detection_limit import detection_notices


def entry(number, image_id, **changes):
    outline = [[5, 5, 15, 5, 5, 15]]
    plain = {"id": number, "image_id": image_id, "category_id": 7, "bbox": [5, 5, 10, 10], "area": 50, "iscrowd": 0}
    return {**plain, "segmentation": outline, **changes}


def index_of(folder, objects, crowds=0):
    """Return the index of two images, the first of them with so many objects and crowd regions."""
    crowd = {"iscrowd": 1, "segmentation": {"size": [40, 60], "counts": [100, 50, 2250]}}
    document = {
        "images": [{"id": place, "file_name": f"{place}.jpg", "height": 40, "width": 60} for place in (10, 20)],
        "annotations": [
            *(entry(1000 + number, 10) for number in range(objects)),
            *(entry(5000 + number, 10, **crowd) for number in range(crowds)),
            entry(9000, 20),
        ],
        "categories": [{"id": 7, "name": "dog"}],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(document))
    return read_coco(path, folder, training=False)


@pytest.mark.parametrize(
    ("objects", "max_detections", "detections_per_image", "begins"),
    [
        (5, 100, 100, []),
        (100, 100, 100, []),
        (101, 100, 100, ["{file}: 1 image has more than 100 objects (at most 101)"]),
        (150, 100, 300, ["{file}: 1 image has more than 100 objects (at most 150)"]),
        (150, 150, 150, []),
        (151, 150, 150, ["{file}: 1 image has more than 150 objects (at most 151)"]),
        (5, 100, 20, ["model.detections_per_image=20 is below evaluation.max_detections=100"]),
        (5, 100, 300, ["model.detections_per_image=300 is above evaluation.max_detections=100"]),
        (150, 100, 20, ["{file}: 1 image has more than 100", "model.detections_per_image=20 is below"]),
    ],
)
def test_notices_come_where_the_limit_matters(tmp_path, objects, max_detections, detections_per_image, begins):
    index = index_of(tmp_path, objects)
    found = detection_notices(index, max_detections=max_detections, detections_per_image=detections_per_image)
    assert len(found) == len(begins)
    for notice, begin in zip(found, begins, strict=True):
        assert notice.startswith(begin.format(file=index.json_path))


@pytest.mark.parametrize(("detections_per_image", "to_set"), [(300, 300), (100, 150)])
def test_the_notice_names_what_to_set(tmp_path, detections_per_image, to_set):
    (notice,) = detection_notices(
        index_of(tmp_path, 150), max_detections=100, detections_per_image=detections_per_image
    )
    assert f"evaluation.max_detections=150 and model.detections_per_image={to_set}" in notice


def test_crowd_regions_are_no_objects(tmp_path):
    assert detection_notices(index_of(tmp_path, 60, crowds=60), max_detections=100, detections_per_image=100) == []
