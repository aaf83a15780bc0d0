"""The files of COCO 2017 and of the pretrained backbone: addresses, MD5 digests, sizes and contents."""

from collections.abc import Callable
from dataclasses import dataclass

from maskperf.config import BACKBONE_MD5, NUM_TRAIN_FILES
from maskperf.data.coco.index import CocoIndex
from maskperf.data.coco.verify import check_benchmark_counts

IMAGE_SUFFIX = ".jpg"


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A published file; `about_bytes` serves the check of free space and exposes a wrong file early."""

    name: str
    url: str
    md5: str
    about_bytes: int


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A zip archive that holds one folder of files with one suffix."""

    file: RemoteFile
    folder: str
    suffix: str
    about_unpacked_bytes: int
    num_files: int | None = None  # None: any number
    required_names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Release:
    """All files of a data set with splits train2017 and val2017, and the pretrained backbone."""

    archives: tuple[Archive, ...]
    weights: RemoteFile
    check_counts: Callable[[CocoIndex, CocoIndex], list[str]] = check_benchmark_counts


def _coco_file(path: str, md5: str, num_bytes: int) -> RemoteFile:
    url = f"http://images.cocodataset.org/{path}"
    return RemoteFile(name=path.rpartition("/")[2], url=url, md5=md5, about_bytes=num_bytes)


COCO_2017 = Release(
    archives=(
        Archive(
            file=_coco_file(
                "annotations/annotations_trainval2017.zip", "f4bbac642086de4f52a3fdda2de5fa2c", 252_907_541
            ),
            folder="annotations",
            suffix=".json",
            about_unpacked_bytes=850_000_000,
            required_names=("instances_train2017.json", "instances_val2017.json"),
        ),
        Archive(
            file=_coco_file("zips/val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80", 815_585_330),
            folder="val2017",
            suffix=IMAGE_SUFFIX,
            about_unpacked_bytes=830_000_000,
            num_files=5_000,
        ),
        Archive(
            file=_coco_file("zips/train2017.zip", "cced6f7f71b7629ddf16f17bbcfab6b2", 19_336_861_798),
            folder="train2017",
            suffix=IMAGE_SUFFIX,
            about_unpacked_bytes=19_700_000_000,
            num_files=NUM_TRAIN_FILES,
        ),
    ),
    weights=RemoteFile(
        name="R-50.pkl",
        url="https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/MSRA/R-50.pkl",
        md5=BACKBONE_MD5,
        about_bytes=102_500_000,
    ),
)
