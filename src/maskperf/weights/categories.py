"""The categories of weights: those of COCO where the number of classes is COCO's, or those that a file names."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from maskperf.config import RunConfig
from maskperf.model.weight_problems import damage_named, file_error
from maskperf.overrides import to_json_text

UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)  # of 1 to 90; torchvision keeps their classes
NAMES_TEXT = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
COCO_NAMES = tuple(NAMES_TEXT.split(","))
COCO_IDS = tuple(identity for identity in range(1, 91) if identity not in UNUSED_IDS)
COCO = dict(zip(COCO_IDS, COCO_NAMES, strict=True))


def coco_categories(num_classes: int) -> dict[int, str]:
    """Return names by id, in the order of the labels, of a model of COCO with so many classes; else nothing."""
    if num_classes == 1 + len(COCO):
        return dict(COCO)
    if num_classes == 91:
        return {identity: COCO.get(identity, f"unused {identity}") for identity in range(1, 91)}
    return {}


def categories_named(names: Sequence[str]) -> dict[int, str]:
    """Return names by id: COCO's ids for COCO's names, else counted from 1."""
    if sorted(names) == sorted(COCO_NAMES):
        ids = {name: identity for identity, name in COCO.items()}
        return {ids[name]: name for name in names}
    return dict(enumerate(names, start=1))


def read_names(path: Path, num_classes: int) -> dict[int, str]:
    """Return names by id from annotations with a list of categories, or from a text with one name a line.

    Errors: DataError for a file that cannot be read, and for another number of names than the weights have.
    """
    with damage_named(path, "is neither annotations nor a text with one name a line"):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            entries = json.loads(text)["categories"]
            found = {int(entry["id"]): str(entry["name"]) for entry in sorted(entries, key=lambda entry: entry["id"])}
        else:
            found = categories_named([line.strip() for line in text.splitlines() if line.strip()])
    if len(found) != num_classes - 1:
        problem = f"the weights have {num_classes - 1} classes, and the background."
        fix = "Give one name for each class, in the order of the labels."
        raise file_error(path, "names", f"{len(found)} names", problem, fix)
    return found


def model_metadata(config: RunConfig, categories: Mapping[int, str]) -> dict[str, object]:
    """Return what is saved beside weights: the configuration, and categories by id in the order of the labels."""
    return {
        "recipe": config.recipe,
        "category_ids": list(categories),
        "category_names": list(categories.values()),
        "config": to_json_text(config),
    }
