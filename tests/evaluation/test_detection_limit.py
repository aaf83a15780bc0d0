import json

import pytest
from coco_rectangles import annotation, coco_document

from maskperf.config import ModelConfig
from maskperf.data.coco.index import read_coco
from maskperf.evaluation.detection_limit import detection_notices, most_counted


def index_of(folder, objects, crowds=0):
    """Return the index of two images, the first of them with so many objects and crowd regions."""
    crowd = {"iscrowd": 1, "segmentation": {"size": [40, 60], "counts": [100, 50, 2250]}}
    places = [(number, 10, {}) for number in range(1, 1 + objects)] + [(9000, 20, {})]
    places += [(5000 + number, 10, crowd) for number in range(crowds)]
    annotations = [annotation(number, image_id, 7, [5, 5, 10, 10], **changes) for number, image_id, changes in places]
    path = folder / "instances.json"
    path.write_text(json.dumps(coco_document(annotations, {7: "dog"}, (40, 60))))
    return read_coco(path, folder, training=False)


@pytest.mark.parametrize(
    ("objects", "detections_per_image", "begins"),
    [
        (5, 100, []),
        (100, 100, []),
        (101, 100, ["{file}: 1 image has more than 100 objects (at most 101)"]),
        (150, 300, ["model.detections_per_image=300: no image gets more"]),
        (151, 150, ["{file}: 1 image has more than 150 objects (at most 151)", "model.detections_per_image=150: "]),
        (5, 20, ["model.detections_per_image=20: no image gets more detections, and the metric counts 100"]),
        (21, 20, ["{file}: 1 image has more than 20", "model.detections_per_image=20: "]),
    ],
)
def test_notices_come_where_the_limit_matters(tmp_path, objects, detections_per_image, begins):
    index = index_of(tmp_path, objects)
    found = detection_notices(index, detections_per_image)
    assert len(found) == len(begins)
    for notice, begin in zip(found, begins, strict=True):
        assert notice.startswith(begin.format(file=index.json_path))
    assert objects <= detections_per_image or f"Set model.detections_per_image={objects} " in found[0]


def test_crowd_regions_are_no_objects(tmp_path):
    assert detection_notices(index_of(tmp_path, 60, crowds=60), 100) == []


@pytest.mark.parametrize(("detections_per_image", "limit"), [(3, 100), (100, 100), (300, 300)])
def test_the_metric_counts_100_detections_or_all_of_the_model_where_it_gives_more(detections_per_image, limit):
    assert most_counted(ModelConfig(detections_per_image=detections_per_image)) == limit
