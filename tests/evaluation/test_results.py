import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hotcoco import mask as coco_masks  # pycocotools' own decode warns under numpy 2

from maskperf.evaluation.results import boxes_to_xywh, drop_duplicates, encode_masks, rescale_boxes, to_coco_results
from maskperf.evaluation.scores import GroundTruth, score
from maskperf.ops.paste import paste_canvases, paste_masks_reference
from maskperf.structures import Detections, EvaluationBatch, Images

GOLDEN = Path(__file__).parent.parent / "golden" / "data_path"
CATEGORY_IDS = np.array([1, 2, 90])


def batch_of(sizes_hw: list, original_sizes_hw: list, image_ids: list) -> EvaluationBatch:
    images = Images(torch.zeros((len(sizes_hw), 3, 64, 96)), torch.tensor(sizes_hw))
    return EvaluationBatch(images, torch.tensor(image_ids), torch.tensor(original_sizes_hw))


def two_image_detections() -> Detections:
    boxes = torch.tensor([[[2.0, 4.0, 31.0, 43.0], [0.0, 0.0, 9.0, 9.0]], [[10.25, 3.5, 50.0, 40.0], [0.0] * 4]])
    return Detections(
        boxes=boxes,
        scores=torch.tensor([[0.9, 0.3], [0.6, 0.0]]),
        labels=torch.tensor([[3, 1], [2, 0]]),
        valid=torch.tensor([[True, True], [True, False]]),
        mask_probs=torch.rand((2, 2, 28, 28), generator=torch.Generator().manual_seed(1)),
    )


def test_boxes_are_rescaled_per_axis_and_exported_with_plus_one():
    batch = batch_of([[48, 64], [64, 96]], [[96, 32], [64, 96]], [700001, 5])
    boxes, _ = to_coco_results(two_image_detections(), batch, CATEGORY_IDS)
    # Image 700001: x halves, y doubles. (2, 4, 31, 43) -> (1, 8, 15.5, 86), width 15.5 - 1 + 1, height 86 - 8 + 1.
    assert [(entry["image_id"], entry["category_id"], entry["bbox"]) for entry in boxes] == [
        (700001, 90, [1.0, 8.0, 15.5, 79.0]),
        (700001, 1, [0.0, 0.0, 5.5, 19.0]),
        (5, 2, [10.25, 3.5, 40.75, 37.5]),
    ]
    assert [entry["score"] for entry in boxes] == torch.tensor([0.9, 0.3, 0.6]).tolist()


def test_masks_are_those_of_the_paste_rule_at_original_size():
    detections, sizes_hw = two_image_detections(), [(96, 32), (64, 96)]
    batch = batch_of([[48, 64], [64, 96]], sizes_hw, [700001, 5])
    boxes, masks = to_coco_results(detections, batch, CATEGORY_IDS)
    places = [(0, 0), (0, 1), (1, 0)]
    for (image, slot), box_entry, mask_entry in zip(places, boxes, masks, strict=True):
        assert [mask_entry[key] for key in ("image_id", "category_id", "score")] == [
            box_entry[key] for key in ("image_id", "category_id", "score")
        ]
        assert "bbox" not in mask_entry
        box = rescale_boxes(detections.boxes[image], tuple(batch.images.sizes_hw[image].tolist()), sizes_hw[image])
        expected = paste_masks_reference(detections.mask_probs[image, slot][None], box[slot][None], sizes_hw[image])[0]
        decoded = coco_masks.decode(mask_entry["segmentation"])
        assert np.array_equal(decoded.astype(bool), expected.numpy())
        assert expected.any()


def test_results_can_be_written_as_json():
    batch = batch_of([[48, 64], [64, 96]], [[96, 32], [64, 96]], [700001, 5])
    results = to_coco_results(two_image_detections(), batch, CATEGORY_IDS)
    assert json.loads(json.dumps(results)) == [results[0], results[1]]


def test_an_image_without_detections_has_no_results():
    detections = two_image_detections()
    nothing = Detections(
        detections.boxes,
        detections.scores,
        detections.labels,
        torch.zeros_like(detections.valid),
        detections.mask_probs,
    )
    batch = batch_of([[48, 64], [64, 96]], [[96, 32], [64, 96]], [700001, 5])
    assert to_coco_results(nothing, batch, CATEGORY_IDS) == ([], [])


def test_detections_without_masks_are_refused():
    detections = two_image_detections()
    unmasked = Detections(detections.boxes, detections.scores, detections.labels, detections.valid)
    with pytest.raises(AssertionError, match="mask head"):
        to_coco_results(unmasked, batch_of([[48, 64], [64, 96]], [[96, 32], [64, 96]], [1, 2]), CATEGORY_IDS)


