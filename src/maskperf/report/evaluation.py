"""The page of an evaluation: of weights on a data set, without a training."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from maskperf.data.coco.categories import CategoryMatch, with_written_ids
from maskperf.data.coco.index import CocoIndex
from maskperf.evaluation.analysis import analyze
from maskperf.evaluation.scores import GroundTruth
from maskperf.files import write_text
from maskperf.pictures.choice import predictions_of_split
from maskperf.report.contents import ReportContents, RunPage, Verdict
from maskperf.report.mistakes import category_scores, stat_rows
from maskperf.report.page import page_text

FACTS = ("weights", "weights_sha256", "val_json", "val_json_sha256", "val_images", "images", "engine")


def write_evaluation_report(
    path: Path,
    numbers: Path,
    *,
    val: CocoIndex,
    match: CategoryMatch,
    truth: GroundTruth,
    results: tuple[Sequence[dict], Sequence[dict]],
) -> None:
    """Analyze the results of an evaluation and write its page; `numbers`: the evaluation.json of the same.

    Errors: DataError for an image that cannot be read; StorageError where the page cannot be written.
    """
    facts = msgspec.json.decode(numbers.read_bytes())
    analysis = analyze(truth, *results, max_detections=facts["max_detections"])
    boxes, masks = (with_written_ids(found, match) for found in results)
    predictions = predictions_of_split(val, match, boxes, masks)
    box_ap, mask_ap, name = facts["box_ap"], facts["mask_ap"], Path(facts["weights"]).name
    sentence = f"Box AP {box_ap:.4f} and mask AP {mask_ap:.4f} on {facts['images']:,} images."
    page = RunPage(
        name=name,
        recipe=facts["recipe"],
        notices=tuple(facts["notices"]),
        verdict=Verdict(
            state="done", sentence=sentence, box_ap=box_ap, mask_ap=mask_ap, box_target=0.0, mask_target=0.0
        ),
        categories=category_scores(facts["box_ap_per_category"], facts["mask_ap_per_category"], analysis),
        pictures=(*predictions.best_and_worst(), *predictions.samples()),
        settings=tuple((key.replace("_", " "), str(facts[key])) for key in FACTS if key in facts),
        images_per_second=facts["images_per_second"],
        stats=stat_rows(facts["box_stats"], facts["mask_stats"]),
        analysis=analysis,
    )
    title = f"Mask R-CNN: {name}"
    contents = ReportContents(title=title, sentence=sentence, runs=(page,), has_training=False)
    write_text(path, page_text(contents))
