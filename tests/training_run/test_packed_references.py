"""The references of a batch, gathered from the files that training maps: as plain loops pack them."""

import tracemalloc

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from capjax.text.vocabulary import Vocabulary
from capjax.training_run.objectives.packed_references import pack_references
from capjax.types import SPECIAL_IDS
from tests.tokenizing import tokenized

CAPTIONS = st.lists(st.lists(st.sampled_from("a b c d".split()), max_size=5).map(" ".join), max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.lists(CAPTIONS, min_size=1, max_size=5), st.data())
def test_references_of_a_batch_are_those_of_its_images(captions, data):
    captions = [["a rare e"], *captions]
    vocabulary = Vocabulary.build("a b c d a b c d".split(), "words", 2)
    packed = pack_references(tokenized(captions), vocabulary)
    images = data.draw(st.lists(st.integers(0, len(captions) - 1), min_size=1, max_size=6))
    batch = packed.of_images(images)
    word_of_number = {int(packed.number_of_token[token]): word for word, token in vocabulary.ids.items()}
    word_of_number[int(packed.number_of_token[SPECIAL_IDS.end])] = "END"
    most_words = 1 + max(len(c.split()) for of_image in captions for c in of_image)
    assert batch["references"].shape == (len(images), max(map(len, captions)), most_words)
    for references, norms, image in zip(batch["references"], batch["reference_norms"], images, strict=True):
        said = [[word_of_number.get(int(n), "?") for n in row if n >= 0] for row in references]
        known = [[w if w in vocabulary.ids else "?" for w in c.split()] + ["END"] for c in captions[image]]
        assert said[: len(known)] == known
        assert not any(said[len(known) :])
        assert not norms[len(known) :].any()
    unknown = packed.number_of_token[SPECIAL_IDS.unk]
    assert unknown not in batch["references"], "no reference holds what a model calls unknown"


def test_images_without_captions_change_no_reward():
    captions = [["a b c", "a d"], ["b c"], ["a b", "c d d"]]
    vocabulary = Vocabulary.build("a b c d".split(), "words", 1)
    plain, others = (
        pack_references(tokenized(c), vocabulary) for c in (captions, [[], captions[0], [], *captions[1:]])
    )
    norms = [
        packed.of_images(images)["reference_norms"] for packed, images in ((plain, [0, 1, 2]), (others, [1, 3, 4]))
    ]
    np.testing.assert_array_equal(*norms)


def test_a_long_split_is_packed_without_a_string_for_each_word():
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(500)]
    captions = [[" ".join(rng.choice(words, 10)) for _ in range(5)] for _ in range(4000)]
    mapped, vocabulary = tokenized(captions), Vocabulary.build(words, "words", 1)
    del captions
    tracemalloc.start()
    pack_references(mapped, vocabulary)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    per_word = most / len(mapped.tokens)
    assert per_word < 280, f"{per_word:.0f} bytes a word"
