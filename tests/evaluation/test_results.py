import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_rectangles import annotation, coco_document
from hotcoco import mask as coco_masks  # pycocotools' own decode warns under numpy 2
from pycocotools import mask as official_masks
from reference_operators import paste_reference

from maskperf.evaluation.results import (
    ResultTable,
    box_and_mask_results,
    boxes_to_xywh,
    joined,
    rescale_boxes,
    result_table,
    run_length_codes,
    without_repeats,
)
from maskperf.evaluation.scores import GroundTruth, score
from maskperf.ops.paste import edges_of_masks, expand_boxes
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


SIZES_HW, ORIGINAL_SIZES_HW = [[48, 64], [64, 96]], [[96, 32], [64, 96]]
BATCH = batch_of(SIZES_HW, ORIGINAL_SIZES_HW, [700001, 5])


def test_boxes_are_rescaled_per_axis_and_exported_with_plus_one():
    boxes, _ = box_and_mask_results(result_table(two_image_detections(), BATCH, CATEGORY_IDS))
    # Image 700001: x halves, y doubles. (2, 4, 31, 43) -> (1, 8, 15.5, 86), width 15.5 - 1 + 1, height 86 - 8 + 1.
    assert [(entry["image_id"], entry["category_id"], entry["bbox"]) for entry in boxes] == [
        (700001, 90, [1.0, 8.0, 15.5, 79.0]),
        (700001, 1, [0.0, 0.0, 5.5, 19.0]),
        (5, 2, [10.25, 3.5, 40.75, 37.5]),
    ]
    assert [entry["score"] for entry in boxes] == torch.tensor([0.9, 0.3, 0.6]).tolist()


def test_images_without_detections_have_no_results_and_detections_without_masks_are_refused():
    detections = two_image_detections()
    assert len(result_table(replace(detections, valid=torch.zeros_like(detections.valid)), BATCH, CATEGORY_IDS)) == 0
    with pytest.raises(AssertionError, match="mask head"):
        result_table(replace(detections, mask_probs=None), BATCH, CATEGORY_IDS)


def encoded_by_pycocotools(masks: torch.Tensor) -> list[dict]:
    codes = official_masks.encode(np.asfortranarray(masks.permute(1, 2, 0).numpy().view(np.uint8)))
    return [{"size": list(code["size"]), "counts": code["counts"].decode("ascii")} for code in codes]


def random_masks(count: int, size_hw: tuple[int, int], seed: int) -> torch.Tensor:
    """Return masks with few and with many runs, short and long ones, one of them empty and one full."""
    generator = torch.Generator().manual_seed(seed)
    masks = (
        torch.rand((count, size_hw[1], size_hw[0]), generator=generator) < torch.linspace(0, 1, count)[:, None, None]
    )
    masks[::3] = masks[::3].flatten(1).sort(dim=1).values.view(-1, size_hw[1], size_hw[0])
    masks[1::3] = masks[1::3].flatten(1).repeat_interleave(97, dim=1)[:, : masks[0].numel()].view_as(masks[1::3])
    masks[0], masks[-1] = False, True
    return masks.transpose(1, 2)


@pytest.mark.parametrize("size_hw", [(13, 7), (1, 1), (1, 300), (90, 1), (211, 320), (1500, 700)])
def test_run_length_codes_are_those_of_pycocotools(size_hw):
    for seed in range(2 if size_hw[0] < 1000 else 1):
        masks = random_masks(13, size_hw, seed)
        texts = run_length_codes(*edges_of_masks(masks), len(masks), size_hw)
        codes = [{"size": list(size_hw), "counts": text} for text in texts]
        assert codes == encoded_by_pycocotools(masks)
        assert np.array_equal([coco_masks.decode(code).astype(bool) for code in codes], masks.numpy())


def test_results_of_many_detections_are_those_of_drawn_and_encoded_masks():
    generator = torch.Generator().manual_seed(4)
    count, sizes_hw = 120, [(120, 200), (90, 64)]
    corners = torch.rand((2, count, 2), generator=generator) * 60
    boxes = torch.cat([corners, corners + torch.rand((2, count, 2), generator=generator) * 40], dim=2)
    noise = torch.randn((2, count, 7, 7), generator=generator) * 5
    detections = Detections(
        boxes=boxes,
        scores=torch.rand((2, count), generator=generator).sort(dim=1, descending=True).values,
        labels=torch.randint(1, 4, (2, count), generator=generator),
        valid=torch.arange(count).expand(2, -1) < torch.tensor([[count], [70]]),
        mask_probs=torch.nn.functional.interpolate(noise, size=(28, 28), mode="bicubic").sigmoid(),
    )
    found = result_table(detections, batch_of([[64, 96], [60, 90]], sizes_hw, [8, 3]), CATEGORY_IDS)
    wanted = []
    for image, kept in enumerate((count, 70)):
        from_hw = ((64, 96), (60, 90))[image]
        image_boxes = rescale_boxes(detections.boxes[image, :kept], from_hw, sizes_hw[image])
        wanted += encoded_by_pycocotools(
            paste_reference(detections.mask_probs[image, :kept], image_boxes, sizes_hw[image])
        )
    assert found.masks() == wanted
    assert found.mask_areas.tolist() == official_masks.area(wanted).tolist()


