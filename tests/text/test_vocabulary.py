"""Tokenisation, numbering and storage of words."""

import json

import numpy as np
import pytest

from capjax.errors import CapjaxError
from capjax.text.vocabulary import SPECIAL_WORDS, Vocabulary, split_words
from capjax.types import SPECIAL_IDS

PAD, UNK, START, END = SPECIAL_IDS.pad, SPECIAL_IDS.unk, SPECIAL_IDS.start, SPECIAL_IDS.end
CAPTIONS = ["A dog runs.", "a DOG sits", "the dog's ball", "a cat"]


def test_reference_tokenisation_by_hand():
    assert split_words("A man's red-and-white T-shirt, size 42!") == [
        "a", "man", "s", "red", "and", "white", "t", "shirt", "size", "42",
    ]  # fmt: skip
    assert split_words("  ...  ") == []


def test_rare_words_become_unk():
    vocabulary = Vocabulary.build(CAPTIONS, min_count=2)
    assert vocabulary.words == ("<pad>", "<unk>", "<start>", "<end>", "a", "dog")
    np.testing.assert_array_equal(vocabulary.encode("A dog barks"), [START, 4, 5, UNK, END])


def test_special_ids_stand_where_their_names_do():
    assert (PAD, UNK, START, END) == tuple(map(SPECIAL_WORDS.index, ("<pad>", "<unk>", "<start>", "<end>")))


def test_captions_that_hold_special_words_neither_end_nor_pad_themselves():
    captions = ["a dog <end> runs <pad> fast <start> <unk>"] * 3
    vocabulary = Vocabulary.build(captions, "ptb", min_count=2)
    assert vocabulary.words == (*SPECIAL_WORDS, "a", "dog", "fast", "runs")
    ids = vocabulary.encode(captions[0])
    np.testing.assert_array_equal(ids, [START, 4, 5, UNK, 7, UNK, 6, UNK, UNK, END])
    assert vocabulary.decode(ids) == "a dog runs fast"
    assert not set(vocabulary.ids.values()) & {PAD, UNK, START, END}


def test_specials_never_reach_the_reader():
    vocabulary = Vocabulary.build(CAPTIONS, min_count=2)
    assert vocabulary.decode([START, 4, UNK, 5, PAD, END, 4]) == "a dog"


def test_every_tokenizer_round_trips_its_own_words():
    for tokenizer in ("words", "ptb"):
        vocabulary = Vocabulary.build(CAPTIONS, tokenizer, min_count=1)
        assert UNK not in vocabulary.encode("the dog's ball runs")


def test_saving_and_loading(tmp_path):
    vocabulary = Vocabulary.build([*CAPTIONS, "naïve 狗 🐶"], min_count=1)
    vocabulary.save(tmp_path / "vocabulary.json")
    loaded = Vocabulary.load(tmp_path / "vocabulary.json")
    assert loaded.words == vocabulary.words
    assert loaded.sha256 == vocabulary.sha256


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "found no file"),
        ("not json", "expected a capjax vocabulary"),
        (json.dumps({"words": []}), "expected a capjax vocabulary"),
        (json.dumps({"format_version": 9, "words": [], "tokenizer": "words"}), "expected vocabulary format 1"),
        (json.dumps({"format_version": 1, "words": ["a"], "tokenizer": "words"}), "to begin with"),
        (json.dumps({"format_version": 1, "words": 3, "tokenizer": "words"}), "expected a capjax vocabulary"),
        (json.dumps({"format_version": 1, "words": [*SPECIAL_WORDS, 3], "tokenizer": "words"}), "capjax vocabulary"),
        (json.dumps({"format_version": 1, "words": [], "tokenizer": ["ptb"]}), "expected a capjax vocabulary"),
        ("[]", "expected a capjax vocabulary"),
        (b"\xff\xfe{", "expected a capjax vocabulary"),
        ("[" * 100_000, "expected a capjax vocabulary"),
        ('{"format_version": ' + "9" * 5000, "expected a capjax vocabulary"),
        (
            json.dumps({"format_version": 1, "words": [*SPECIAL_WORDS, "\ud800"], "tokenizer": "ptb"}),
            "capjax vocabulary",
        ),
    ],
)
def test_bad_files_are_one_clear_error(tmp_path, content, expected):
    path = tmp_path / "vocabulary.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CapjaxError, match=expected) as error:
        Vocabulary.load(path)
    assert "\n" not in str(error.value)


def test_a_folder_is_no_vocabulary(tmp_path):
    with pytest.raises(CapjaxError, match="expected a capjax vocabulary"):
        Vocabulary.load(tmp_path)


def test_nothing_frequent_enough_is_an_error():
    with pytest.raises(CapjaxError, match="min_count"):
        Vocabulary.build(CAPTIONS, min_count=100)


def test_a_vocabulary_is_filled_up_with_entries_that_are_no_words():
    captions = ["a dog runs", "a dog sits", "<unused0> a"]
    plain, filled = (Vocabulary.build(captions, "words", 1, multiple_of=n) for n in (1, 8))
    assert len(plain) % 8 != 0
    assert len(filled) % 8 == 0
    assert filled.words[: len(plain)] == plain.words
    assert filled.ids == plain.ids, "nobody can ask for them"
    assert filled.decode([*plain.encode("a dog")[:-1].tolist(), *range(len(plain), len(filled))]) == "a dog"
    # A word of a caption that looks like one is unknown, and no entry is there twice.
    ptb = Vocabulary.build(["a <unused0> dog"] * 2, "ptb", 1, multiple_of=16)
    assert len(set(ptb.words)) == len(ptb.words) == 16