def test_encoded_masks_decode_to_themselves_in_any_memory_order():
    masks = torch.rand((4, 13, 7), generator=torch.Generator().manual_seed(0)) > 0.5
    masks[3] = False
    for ordered in (masks, masks.transpose(1, 2).contiguous().transpose(1, 2)):
        codes = encode_masks(ordered)
        assert all(code["size"] == [13, 7] and isinstance(code["counts"], str) for code in codes)
        for code, mask in zip(codes, masks, strict=True):
            assert np.array_equal(coco_masks.decode(code).astype(bool), mask.numpy())


def test_the_reference_s_boxes_are_float32_and_its_masks_stay_on_our_canvases():
    golden = json.loads((GOLDEN / "results.json").read_text())
    for box_entry, mask_entry in zip(golden["bbox"], golden["segm"], strict=True):
        x, y, width, height = box_entry["bbox"]
        corners = torch.tensor([[x, y, x + width - 1, y + height - 1]])
        assert torch.allclose(boxes_to_xywh(corners), torch.tensor([box_entry["bbox"]]), atol=1e-3)
        left, top, right, bottom = paste_canvases(corners, 28)[0].tolist()
        x, y, width, height = coco_masks.toBbox(mask_entry["segmentation"])
        if width:
            assert left <= x and top <= y and x + width - 1 <= right and y + height - 1 <= bottom


def test_only_exactly_identical_entries_are_dropped():
    entry = {"image_id": 1, "category_id": 2, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5}
    mask = {"image_id": 1, "category_id": 2, "segmentation": {"size": [4, 4], "counts": "04"}, "score": 0.5}
    different = [
        entry,
        {**entry, "image_id": 2},
        {**entry, "category_id": 3},
        {**entry, "bbox": [1.0, 2.0, 3.0, 4.0000001]},
        {**entry, "score": 0.50001},
        mask,
        {**mask, "segmentation": {"size": [4, 4], "counts": "03"}},
    ]
    assert drop_duplicates(different) == different
    repeated = [entry, mask, copy.deepcopy(entry), {**entry, "score": 0.4}, copy.deepcopy(mask)]
    assert drop_duplicates(repeated) == [entry, mask, {**entry, "score": 0.4}]
    assert drop_duplicates([]) == []


def write_small_objects(path: Path, boxes_xywh: list[list[float]]) -> list[dict]:
    """Writes a COCO file with one image and these objects, and returns its annotations."""
    annotations = [
        {
            "id": index + 1,
            "image_id": 31,
            "category_id": int(CATEGORY_IDS[index % 3]),
            "bbox": [x, y, width, height],
            "segmentation": [[x, y, x + width, y, x + width, y + height, x, y + height]],
            "area": width * height,
            "iscrowd": 0,
        }
        for index, (x, y, width, height) in enumerate(boxes_xywh)
    ]
    images = [{"id": 31, "height": 300, "width": 300}]
    categories = [{"id": identifier, "name": f"kind {identifier}"} for identifier in CATEGORY_IDS.tolist()]
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))
    return annotations


def test_truth_sent_through_import_and_export_gives_box_ap_one(tmp_path):
    # Small boxes on a grid, where a pixel too many or too few costs more than the strictest IoU allows.
    boxes_xywh = [[12.25 * k, 11.5 * k, 6.0 + k % 5, 7.5 + k % 3] for k in range(20)]
    annotations = write_small_objects(tmp_path / "truth.json", boxes_xywh)
    corners = [[x, y, x + max(width - 1, 0), y + max(height - 1, 0)] for x, y, width, height in boxes_xywh]
    detections = Detections(
        boxes=torch.tensor([corners]),
        scores=torch.linspace(0.9, 0.1, 20)[None],
        labels=torch.tensor([[1 + CATEGORY_IDS.tolist().index(entry["category_id"]) for entry in annotations]]),
        valid=torch.ones((1, 20), dtype=torch.bool),
        mask_probs=torch.ones((1, 20, 28, 28)),
    )
    results = to_coco_results(detections, batch_of([[300, 300]], [[300, 300]], [31]), CATEGORY_IDS)
    scores = score(GroundTruth(tmp_path / "truth.json"), *results, engine="official")
    assert scores.box_ap == pytest.approx(1, abs=1e-12)
    assert scores.mask_stats[1] == pytest.approx(1, abs=1e-12)  # truncation costs small masks, but never half
