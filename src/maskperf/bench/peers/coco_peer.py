"""pycocotools' side of the benchmarks of annotations and scores.

Started with the Python of the peer; imports nothing of maskperf.
"""

import serve
from coco_scores import prepare_scoring
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def index(inputs):
    """Return one reading of the JSON."""
    return (lambda: COCO(inputs["large_json"]) and None), {}


def scored(inputs):
    """Return one scoring of box results and mask results, one after the other."""
    return prepare_scoring(inputs, COCO, COCOeval)


if __name__ == "__main__":
    serve.serve({"index": index, "scored": scored})
