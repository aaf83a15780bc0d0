"""A synthetic data set of two splits and a backbone, packed and published as COCO 2017 is."""

import hashlib
import io
import json
import pickle
import zipfile

import numpy as np
from PIL import Image

from maskperf.download.release import Archive, Release, RemoteFile

NUM_IMAGES = 2
HEIGHT, WIDTH = 40, 60
BACKBONE = ["model.stage_blocks=1,1,1,1", "model.stem_channels=4", "model.stage_channels=8,16,32,64"]


def _array(*shape):
    return np.random.default_rng(len(shape)).uniform(0.5, 1.5, shape).astype(np.float32)


def backbone_arrays():
    """Return what Detectron's file would hold for the backbone of `BACKBONE`."""
    blobs = {"conv1_w": _array(4, 3, 7, 7), "res_conv1_bn_s": _array(4), "res_conv1_bn_b": _array(4)}
    width_in = 4
    for stage, width_out in enumerate((8, 16, 32, 64), start=2):
        inner = width_out // 4
        shapes = {
            "1": (width_out, width_in, 1, 1),
            "2a": (inner, width_in, 1, 1),
            "2b": (inner, inner, 3, 3),
            "2c": (width_out, inner, 1, 1),
        }
        for branch, shape in shapes.items():
            name = f"res{stage}_0_branch{branch}"
            blobs |= {f"{name}_w": _array(*shape), f"{name}_bn_s": _array(shape[0]), f"{name}_bn_b": _array(shape[0])}
        width_in = width_out
    return blobs


def backbone_pickle():
    return pickle.dumps({"blobs": backbone_arrays()}, protocol=2)


def zipped(pairs):
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name, content in pairs.items():
            archive.writestr(
                zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED
            )  # without the time: same bytes always
    return memory.getvalue()


def _annotation(number, image_id, x):
    polygon = [x, 5.0, x + 10.0, 5.0, x, 15.0]
    box = {"bbox": [x, 5.0, 10.0, 10.0], "area": 50.0, "iscrowd": 0, "segmentation": [polygon]}
    return {"id": number, "image_id": image_id, "category_id": 7, **box}


def _document():
    images = [{"id": number, "file_name": f"{number:012d}.jpg", "height": HEIGHT, "width": WIDTH} for number in (4, 9)]
    annotations = [_annotation(1, 4, 5.0), _annotation(2, 9, 5.0), _annotation(3, 9, 30.0)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "dog"}]}


def _jpeg(seed):
    memory = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(memory, "JPEG", quality=90)
    return memory.getvalue()


def small_files():
    """Return the bytes of the four files by name."""
    document = _document()
    images = {row["file_name"]: _jpeg(row["id"]) for row in document["images"]}
    text = json.dumps(document)
    names = ("captions_val2017.json", "instances_train2017.json", "instances_val2017.json")
    files = {"annotations_trainval2017.zip": zipped({f"annotations/{name}": text for name in names})}
    for split in ("val2017", "train2017"):
        pairs = {f"{split}/{name}": content for name, content in images.items()}
        files[f"{split}.zip"] = zipped({f"{split}/": b"", **pairs})
    return {**files, "R-50.pkl": backbone_pickle()}


def check_small_counts(train, val):
    counts = (len(train.image_ids), len(val.image_ids), len(train.labels))
    return [] if counts == (2, 2, 3) else [f"{counts} images, images and objects are not those of the small data set."]


def small_release(files, url):
    """Return the release of files as `small_files` makes them, at a server."""

    def remote(name):
        md5 = hashlib.md5(files[name]).hexdigest()
        return RemoteFile(name=name, url=f"{url}/{name}", md5=md5, about_bytes=len(files[name]))

    def archive(folder, name, suffix, *required):
        num_files = None if required else NUM_IMAGES
        return Archive(
            file=remote(name),
            folder=folder,
            suffix=suffix,
            about_unpacked_bytes=10_000,
            num_files=num_files,
            required_names=required,
        )

    required = ("instances_train2017.json", "instances_val2017.json")
    archives = (
        archive("annotations", "annotations_trainval2017.zip", ".json", *required),
        archive("val2017", "val2017.zip", ".jpg"),
        archive("train2017", "train2017.zip", ".jpg"),
    )
    return Release(archives=archives, weights=remote("R-50.pkl"), check_counts=check_small_counts)
