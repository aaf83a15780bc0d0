"""faster-coco-eval's side of the benchmark of scores.

Started with the Python of the peer; imports nothing of maskperf.
"""

import json
import time

import serve
from faster_coco_eval import COCO, COCOeval_faster


def scored(inputs):
    """Returns one scoring of box results and mask results, one after the other."""
    start = time.perf_counter()
    truth = COCO(inputs["large_json"])
    seconds = time.perf_counter() - start
    results = {}
    for kind, iou_type in (("boxes", "bbox"), ("masks", "segm")):
        with open(inputs[kind], encoding="ascii") as file:
            results[iou_type] = json.load(file)

    def work():
        return {"box_ap": score(truth, results["bbox"], "bbox"), "mask_ap": score(truth, results["segm"], "segm")}

    return work, {"items": len(truth.imgs), "item": "images", "truth_seconds": seconds}


def score(truth, results, iou_type):
    found = truth.loadRes([dict(entry) for entry in results])  # copies: the library writes into them
    evaluation = COCOeval_faster(truth, found, iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


if __name__ == "__main__":
    serve.serve({"scored": scored})
