"""COCO captions (Chen et al. 2015, arXiv:1504.00325): the splits of 2014 and 2017, and Karpathy's.

Read from the official zips, which are not unpacked, from their unpacked folders, or downloaded:

    <source>/annotations/captions_train2014.json    or  <source>/annotations_trainval2014.zip
    <source>/train2014/*.jpg, val2014/*.jpg         or  <source>/train2014.zip, val2014.zip      (2017 likewise)

Karpathy's split (Karpathy and Fei-Fei 2015, arXiv:1412.2306) is derived from the ids of its validation and test images
in `karpathy_split.json`; its train split here is train2014 plus the rest of val2014 ("restval"). The years hold the
same images under the same ids, so it can be made from either.
"""

import importlib.resources
import json
import pathlib

import tensorflow_datasets as tfds

from capjax.data import DatasetName
from capjax.data.caption_files import CaptionedFile, parse_coco_json, read_bytes
from capjax.data.findings import Findings
from capjax.data.image_files import (
    ImageFile,
    ImageStore,
    base_name,
    find_images,
    one_of_each,
    open_images,
    open_zip,
    read_member,
)
from capjax.data.ingestion import PhotoBuilder
from capjax.data.listing import Listing, SourceOptions, build_listing
from capjax.errors import CapjaxError
from capjax.host.download import RemoteFile, fetch

# Sizes and hashes as TensorFlow Datasets publishes them in its checksum files.
_HOST = "http://images.cocodataset.org"
DOWNLOADS = {
    file.file_name: file
    for file in (
        RemoteFile(
            f"{_HOST}/annotations/annotations_trainval2014.zip",
            "sha256:031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
            252_872_794,
        ),
        RemoteFile(
            f"{_HOST}/annotations/annotations_trainval2017.zip",
            "sha256:113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
            252_907_541,
        ),
        RemoteFile(
            f"{_HOST}/zips/train2014.zip",
            "sha256:ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
            13_510_573_713,
        ),
        RemoteFile(
            f"{_HOST}/zips/val2014.zip",
            "sha256:fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
            6_645_013_297,
        ),
        RemoteFile(
            f"{_HOST}/zips/train2017.zip",
            "sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
            19_336_861_798,
        ),
        RemoteFile(
            f"{_HOST}/zips/val2017.zip",
            "sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
            815_585_330,
        ),
    )
}
NUM_IMAGES = {"train2014": 82_783, "val2014": 40_504, "train2017": 118_287, "val2017": 5_000}
# The published ones take less than 100 MB.
_MAX_ANNOTATION_BYTES = 500_000_000
NUM_KARPATHY = {"train": 113_287, "val": 5_000, "test": 5_000}


