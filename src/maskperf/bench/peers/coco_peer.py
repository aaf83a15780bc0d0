"""The benchmarks of annotations and scores by pycocotools or by faster-coco-eval: python coco_peer.py LIBRARY.

Started with the Python of the peer; imports nothing of maskperf.
"""

import importlib
import json
import sys
import time
from functools import partial

import serve

LIBRARIES = {  # module and class of the ground truth and of the evaluation
    "pycocotools": (("pycocotools.coco", "COCO"), ("pycocotools.cocoeval", "COCOeval")),
    "faster-coco-eval": (("faster_coco_eval", "COCO"), ("faster_coco_eval", "COCOeval_faster")),
}


def load(library):
    """Return the classes of the ground truth and of the evaluation."""
    return [getattr(importlib.import_module(module), name) for module, name in LIBRARIES[library]]


def ap_of(truth, results, iou_type, make_evaluation):
    """Return COCO's AP of the results."""
    found = truth.loadRes([dict(entry) for entry in results])  # copies: the library writes into them
    evaluation = make_evaluation(truth, found, iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


def index(read_truth, inputs):
    """Return one reading of the JSON."""
    return partial(read_truth, inputs["large_json"]), {}


def scored(read_truth, make_evaluation, inputs):
    """Return one evaluation of box results and mask results, one after the other."""
    start = time.perf_counter()
    truth = read_truth(inputs["large_json"])
    facts = {"items": len(truth.imgs), "item": "images", "truth_seconds": time.perf_counter() - start}
    results = {}
    for kind in ("boxes", "masks"):
        with open(inputs[kind], encoding="ascii") as file:
            results[kind] = json.load(file)

    def work():
        box_ap = ap_of(truth, results["boxes"], "bbox", make_evaluation)
        return {"box_ap": box_ap, "mask_ap": ap_of(truth, results["masks"], "segm", make_evaluation)}

    return work, facts


if __name__ == "__main__":
    truth_class, evaluation_class = load(sys.argv[1])
    serve.serve({"index": partial(index, truth_class), "scored": partial(scored, truth_class, evaluation_class)})
