"""Captioned images by name: which sources exist, and how a prepared dataset is read.

A source is one file or package: `coco.py`, `flickr.py`, `folder.py`, `scenes/`. `capjax data prepare NAME` writes its
dataset in TFDS' array_record format, `load(NAME)` opens it. Reading captions needs neither TFDS nor the images.
"""

import operator
import os
import pathlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from capjax.data.caption_records import CaptionRecords, sidecar_path
from capjax.data.description import check_description
from capjax.data.fingerprint import ImagesDigest, read_fingerprint
from capjax.errors import CapjaxError
from capjax.host.disk import home_folder, local_path

CAPTIONS_ONLY = "captions"
"""Last part of the name of a dataset prepared without its images, as in `flickr8k/captions`."""


@dataclass(frozen=True)
class Source:
    """Where datasets come from.

    Attributes:
        module: the module that prepares it.
        builder: its builder class there.
        variants: what the name continues with, as in `coco/2014`; empty if it stands alone.
        named_by_user: the variant is a name that the user chooses.
        rendered: the builder makes its pictures itself, there are no files to read.
        judge: the module that can tell whether a caption is true of a picture: it has `verdict` and `note`.
    """

    module: str
    builder: str
    variants: tuple[str, ...] = ()
    named_by_user: bool = False
    rendered: bool = False
    judge: str = ""


SOURCES: dict[str, Source] = {
    "coco": Source("capjax.data.coco", "Coco", ("2014", "2017", "karpathy")),
    "flickr8k": Source("capjax.data.flickr", "Flickr8k"),
    "flickr30k": Source("capjax.data.flickr", "Flickr30k"),
    "folder": Source("capjax.data.folder", "Folder", named_by_user=True),
    "scenes": Source(
        "capjax.data.scenes.builder",
        "Scenes",
        rendered=True,
        judge="capjax.data.scenes.judge",
    ),
    "scenes_pairs": Source(
        "capjax.data.scenes.builder",
        "ScenesPairs",
        rendered=True,
        judge="capjax.data.scenes.judge",
    ),
}


@dataclass(frozen=True)
class DatasetName:
    """A dataset name taken apart: `source[/variant][/captions]`."""

    source: str
    variant: str | None
    captions_only: bool

    def __str__(self) -> str:
        return "/".join(filter(None, (self.source, self.variant, CAPTIONS_ONLY if self.captions_only else None)))


def parse_name(name: str) -> DatasetName:
    """Take a dataset name apart.

    Raises:
        CapjaxError: if there is no such source or variant.
    """
    source_name, *rest = name.strip("/").split("/")
    if source_name not in SOURCES:
        raise CapjaxError(f"expected a dataset out of {', '.join(all_names())}, got {name!r}")
    source = SOURCES[source_name]
    variant = rest.pop(0) if rest and (source.variants or source.named_by_user) else None
    if source.named_by_user:
        if not variant or not re.fullmatch(r"\w[\w.-]*", variant):
            raise CapjaxError(f"expected {source_name}/NAME, a name of letters, digits, -, _ and ., got {name!r}")
    elif variant not in (source.variants or (None,)):
        raise CapjaxError(f"expected a dataset out of {', '.join(all_names(source_name))}, got {name!r}")
    if rest not in ([], [CAPTIONS_ONLY]) or (rest and source.rendered):
        raise CapjaxError(f"expected a dataset out of {', '.join(all_names(source_name))}, got {name!r}")
    return DatasetName(source_name, variant, bool(rest))


def all_names(source_name: str | None = None) -> list[str]:
    """List the dataset names there can be, of one source or of all."""
    names = []
    for name, source in SOURCES.items():
        if source_name in (None, name):
            variants = ("NAME",) if source.named_by_user else source.variants
            names += [f"{name}/{variant}" for variant in variants] or [name]
    return names


def default_data_dir() -> pathlib.Path:
    """Name the folder of prepared datasets: $TFDS_DATA_DIR, or ~/tensorflow_datasets.

    Raises:
        CapjaxError: if $TFDS_DATA_DIR is a bucket, or there is neither that nor a home directory.
    """
    named = os.environ.get("TFDS_DATA_DIR")
    return local_path(named) if named else home_folder("TFDS_DATA_DIR") / "tensorflow_datasets"


def target_directory(name: DatasetName, data_dir: str | os.PathLike[str] | None, version: str) -> pathlib.Path:
    """Name the folder that a version of a dataset is prepared in."""
    return (pathlib.Path(data_dir) if data_dir else default_data_dir()) / str(name) / version


def dataset_directories(name: DatasetName, data_dir: str | os.PathLike[str] | None) -> list[pathlib.Path]:
    """List the prepared versions of a dataset, oldest first."""
    root = (pathlib.Path(data_dir) if data_dir else default_data_dir()) / str(name)
    folders = {path.parent for path in root.glob("*/captions-*.jsonl")}
    versions = [folder for folder in folders if re.fullmatch(r"\d+\.\d+\.\d+", folder.name)]
    return sorted(versions, key=lambda path: tuple(map(int, path.name.split("."))))


