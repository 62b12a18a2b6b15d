"""Words to ids and back.

The special ids 0 to 3 (`capjax.types.SPECIAL_IDS`: PAD, UNK, START, END) come first, then the words, the most frequent
first.
"""

import collections
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int, Int32

from capjax.errors import CapjaxError
from capjax.host.disk import write_atomically
from capjax.text import ptb_tokenizer
from capjax.types import SPECIAL_IDS

SPECIAL_WORDS = ("<pad>", "<unk>", "<start>", "<end>")
"""How the special ids are written in a vocabulary file, in their order."""
UNUSED = "<unused{}>"
"""How entries are written that only fill a vocabulary up; they are no words, and no caption shows them."""
FORMAT_VERSION = 1


def split_words(caption: str) -> list[str]:
    r"""Tokenise as the reference system does: lower-case, split on `\W+`, drop empty strings."""
    return [word for word in re.split(r"\W+", caption.lower()) if word]


TOKENIZERS: dict[str, Callable[[str], list[str]]] = {"words": split_words, "ptb": ptb_tokenizer.tokenize}
"""`words` is the reference system's; `ptb` is the tokenisation of the COCO scorer, without its punctuation."""


def tokenizer_named(name: str) -> Callable[[str], list[str]]:
    """Look up a tokeniser.

    Raises:
        CapjaxError: if there is none of that name.
    """
    if name not in TOKENIZERS:
        raise CapjaxError(f"expected a tokenizer out of {sorted(TOKENIZERS)}, got {name!r}")
    return TOKENIZERS[name]


def is_unused(word: str) -> bool:
    """Tell whether an entry only fills a vocabulary up."""
    return word.startswith("<unused")


class Vocabulary:
    """A fixed list of words with the tokeniser that produced them.

    Attributes:
        words: every entry in id order, the four specials first; V of them.
        tokenizer: the name of the tokeniser, a key of `TOKENIZERS`.
        ids: the id of every word that a caption may hold, the specials excluded: a caption in which somebody wrote
            "<end>" neither ends there nor is padded, it holds an unknown word.
        unused_ids: of the entries that only fill the vocabulary up.
    """

    def __init__(self, words: Sequence[str], tokenizer: str) -> None:
        """Number the words.

        Args:
            words: all V entries, beginning with `SPECIAL_WORDS`.
            tokenizer: a key of `TOKENIZERS`.

        Raises:
            CapjaxError: if the specials are not in front, a word occurs twice, or the tokeniser is unknown.
        """
        self.words = tuple(words)
        self.tokenizer = tokenizer
        self._tokenize = tokenizer_named(tokenizer)
        self.ids = {word: i for i, word in enumerate(self.words) if i >= len(SPECIAL_WORDS) and not is_unused(word)}
        self.unused_ids = tuple(i for i, word in enumerate(self.words) if is_unused(word))
        if self.words[:4] != SPECIAL_WORDS:
            raise CapjaxError(f"expected a vocabulary to begin with {SPECIAL_WORDS}, got {self.words[:4]}")
        if len(set(self.words)) != len(self.words):
            twice = [word for word, n in collections.Counter(self.words).items() if n > 1]
            raise CapjaxError(f"expected every word once in a vocabulary, got {twice[0]!r} more than once")

    @classmethod
    def build(
        cls, captions: Iterable[str], tokenizer: str = "words", min_count: int = 5, multiple_of: int = 1
    ) -> "Vocabulary":
        """Collect the frequent words of some sentences; arguments and errors of `from_counts`."""
        tokenize = tokenizer_named(tokenizer)
        counts = collections.Counter(word for caption in captions for word in tokenize(caption))
        return cls.from_counts(counts, tokenizer, min_count, multiple_of)

    @classmethod
    def from_counts(
        cls, counts: Mapping[str, int], tokenizer: str = "words", min_count: int = 5, multiple_of: int = 1
    ) -> "Vocabulary":
        """Collect the words that occur at least `min_count` times, the most frequent first, ties by spelling.

        Args:
            counts: how often each word occurs.
            tokenizer: a key of `TOKENIZERS`, which made the words.
            min_count: of the words that are kept.
            multiple_of: what V is a multiple of; it is filled up with entries that no caption has, so that the arrays
                that have a row for each word divide over devices, or fill the tiles of an accelerator.

        Raises:
            CapjaxError: if no word is frequent enough.
        """
        frequent = (
            word for word, n in counts.items() if n >= min_count and word not in SPECIAL_WORDS and not is_unused(word)
        )
        kept = sorted(frequent, key=lambda word: (-counts[word], word))
        if not kept:
            raise CapjaxError(
                f"expected captions with words that occur {min_count} times or more, got {len(counts)} words, "
                "all rarer; lower vocabulary.min_count or give more captions"
            )
        filling = -(len(SPECIAL_WORDS) + len(kept)) % multiple_of
        return cls((*SPECIAL_WORDS, *kept, *map(UNUSED.format, range(filling))), tokenizer)

    def __len__(self) -> int:
        return len(self.words)

    def tokenize(self, caption: str) -> list[str]:
        """Split a caption into words, those that the vocabulary lacks among them."""
        return self._tokenize(caption)

    def encode(self, caption: str) -> Int32[np.ndarray, " L"]:
        """Turn a caption into ids [START, w1, …, wn, END]; unknown words become UNK."""
        ids = [self.ids.get(word, SPECIAL_IDS.unk) for word in self.tokenize(caption)]
        return np.asarray([SPECIAL_IDS.start, *ids, SPECIAL_IDS.end], np.int32)

    def decode(self, ids: Iterable[int] | Int[np.ndarray, " L"]) -> str:
        """Turn ids into a sentence: the words up to END, joined by spaces, without specials and unused entries."""
        words = []
        for i in ids:
            if i == SPECIAL_IDS.end:
                break
            if i >= len(SPECIAL_WORDS) and not is_unused(self.words[i]):
                words.append(self.words[i])
        return " ".join(words)

    @property
    def sha256(self) -> str:
        """Fingerprint of the words, their order and the tokeniser."""
        return hashlib.sha256("\n".join((self.tokenizer, *self.words)).encode()).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vocabulary as JSON, all or nothing."""
        content = {"format_version": FORMAT_VERSION, "tokenizer": self.tokenizer, "words": self.words}
        write_atomically(path, json.dumps(content, ensure_ascii=False, indent=0))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """Read what `save` wrote.

        Raises:
            CapjaxError: if the file is missing, is no vocabulary, or is of another version.
        """
        try:
            content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
            version, words, tokenizer = content["format_version"], content["words"], content["tokenizer"]
            if not isinstance(words, list) or not all(isinstance(word, str) for word in (*words, tokenizer)):
                raise TypeError("words is no list of texts, or tokenizer no text")
            "".join(words).encode()  # halves of characters, which JSON can hold
        except FileNotFoundError:
            raise CapjaxError(f"expected a vocabulary at {path}, found no file there") from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CapjaxError(f"expected a capjax vocabulary at {path}, got something else ({error!r})") from None
        if version != FORMAT_VERSION:
            raise CapjaxError(
                f"expected vocabulary format {FORMAT_VERSION} at {path}, got {version}; use the capjax that wrote it"
            )
        return cls(words, tokenizer)