def test_the_reference_s_boxes_are_float32_and_its_masks_stay_inside_the_pasted_boxes():
    golden = json.loads((GOLDEN / "results.json").read_text())
    for box_entry, mask_entry in zip(golden["bbox"], golden["segm"], strict=True):
        x, y, width, height = box_entry["bbox"]
        corners = torch.tensor([[x, y, x + width - 1, y + height - 1]])
        assert torch.allclose(boxes_to_xywh(corners), torch.tensor([box_entry["bbox"]]), atol=1e-3)
        left, top, right, bottom = expand_boxes(corners, 28)[0].tolist()
        x, y, width, height = coco_masks.toBbox(mask_entry["segmentation"])
        if width:
            assert left <= x and top <= y and x + width - 1 <= right and y + height - 1 <= bottom


def table_of(*rows: tuple) -> ResultTable:
    """Return a table of rows (image id, category id, score, box, counts of the mask, its area)."""
    image_ids, category_ids, scores, boxes, counts, areas = zip(*rows, strict=True) if rows else [()] * 6
    return ResultTable(
        image_ids=np.array(image_ids, dtype=np.int64),
        category_ids=np.array(category_ids, dtype=np.int64),
        scores=np.array(scores, dtype=np.float64),
        boxes_xywh=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        mask_areas=np.array(areas, dtype=np.int64),
        sizes_hw=np.full((len(rows), 2), 4),
        codes=np.array(counts, object),
    )


def rows_of(table: ResultTable) -> list:
    return [column.tolist() for column in vars(table).values()]


BOX = (1.0, 2.0, 3.0, 4.0)
ROW = (1, 2, 0.5, BOX, "04", 2)
OTHER = (6, 1, 0.25, (0.0, 0.5, 1.0, 1.0), "d0", 0)


def test_a_table_is_read_as_entries():
    first = {"image_id": 1, "category_id": 2, "score": 0.5}
    second = {"image_id": 6, "category_id": 1, "score": 0.25}
    boxes, masks = box_and_mask_results(table_of(ROW, OTHER))
    assert list(boxes) == [{**first, "bbox": list(BOX)}, {**second, "bbox": [0.0, 0.5, 1.0, 1.0]}]
    codes = [{"size": [4, 4], "counts": text} for text in ("04", "d0")]
    assert list(masks) == [{**first, "segmentation": codes[0]}, {**second, "segmentation": codes[1]}]
    for results in (boxes, masks):
        assert len(results) == 2
        assert [results[0], results[1], results[-1]] == [*results, list(results)[1]]
        with pytest.raises(IndexError):
            results[2]


def test_only_exactly_equal_rows_are_dropped():
    different = [
        ROW,
        (1, 3, 0.5, BOX, "04", 2),
        (1, 2, 0.50001, BOX, "04", 2),
        (1, 2, 0.5, (1.0, 2.0, 3.0, 4.0000001), "04", 2),
        (1, 2, 0.5, BOX, "03", 1),
        (2, 2, 0.5, BOX, "04", 2),
    ]
    for rows in (different, [*different, ROW, different[3], ROW], []):
        assert rows_of(without_repeats(table_of(*rows))) == rows_of(table_of(*different[: len(rows)]))


def test_rows_come_by_image_and_keep_their_order_in_it():
    rows = [(image_id, 1, score, BOX, "04", 2) for image_id, score in ((9, 0.5), (2, 0.1), (9, 0.75), (2, 0.9), (5, 1))]
    found = without_repeats(joined([table_of(*rows[:2]), table_of(), table_of(*rows[2:])]))
    assert found.image_ids.tolist() == [2, 2, 5, 9, 9]
    assert found.scores.tolist() == [0.1, 0.9, 1.0, 0.5, 0.75]
    assert len(joined([])) == 0


def test_truth_sent_through_import_and_export_gives_box_ap_one(tmp_path):
    # Small boxes on a grid, where a pixel too many or too few costs more than the strictest IoU allows.
    boxes_xywh = [[12.25 * k, 11.5 * k, 6.0 + k % 5, 7.5 + k % 3] for k in range(20)]
    labels = [1 + k % 3 for k in range(20)]
    annotations = [
        annotation(k, 31, int(CATEGORY_IDS[label - 1]), box)
        for k, (label, box) in enumerate(zip(labels, boxes_xywh, strict=True), start=1)
    ]
    names = {identity: f"kind {identity}" for identity in CATEGORY_IDS.tolist()}
    (tmp_path / "truth.json").write_text(json.dumps(coco_document(annotations, names, (300, 300))))
    corners = [[x, y, x + max(width - 1, 0), y + max(height - 1, 0)] for x, y, width, height in boxes_xywh]
    detections = Detections(
        boxes=torch.tensor([corners]),
        scores=torch.linspace(0.9, 0.1, 20)[None],
        labels=torch.tensor([labels]),
        valid=torch.ones((1, 20), dtype=torch.bool),
        mask_probs=torch.ones((1, 20, 28, 28)),
    )
    table = result_table(detections, batch_of([[300, 300]], [[300, 300]], [31]), CATEGORY_IDS)
    scores = score(GroundTruth(tmp_path / "truth.json"), *box_and_mask_results(table), engine="official")
    assert scores.box_ap == pytest.approx(1, abs=1e-12)
    assert scores.mask_stats[1] == pytest.approx(1, abs=1e-12)  # truncation costs small masks, but never half
