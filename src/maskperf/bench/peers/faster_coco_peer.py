"""faster-coco-eval's side of the benchmark of scores.

Started with the Python of the peer; imports nothing of maskperf.
"""

import serve
from coco_scores import prepare_scoring
from faster_coco_eval import COCO, COCOeval_faster


def scored(inputs):
    """Return one scoring of box results and mask results, one after the other."""
    return prepare_scoring(inputs, COCO, COCOeval_faster)


if __name__ == "__main__":
    serve.serve({"scored": scored})
