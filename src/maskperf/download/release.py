"""The files of COCO 2017 and of the pretrained backbone: where they are published, and how each one is recognised."""

from collections.abc import Callable
from dataclasses import dataclass

from maskperf.data.coco.index import CocoIndex
from maskperf.data.coco.verify import check_benchmark_counts
from maskperf.download.download import RemoteFile
from maskperf.download.unpack import Contents


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A zip archive and what is in it."""

    file: RemoteFile
    contents: Contents
    has_images: bool


@dataclass(frozen=True, kw_only=True)
class Release:
    """All files of a data set with splits train2017 and val2017, and the pretrained backbone."""

    archives: tuple[Archive, ...]
    weights: RemoteFile
    check_counts: Callable[[CocoIndex, CocoIndex], list[str]] = check_benchmark_counts


def _images(folder: str, num_files: int, *, about_bytes: int, max_bytes: int) -> Contents:
    return Contents(
        folder=folder,
        suffix=".jpg",
        min_files=num_files,
        max_files=num_files,
        about_bytes=about_bytes,
        max_bytes=max_bytes,
    )


COCO_2017 = Release(
    archives=(
        Archive(
            file=RemoteFile(
                name="annotations_trainval2017.zip",
                url="http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
                md5="f4bbac642086de4f52a3fdda2de5fa2c",
                about_bytes=252_907_541,
            ),
            contents=Contents(
                folder="annotations",
                suffix=".json",
                min_files=2,
                max_files=16,
                about_bytes=850_000_000,
                max_bytes=2_000_000_000,
                required_names=("instances_train2017.json", "instances_val2017.json"),
            ),
            has_images=False,
        ),
        Archive(
            file=RemoteFile(
                name="val2017.zip",
                url="http://images.cocodataset.org/zips/val2017.zip",
                md5="442b8da7639aecaf257c1dceb8ba8c80",
                about_bytes=815_585_330,
            ),
            contents=_images("val2017", 5_000, about_bytes=830_000_000, max_bytes=1_200_000_000),
            has_images=True,
        ),
        Archive(
            file=RemoteFile(
                name="train2017.zip",
                url="http://images.cocodataset.org/zips/train2017.zip",
                md5="cced6f7f71b7629ddf16f17bbcfab6b2",
                about_bytes=19_336_861_798,
            ),
            contents=_images("train2017", 118_287, about_bytes=19_700_000_000, max_bytes=27_000_000_000),
            has_images=True,
        ),
    ),
    weights=RemoteFile(
        name="R-50.pkl",
        url="https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/MSRA/R-50.pkl",
        md5="b19105fdd7baafb40480251377de18f2",
        about_bytes=102_500_000,
    ),
)
