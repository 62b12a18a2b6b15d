"""The captions of a split as numbers of words, in files that all processes map: what training draws from.

    captions-train.words/<key>/header.json        the words, the most frequent first; records_sha256
    captions-train.words/<key>/counts             int64 [words], how often each occurs
    captions-train.words/<key>/tokens             uint32, the words of all captions, by their places in the header
    captions-train.words/<key>/caption_starts     int64 [captions + 1], where the words of each caption begin
    captions-train.words/<key>/image_starts       int64 [images + 1], the first caption of each image
    captions-train.words/<key>/image_ids          int64 [images]

The folder lies beside the file of the captions, `words` is the tokeniser, and the key changes when the captions do. It
is made when captions are first trained on: in one pass, within memory for the words that differ. As every word is kept,
it serves all vocabularies.
"""

import collections
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt32
from tqdm import tqdm

from capjax.data.caption_records import CaptionRecords, record_identity
from capjax.errors import CapjaxError
from capjax.host.disk import NO_ROOM, clear_disk_errors, temporary_folder
from capjax.host.waiting import waiting_for
from capjax.text.vocabulary import Vocabulary, tokenizer_named
from capjax.types import SPECIAL_IDS, CaptionRecord

FORMAT_VERSION = 1  # goes up when a tokeniser changes, too

_DTYPES = {
    "counts": np.dtype(np.int64),
    "tokens": np.dtype(np.uint32),
    "caption_starts": np.dtype(np.int64),
    "image_starts": np.dtype(np.int64),
    "image_ids": np.dtype(np.int64),
}
_WORDS_AT_A_TIME = 1 << 20
_IMAGES_WITH_PROGRESS = 100_000


class TokenizedCaptions:
    """The captions of a split in a folder that `write_tokenized` made; see the module's docstring.

    Attributes:
        words: those that occur, the most frequent first, ties by spelling.
        tokenizer: the name of the tokeniser that made them.
        records_sha256: what identifies the images and their captions, in order.
        image_ids: of the images.
        image_starts: the number of each image's first caption, and at last of all captions.
        tokens: the words of all captions, as places in `words`.
        caption_starts: the place of each caption's first word among `tokens`, and at last their number.
    """

    def __init__(self, folder: pathlib.Path, owned: Any = None) -> None:
        """Map the files.

        Args:
            folder: where they lie.
            owned: what keeps the folder there, as long as this object is.

        Raises:
            CapjaxError: if they are damaged.
        """
        self._folder, self._owned = folder, owned
        try:
            header = json.loads((folder / "header.json").read_text(encoding="utf-8"))
            self.words: list[str] = header["words"]
            self.tokenizer: str = header["tokenizer"]
            self.records_sha256: str = header["records_sha256"]
            arrays = {name: _map(folder / name, dtype) for name, dtype in _DTYPES.items()}
            if {name: len(values) for name, values in arrays.items()} != header["lengths"]:
                raise ValueError("files are cut off")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CapjaxError(
                f"expected tokenised captions in {folder}, they are damaged ({error}); delete that folder, it is made "
                "again"
            ) from None
        self.image_ids: Int64[np.ndarray, " N"] = arrays["image_ids"]
        self.image_starts: Int64[np.ndarray, " _"] = arrays["image_starts"]
        self.tokens: UInt32[np.ndarray, " T"] = arrays["tokens"]
        self.caption_starts: Int64[np.ndarray, " _"] = arrays["caption_starts"]
        self._counts = arrays["counts"]

    @property
    def counts(self) -> Mapping[str, int]:
        """How often each word occurs."""
        return dict(zip(self.words, self._counts.tolist(), strict=True))

    @property
    def captioned_images(self) -> Sequence[int]:
        """Places of the images that have captions."""
        captioned = np.flatnonzero(np.diff(self.image_starts))
        everything = len(captioned) == len(self.image_ids)
        return range(len(self.image_ids)) if everything else array("q", captioned.tobytes())

    def encode(self, vocabulary: Vocabulary) -> "EncodedCaptions":
        """Give each word its id in a vocabulary of the same tokeniser."""
        return EncodedCaptions(self, vocabulary)

    def caption(self, number: int) -> UInt32[np.ndarray, " L"]:
        """Return a caption as places in `words`."""
        start, end = self.caption_starts[number], self.caption_starts[number + 1]
        return self.tokens[start:end]

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self._folder}  # worker processes map the files themselves

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


class EncodedCaptions:
    """Captions as ids of a vocabulary; whoever it is sent to maps the same files.

    Attributes:
        image_ids: of the images.
    """

    def __init__(self, captions: TokenizedCaptions, vocabulary: Vocabulary) -> None:
        """Look up the id of every word."""
        assert vocabulary.tokenizer == captions.tokenizer
        ids = (vocabulary.ids.get(word, SPECIAL_IDS.unk) for word in captions.words)
        self._id_of_word: Int32[np.ndarray, " W"] = np.fromiter(ids, np.int32, len(captions.words))
        self._captions = captions

    @property
    def image_ids(self) -> Int64[np.ndarray, " N"]:
        """Ids of the images."""
        return self._captions.image_ids

    @property
    def captioned_images(self) -> Sequence[int]:
        """Places of the images that have captions."""
        return self._captions.captioned_images

    def of_image(self, i: int) -> range:
        """Return the numbers of an image's captions."""
        return range(*self._captions.image_starts[i : i + 2].tolist())

    def __getitem__(self, number: int) -> Int32[np.ndarray, " L"]:
        """Return a caption as ids [START, w1, …, wn, END]; words that the vocabulary lacks are UNK."""
        words = self._id_of_word[self._captions.caption(number)]
        return np.concatenate([[SPECIAL_IDS.start], words, [SPECIAL_IDS.end]], dtype=np.int32)


