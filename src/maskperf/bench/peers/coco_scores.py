"""Scoring with a library of pycocotools' form, for the scripts beside this one.

Imported in the Python of the peer; imports nothing of maskperf.
"""

import json
import time


def prepare_scoring(inputs, read_truth, make_evaluation):
    """Return one scoring of box results and mask results, one after the other; the two are classes of the library."""
    start = time.perf_counter()
    truth = read_truth(inputs["large_json"])
    seconds = time.perf_counter() - start
    results = {}
    for kind, iou_type in (("boxes", "bbox"), ("masks", "segm")):
        with open(inputs[kind], encoding="ascii") as file:
            results[iou_type] = json.load(file)

    def score(iou_type):
        found = truth.loadRes([dict(entry) for entry in results[iou_type]])  # copies: the library writes into them
        evaluation = make_evaluation(truth, found, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return float(evaluation.stats[0])

    def work():
        return {"box_ap": score("bbox"), "mask_ap": score("segm")}

    return work, {"items": len(truth.imgs), "item": "images", "truth_seconds": seconds}