def is_prepared(name: str, data_dir: str | os.PathLike[str] | None = None) -> bool:
    """Tell whether a dataset lies in a folder of prepared datasets; arguments of `load`."""
    return bool(dataset_directories(parse_name(name), data_dir))


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> "CaptionDataset":
    """Open a prepared dataset.

    Args:
        name: `coco/karpathy`, `scenes`, `folder/NAME`, …; `…/captions` if prepared without images.
        data_dir: folder of prepared datasets; default $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
        CapjaxError: if the name is unknown or the dataset is not prepared.
    """
    parsed = parse_name(name)
    directories = dataset_directories(parsed, data_dir)
    if not directories:
        folder = pathlib.Path(data_dir) if data_dir else default_data_dir()
        command = f"capjax data prepare {parsed}" + (f" --data_dir={data_dir}" if data_dir else "")
        others = [
            other
            for other in (parsed, DatasetName(parsed.source, parsed.variant, not parsed.captions_only))
            if dataset_directories(other, data_dir)
        ]
        hint = f", though {others[0]} is" if others else ""
        raise CapjaxError(f"dataset {parsed} is not prepared in {folder}{hint}; run: {command}")
    return CaptionDataset(str(parsed), directories[-1])


@dataclass(frozen=True)
class CaptionDataset:
    """A prepared dataset.

    Attributes:
        name: as in `load`.
        directory: where it lies.
    """

    name: str
    directory: pathlib.Path

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits: train first, then val and test as far as they exist."""
        found = {path.stem.removeprefix("captions-") for path in self.directory.glob("captions-*.jsonl")}
        order = ("train", "val", "test")
        return tuple(sorted(found, key=lambda split: (order.index(split) if split in order else len(order), split)))

    @property
    def has_images(self) -> bool:
        """Whether the images were prepared, not the captions alone."""
        return (self.directory / "dataset_info.json").exists()

    @property
    def version(self) -> str:
        """Version of the dataset, such as 1.0.0: the name of its directory."""
        return self.directory.name

    def images_sha256(self, split: str) -> str:
        """Give what identifies the images of a split: a SHA-256 over their ids and stored bytes, in record order.

        A dataset prepared before this was kept has its images read for that; one without images gives "".

        Raises:
            CapjaxError: if there is no such split, or the dataset is damaged.
        """
        known = self.known_images_sha256(split)
        if known or not self.has_images:
            return known
        digest = ImagesDigest()
        for record, image in zip(self.records(split), self.images(split), strict=True):
            digest.add(record.image_id, image)
        return digest.hexdigest()

    def known_images_sha256(self, split: str) -> str:
        """Give `images_sha256` if it was kept when the dataset was prepared, else "".

        Raises:
            CapjaxError: if there is no such split, or what was kept is damaged.
        """
        self._sidecar(split)
        if not self.has_images:
            return ""
        try:
            return read_fingerprint(self.directory, split) or ""
        except CapjaxError as error:
            raise CapjaxError(f"{error}; prepare {self.name} again") from None

    def records(self, split: str) -> CaptionRecords:
        """Open the captions of a split, in record order, without the images.

        Raises:
            CapjaxError: if there is no such split; later, if what is read is damaged.
        """
        return CaptionRecords(self._sidecar(split), f"prepare {self.name} again")

    def images(self, split: str) -> "EncodedImages":
        """Open the images of a split for random access, in record order.

        Raises:
            CapjaxError: if there is no such split, the dataset was prepared without images, or it has more or fewer of
                them than captioned records.
        """
        records = self.records(split)
        if not self.has_images:
            name = self.name.removesuffix(f"/{CAPTIONS_ONLY}")
            raise CapjaxError(
                f"dataset {self.name} was prepared without images; import features for it, "
                f"or prepare {name} without --captions_only"
            )
        images = EncodedImages(self.directory, split)
        if len(images) != len(records):
            raise CapjaxError(
                f"expected as many images as captioned records in split {split} of {self.directory}, "
                f"got {len(images)} and {len(records)}; prepare {self.name} again"
            )
        return images

    def _sidecar(self, split: str) -> pathlib.Path:
        if split not in self.splits:
            raise CapjaxError(f"expected a split of {self.name} out of {', '.join(self.splits)}, got {split!r}")
        return sidecar_path(self.directory, split)


class EncodedImages(Sequence[bytes]):
    """Random access to the encoded images of a split; picklable, each process opens the files itself."""

    def __init__(self, directory: pathlib.Path, split: str):
        """Open the shards of `split` in the dataset directory.

        Raises:
            CapjaxError: if they cannot be read.
        """
        self._location = (directory, split)
        self._open()

    def _open(self) -> None:
        # TFDS takes half a second to import; whoever reads captions alone goes without.
        import tensorflow_datasets as tfds

        directory, split = self._location
        check_description(directory)
        try:
            builder = tfds.builder_from_directory(os.fspath(directory))
            self._source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        except Exception as error:  # TFDS, protobuf and array_record raise errors of every type on damaged files
            raise CapjaxError(f"expected readable shards in {directory}, got: {error}; prepare it again") from error

    def __getstate__(self) -> tuple[pathlib.Path, str]:
        return self._location

    def __setstate__(self, state: tuple[pathlib.Path, str]) -> None:
        self._location = state
        self._open()

    @property
    def place(self) -> str:
        """Where they lie, for messages."""
        directory, split = self._location
        return f"the images of split {split} in {directory}"

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: Any) -> bytes:
        # Not slices: a slice of photos would fill the memory unnoticed.
        i = range(len(self))[operator.index(i)]
        try:
            image = self._source[i]["image"]
            if not isinstance(image, bytes):
                raise TypeError(f"it is {type(image).__name__}")
            return image
        except Exception as error:  # as above
            directory, split = self._location
            raise CapjaxError(
                f"expected image {i} of split {split} in {directory}, its shard is damaged ({error}); prepare it again"
            ) from error