def tokenized_captions(records: CaptionRecords, tokenizer: str) -> TokenizedCaptions:
    """Open the tokenised captions of a file of records; they are made where that was not done before.

    Args:
        records: all of a file.
        tokenizer: a key of `capjax.text.vocabulary.TOKENIZERS`.

    Raises:
        CapjaxError: if a record is damaged, the disk is full, or there is no such tokeniser.
    """
    tokenizer_named(tokenizer)
    status = records.path.stat()
    key = hashlib.sha256(repr((FORMAT_VERSION, status.st_size, status.st_mtime_ns)).encode()).hexdigest()[:16]
    folder = records.path.with_suffix(f".{tokenizer}")
    with _alone(records.path) as alone, clear_disk_errors(folder):
        if (folder / key).exists():
            return TokenizedCaptions(folder / key)
        temporary = _make_room(folder, key) if alone else None
        if temporary:
            write_tokenized(temporary, records, tokenizer)
            temporary.rename(folder / key)
            return TokenizedCaptions(folder / key)
    return tokenized_for_this_process(records, tokenizer)


def tokenized_for_this_process(records: Iterable[CaptionRecord], tokenizer: str) -> TokenizedCaptions:
    """Tokenise captions into files that go with the object; arguments and errors of `write_tokenized`."""
    owned = temporary_folder("capjax-captions-")
    write_tokenized(pathlib.Path(owned.name), records, tokenizer)
    return TokenizedCaptions(pathlib.Path(owned.name), owned)


def write_tokenized(folder: pathlib.Path, records: Iterable[CaptionRecord], tokenizer: str) -> None:
    """Tokenise captions into the files of an empty folder.

    Args:
        folder: to write to.
        records: the images with their captions, gone over once.
        tokenizer: a key of `capjax.text.vocabulary.TOKENIZERS`.

    Raises:
        CapjaxError: if there is no such tokeniser.
    """
    tokenize = tokenizer_named(tokenizer)
    numbers = collections.defaultdict[str, int]()
    numbers.default_factory = numbers.__len__
    digest, lengths = hashlib.sha256(), dict.fromkeys(_DTYPES, 0)
    parts = {"tokens": array("I"), "caption_starts": array("q"), "image_starts": array("q"), "image_ids": array("q")}
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / name, "wb")) for name in parts}

        def flush() -> None:
            for name, values in parts.items():
                values.tofile(files[name])
                lengths[name] += len(values)
                del values[:]

        many = isinstance(records, Sequence) and len(records) >= _IMAGES_WITH_PROGRESS
        for record in tqdm(records, "tokenising captions", unit=" images", disable=None if many else True):
            digest.update(record_identity(record))
            parts["image_ids"].append(record.image_id)
            parts["image_starts"].append(lengths["caption_starts"] + len(parts["caption_starts"]))
            for caption in record.captions:
                parts["caption_starts"].append(lengths["tokens"] + len(parts["tokens"]))
                parts["tokens"].extend(map(numbers.__getitem__, tokenize(caption)))
            if len(parts["tokens"]) >= _WORDS_AT_A_TIME:
                flush()
        flush()
        parts["image_starts"].append(lengths["caption_starts"])
        parts["caption_starts"].append(lengths["tokens"])
        flush()
    words, counts = _rank(folder / "tokens", list(numbers))
    counts.tofile(folder / "counts")
    header = {
        "words": words,
        "tokenizer": tokenizer,
        "records_sha256": digest.hexdigest(),
        "lengths": lengths | {"counts": len(counts)},
    }
    (folder / "header.json").write_text(json.dumps(header), encoding="utf-8")


def _rank(path: pathlib.Path, words: list[str]) -> tuple[list[str], Int64[np.ndarray, " W"]]:
    """Number the words in a file anew, the most frequent first.

    Returns:
        The words in their new order, and their counts.
    """
    counts = np.zeros(len(words), np.int64)
    with open(path, "r+b") as file:
        while len(tokens := np.fromfile(file, _DTYPES["tokens"], _WORDS_AT_A_TIME)):
            counts += np.bincount(tokens, minlength=len(words))
        order = sorted(range(len(words)), key=lambda number: (-counts[number], words[number]))
        rank = np.empty(len(words), _DTYPES["tokens"])
        rank[order] = np.arange(len(words))
        file.seek(0)
        while len(tokens := np.fromfile(file, _DTYPES["tokens"], _WORDS_AT_A_TIME)):
            file.seek(-tokens.nbytes, os.SEEK_CUR)
            rank[tokens].tofile(file)
    return [words[number] for number in order], counts[order]


def _map(path: pathlib.Path, dtype: np.dtype) -> np.ndarray:
    if path.stat().st_size == 0:  # which cannot be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r").view(np.ndarray)  # whose slices cost less than a memmap's


def _make_room(folder: pathlib.Path, key: str) -> pathlib.Path | None:
    """Remove what was made of earlier captions, and what a kill left; None where nothing may be written."""
    shutil.rmtree(folder, ignore_errors=True)
    temporary = folder / f".{key}.tmp"
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        return None
    return temporary


@contextlib.contextmanager
def _alone(path: pathlib.Path) -> Iterator[bool]:
    """Wait until no other process tokenises a file; false where that cannot be known, as in a read-only folder."""
    try:
        file = open(path, "r+b")  # to write, or network file systems would not lock it
    except OSError:
        yield False
        return
    with file:
        try:
            with waiting_for(f"another process to tokenise {path}"):
                fcntl.flock(file, fcntl.LOCK_EX)
            alone = True
        except OSError:
            alone = False
        yield alone
