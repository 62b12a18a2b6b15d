"""Rewards on the device: equal to the published scorer, on real captions and on any others."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider

from capjax.metrics import caption_health, device_scores
from capjax.text.vocabulary import Vocabulary
from capjax.training_run.objectives.packed_references import pack_references
from capjax.types import SPECIAL_IDS
from tests.tokenizing import tokenized

END = "endendend"


def on_device(hypotheses, references, min_count=1):
    """Score K captions of each image the way a training step does; -> CIDEr-D and BLEU-4 [N, K]."""
    vocabulary = Vocabulary.build((c for of_image in references for c in of_image), "words", min_count)
    packed = pack_references(tokenized(references), vocabulary)
    encoded = [[vocabulary.encode(h)[1:] for h in of_image] for of_image in hypotheses]
    longest = max(len(e) for of_image in encoded for e in of_image)
    tokens = np.full((len(encoded), len(encoded[0]), longest), SPECIAL_IDS.pad)
    for i, of_image in enumerate(encoded):
        for k, ids in enumerate(of_image):
            tokens[i, k, : len(ids)] = ids

    @jax.jit
    def score(tokens, batch, trie, number_of_token):
        captions = number_of_token[tokens]
        matches = device_scores.match(captions, batch["references"])
        return (
            device_scores.cider_d(captions, matches, batch["references"], batch["reference_norms"], trie),
            device_scores.bleu_4(captions, matches, batch["references"]),
        )

    batch = packed.of_images(np.arange(len(references)))
    return jax.device_get(score(tokens, batch, packed.trie, jnp.asarray(packed.number_of_token)))


def published(hypotheses, references, known):
    """Score with `pycocoevalcap`, END a word, words that the vocabulary lacks one word that no reference has."""
    split = Vocabulary.build(["a"], "words", 1).tokenize

    def say(caption, is_reference):
        return " ".join([w if is_reference or w in known else "unkunkunk" for w in split(caption)] + [END])

    cider, bleu = [], []
    gts = {i: [say(c, True) for c in of_image] for i, of_image in enumerate(references)}
    for k in range(len(hypotheses[0])):
        res = {i: [say(of_image[k], False)] for i, of_image in enumerate(hypotheses)}
        cider.append(Cider().compute_score(gts, res)[1])
        bleu.append(Bleu(4).compute_score(gts, res, verbose=0)[1][3])
    return np.transpose(cider), np.transpose(bleu)


def known_words(references, min_count=1):
    return set(Vocabulary.build((c for of_image in references for c in of_image), "words", min_count).ids)


def test_equal_to_the_published_scorer_on_a_hand_made_corpus():
    references = [
        ["a dog runs over the green grass", "the dog is running", "a brown dog on grass"],
        ["two men play football", "men playing a game of football on a green field", "two men in red"],
        ["a child on a swing", "the child swings", "a child a child a child"],
        ["one"],
    ]
    hypotheses = [
        ["a dog runs over the green grass", "a dog a dog a dog with a", ""],
        ["men playing a game", "a purple elephant", "two men two men play play football on a green field"],
        ["a child on a swing with a", "a child on a swing", "a child a child a child a child"],
        ["one", "two", "one one"],
    ]
    expected = published(hypotheses, references, known_words(references))
    for found, want in zip(on_device(hypotheses, references), expected, strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)
    cider_d, _ = expected
    assert cider_d[2, 1] > cider_d[2, 0] > 0, "END is a word: breaking off costs something"


WORDS = st.sampled_from("a b c d e".split())
CAPTION = st.lists(WORDS, min_size=1, max_size=9).map(" ".join)


@settings(max_examples=12, deadline=None)  # each compiles anew
@given(st.lists(st.tuples(st.lists(CAPTION, min_size=1, max_size=3), CAPTION), min_size=2, max_size=4))
def test_equal_to_the_published_scorer_on_any_captions(images):
    references, hypotheses = [list(r) for r, _ in images], [[h] for _, h in images]
    expected = published(hypotheses, references, known_words(references))
    for found, want in zip(on_device(hypotheses, references), expected, strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("system", ["google_nic", "dai2017_gan"])
def test_equal_to_the_published_scorer_on_real_captions(real_data, system):
    captions = json.loads((real_data / "coco" / "captions_4000_images.json").read_text())["annotations"]
    said = json.loads((real_data / "coco" / "system_outputs" / f"{system}.json").read_text())
    said = {row["image_id"]: row["caption"] for row in said}
    by_image = {}
    for row in captions:
        by_image.setdefault(row["image_id"], []).append(row["caption"])
    ids = [i for i in by_image if i in said][:600]
    references, hypotheses = [by_image[i] for i in ids], [[said[i]] for i in ids]
    # A vocabulary without the rare words: those of the references are words of their own all the same.
    expected = published(hypotheses, references, known_words(references, 5))
    for found, want in zip(on_device(hypotheses, references, 5), expected, strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=10))
def test_repetition_is_that_of_the_health_report(words):
    row = np.full(10, -1)
    row[: len(words)] = words
    found = bool(jax.jit(device_scores.repeats_itself)(row))
    assert found == caption_health.repeats_itself([str(w) for w in words])
