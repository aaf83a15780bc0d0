"""Real photographs and microscope images beside the checkout. Tests that need them are skipped without them."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"


@dataclass(frozen=True)
class RealSplit:
    """One annotation file and the folder of its images."""

    json_path: Path
    image_folder: Path

    @property
    def document(self) -> dict:
        """The annotation file's content. Shared by all tests: to be read, not written."""
        return _document(self.json_path)


@cache
def _document(json_path: Path) -> dict:
    return json.loads(json_path.read_text())


def _split(name: str, split: str, file: str = "") -> RealSplit:
    folder = DATA / name
    return RealSplit(folder / "annotations" / (file or f"instances_{split}.json"), folder / split)


NUCLEI_TRAIN, NUCLEI_VAL = _split("nuclei_small", "train2017"), _split("nuclei_small", "val2017")
COCO_TRAIN, COCO_VAL = _split("coco_real_small", "train2017"), _split("coco_real_small", "val2017")
NUCLEI_TRAIN_RUN_LENGTHS = _split("nuclei_small", "train2017", "rle_train.json")
NUCLEI_VAL_RUN_LENGTHS = _split("nuclei_small", "val2017", "rle_val.json")
SPLITS = {"nuclei train": NUCLEI_TRAIN, "nuclei val": NUCLEI_VAL, "COCO train": COCO_TRAIN, "COCO val": COCO_VAL}
BACKBONE = DATA / "thin_r50" / "thin_r50_fp16.safetensors"

needs_real_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")