class Coco(PhotoBuilder):
    """COCO captions; the configurations are the split schemes."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="2014", description="train2014 and val2014"),
        tfds.core.BuilderConfig(name="2017", description="train2017 and val2017"),
        tfds.core.BuilderConfig(name="karpathy", description="113,287 train, 5,000 val and 5,000 test images"),
    ]
    DESCRIPTION = "Photos of everyday scenes, at least five captions each."
    HOMEPAGE = "https://cocodataset.org"
    CITATION = "Chen et al., Microsoft COCO Captions: Data Collection and Evaluation Server, arXiv:1504.00325, 2015"


def open_source(name: DatasetName, options: SourceOptions) -> Listing:
    """List the images and captions of a COCO variant.

    Args:
        name: coco/2014, coco/2017 or coco/karpathy.
        options: `source`, `download_dir` and `captions_only` are used.

    Raises:
        CapjaxError: if files are missing or broken, or a complete download does not give the published counts.
    """
    found = Findings()
    years = ("2014", "2017") if name.variant == "karpathy" else (str(name.variant),)
    if options.source is None:
        folder, years = options.download_dir, years[:1]
        _download(years[0], folder, options.captions_only)
    else:
        folder = options.source
    present = {year: _read_annotations(folder, year, found) for year in years}
    present = {year: parts for year, parts in present.items() if parts}
    # Of two years with annotations the one whose images are there.
    with_images = [year for year, parts in present.items() if all(_place(folder, part) for part in parts)]
    year = [*with_images, *present, *years][0]
    by_part = present.get(year, {})
    if not by_part:
        raise CapjaxError(
            f"expected annotations/captions_train{year}.json or annotations_trainval{year}.zip in {folder}, "
            "found neither; see --source"
        )
    captioned = {file.file_name for files in by_part.values() for file in files}
    images = None if options.captions_only else _index_images(folder, list(by_part), captioned)
    notes = [
        f"{part} is incomplete: {len(files):,} of {NUM_IMAGES[part]:,} images are listed."
        for part, files in by_part.items()
        if len(files) != NUM_IMAGES[part]
    ]
    notes += [f"{part} is missing." for part in (f"train{year}", f"val{year}") if part not in by_part]
    if name.variant == "karpathy":
        splits = split_karpathy([file for files in by_part.values() for file in files])
        counts = {split: len(files) for split, files in splits.items()}
        if not notes and counts != NUM_KARPATHY:
            raise CapjaxError(f"expected Karpathy's split to hold {NUM_KARPATHY} images, got {counts}")
    else:
        splits = {part.removesuffix(year): files for part, files in by_part.items()}
    return build_listing(splits, images, found, notes)


def split_karpathy(files: list[CaptionedFile]) -> dict[str, list[CaptionedFile]]:
    """Deal COCO images to Karpathy's splits by their ids; what is in neither val nor test is train."""
    text = importlib.resources.files("capjax.data").joinpath("karpathy_split.json").read_text()
    split_of = {image_id: split for split, ids in json.loads(text).items() for image_id in ids}
    splits: dict[str, list[CaptionedFile]] = {"train": [], "val": [], "test": []}
    for file in files:
        splits[split_of.get(file.image_id, "train")].append(file)
    return splits


def _download(year: str, folder: pathlib.Path, captions_only: bool) -> None:
    names = [f"annotations_trainval{year}.zip"]
    if not captions_only:
        names += [f"train{year}.zip", f"val{year}.zip"]
    for name in names:
        fetch(DOWNLOADS[name], folder)


def _read_annotations(folder: pathlib.Path, year: str, found: Findings) -> dict[str, list[CaptionedFile]]:
    """Read the caption files of a year, those that exist, by part: train2014, val2014."""
    archive_path = folder / f"annotations_trainval{year}.zip"
    by_part = {}
    for part in (f"train{year}", f"val{year}"):
        member = f"annotations/captions_{part}.json"
        if (folder / member).exists():
            data = read_bytes(folder / member)
        elif archive_path.exists():
            with open_zip(archive_path) as archive:
                if member not in archive.namelist():
                    raise CapjaxError(f"expected {member} in {archive_path}, it is not there; download it again")
                if (info := archive.getinfo(member)).file_size > _MAX_ANNOTATION_BYTES:
                    raise CapjaxError(
                        f"expected {member} in {archive_path} to take at most {_MAX_ANNOTATION_BYTES / 1e6:.0f} MB, "
                        f"got {info.file_size / 1e6:,.0f} MB; download it again"
                    )
                data = read_member(archive, info)
        else:
            continue
        by_part[part] = parse_coco_json(data, member.rsplit("/", 1)[-1], found)
    return by_part


def _place(folder: pathlib.Path, part: str) -> pathlib.Path | None:
    """Find the folder or zip with the images of a part."""
    places = [folder / part, folder / "images" / part, folder / f"{part}.zip"]
    return next((place for place in places if place.exists()), None)


def _index_images(folder: pathlib.Path, parts: list[str], captioned: set[str]) -> dict[str, ImageFile]:
    stores: list[ImageStore] = []
    for part in parts:
        place = _place(folder, part)
        if place is None:
            raise CapjaxError(
                f"expected the folder {part} or {part}.zip in {folder}, found neither; "
                "with --captions_only images are not needed"
            )
        stores.append(open_images(place))
    return one_of_each(find_images(stores, base_name), captioned)
