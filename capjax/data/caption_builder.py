"""The TFDS builder that every source shares: record features, sidecar captions, a preparation that is atomic and quiet.

A source subclasses `CaptionBuilder` and says what its splits hold:

    class Scenes(CaptionBuilder):
        VERSION = tfds.core.Version("1.0.0")
        DESCRIPTION = "Rendered pictures of coloured shapes."

        def caption_splits(self):
            return {"train": SplitExamples(6000, self._render("train")), "val": SplitExamples(500, self._render("val"))}

        def _render(self, split):
            for i in range(...):
                yield CaptionRecord(image_id=i, file_name=f"{split}-{i:05d}.png", captions=(...)), png_bytes

and `prepare(lambda folder: Scenes(data_dir=folder), target)` writes it to the folder `target`, which
`capjax.data.target_directory` names; `capjax data prepare scenes` does that for every source.

Records are stored in the order in which they are yielded. Beside the array_record shards lies one
`captions-<split>.jsonl` per split with the same records in the same order, so that captions are read without touching
the images, and `fingerprint.json`, which changes when an image does.
"""

import abc
import contextlib
import functools
import itertools
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from capjax.data.caption_records import record_line, sidecar_path
from capjax.data.fingerprint import ImagesDigest, write_fingerprint
from capjax.errors import CapjaxError
from capjax.host.disk import clear_disk_errors, exclusive
from capjax.types import CaptionRecord

# TFDS holds the examples of a shard in memory while it writes them.
_SHARD_BYTES = 128_000_000

KeyedExample = tuple[int, dict[str, Any]]


class SplitExamples(NamedTuple):
    """The examples of one split.

    Attributes:
        max_examples: how many there are at most.
        examples: pairs of a record and its encoded RGB image, JPEG or PNG.
        total_bytes: about what the images take together; larger splits are written in several shards.
    """

    max_examples: int
    examples: Iterable[tuple[CaptionRecord, bytes]]
    total_bytes: int = 0


class CaptionBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Base of all sources; see the module docstring for how to write one.

    A builder by shards, because the usual one by generators shuffles: with more than a gigabyte it needs TensorFlow
    for that, and twice the room on disk.
    """

    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = ""
    HOMEPAGE: str | None = None
    CITATION: str | None = None
    # TFDS would look for a checksum file beside this one, by way of a package that it does not install.
    code_path = None

    def __init_subclass__(cls, **kwargs: Any):
        # TFDS' own registry has a builder called coco as well; ours are found through `capjax.data.SOURCES`.
        super().__init_subclass__(skip_registration=True, **kwargs)

    def __init__(self, **kwargs: Any):
        """Take the arguments of a TFDS builder; the file format is array_record."""
        super().__init__(file_format="array_record", **kwargs)
        self._sha256_of_splits: dict[str, str] = {}

    @abc.abstractmethod
    def caption_splits(self) -> dict[str, SplitExamples]:
        """Give the examples of each split, by its name: train, val or test."""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "image_id": np.int64,
                    "file_name": tfds.features.Text(),
                    "captions": tfds.features.Sequence(tfds.features.Text()),
                }
            ),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Callable[[], Iterator[KeyedExample]]]]:
        del dl_manager
        return {split: self._shards(split, examples) for split, examples in self.caption_splits().items()}

    def _shards(self, split: str, examples: SplitExamples) -> list[Callable[[], Iterator[KeyedExample]]]:
        """Deal the examples of a split to shards, in order; the last one takes whatever is left."""
        num_shards = max(1, min(-(-examples.total_bytes // _SHARD_BYTES), examples.max_examples))
        quota = -(-examples.max_examples // num_shards)
        rows = self._keyed_examples(split, examples)
        return [functools.partial(itertools.islice, rows, quota)] * (num_shards - 1) + [lambda: rows]

    def _keyed_examples(self, split: str, examples: SplitExamples) -> Iterator[KeyedExample]:
        count, digest, directory = 0, ImagesDigest(), pathlib.Path(self.data_dir)
        with open(sidecar_path(directory, split), "w", encoding="utf-8") as sidecar:
            for record, image in examples.examples:
                sidecar.write(record_line(record))
                digest.add(record.image_id, image)
                yield count, {"image": image, **vars(record), "captions": list(record.captions)}
                count += 1
        self._sha256_of_splits[split] = digest.hexdigest()
        write_fingerprint(directory, self._sha256_of_splits)
        if not count:
            raise CapjaxError(
                f"expected images with captions in split {split!r} of {self.name}, there are none to use; "
                "`capjax data validate` with the same options tells why"
            )


def write_captions(directory: pathlib.Path, splits: dict[str, list[CaptionRecord]]) -> None:
    """Write the sidecars of a dataset without images."""
    for split, records in splits.items():
        with open(sidecar_path(directory, split), "w", encoding="utf-8") as file:
            file.writelines(map(record_line, records))


class Workspace:
    """The hidden folder beside a dataset in which it is prepared; survives a kill, goes when the dataset is whole.

    Attributes:
        path: the folder; journals may be kept in it.
        target: where the dataset will be.
    """

    def __init__(self, target: pathlib.Path):
        """Make the folder for the dataset directory `target`, and take its lock.

        Raises:
            CapjaxError: if another process prepares the same dataset.
        """
        self.target = target
        self.path = target.parent / f".preparing-{target.name}"
        self._old = self.path / "old"
        self._lock = contextlib.ExitStack()
        refusal = f"expected to prepare {target} alone, another process does; wait for it"
        self._lock.enter_context(exclusive(self.path / "lock", refusal))
        # A run that was killed between the two moves of `publish` left no dataset, but the older one here.
        if self._old.exists() and not target.exists():
            os.replace(self._old, target)
        shutil.rmtree(self._old, ignore_errors=True)

    @property
    def build(self) -> pathlib.Path:
        """Where the dataset is written before it is moved to the target in one step."""
        return self.path / "build"

    def close(self) -> None:
        """Release the lock; keep the folder if it holds a journal to resume from."""
        shutil.rmtree(self.build, ignore_errors=True)
        if self.path.exists() and os.listdir(self.path) == ["lock"]:
            shutil.rmtree(self.path)
        self._lock.close()

    def publish(self, built: pathlib.Path) -> None:
        """Move the finished dataset to the target, replacing an older one, and clean up."""
        if self.target.exists():
            os.replace(self.target, self._old)
        os.replace(built, self.target)
        shutil.rmtree(self.path)


@contextlib.contextmanager
def workspace(target: pathlib.Path) -> Iterator[Workspace]:
    """Open the workspace of a dataset directory; the lock is released in the end.

    Raises:
        CapjaxError: if the disk is full or not writable, or another process prepares the same dataset.
    """
    with clear_disk_errors(target):
        space = Workspace(target)
        try:
            shutil.rmtree(space.build, ignore_errors=True)
            space.build.mkdir()
            yield space
        finally:
            space.close()


def prepare(make_builder: Callable[[pathlib.Path], CaptionBuilder], target: pathlib.Path) -> None:
    """Write a dataset in array_record format; it appears in one step when it is whole.

    Args:
        make_builder: makes the builder, given the TFDS `data_dir` to build in.
        target: the dataset directory, `<data_dir>/<name>/<version>`; an older dataset there is replaced at the end.

    Raises:
        CapjaxError: if a split has no examples, the disk is full, or another process prepares the same dataset.
    """
    with workspace(target) as space:
        build(make_builder, space)


def build(
    make_builder: Callable[[pathlib.Path], CaptionBuilder],
    space: Workspace,
    finish: Callable[[pathlib.Path], None] = lambda directory: None,
) -> None:
    """Write a dataset in a workspace, let `finish` add files to its directory, and publish it."""
    with _quiet_tfds():
        builder = make_builder(space.build)
        builder.download_and_prepare(download_dir=space.build / "downloads")
    finish(pathlib.Path(builder.data_dir))
    space.publish(pathlib.Path(builder.data_dir))


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Silence the prints, log lines and progress bars of TFDS; ours say what matters."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with open(os.devnull, "w", errors="replace") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        logger.setLevel(level)
