"""CIDEr and CIDEr-D against a direct transcription of the paper, and tables of document frequencies."""

import collections
import dataclasses
import math
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capjax.errors import CapjaxError
from capjax.metrics.coco_caption import References, score
from capjax.metrics.ngrams import DocumentFrequencies, count_ngrams
from tests.image_mutations import mutations


def ngrams(words: list[str], n: int) -> collections.Counter:
    return collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def cider_of_paper(
    references: dict[int, list[str]], hypotheses: dict[int, str], clipped: bool, corpus: dict[int, list[str]]
) -> list[float]:
    """Equations 1 to 4 of Vedantam et al. 2015, one n-gram at a time; `corpus` gives the document frequencies."""
    scores = []
    for image_id, texts in references.items():
        total = 0.0
        for n in range(1, 5):
            df = collections.Counter(
                g for each in corpus.values() for g in {g for t in each for g in ngrams(t.split(), n)}
            )

            def vector(text: str, n: int = n, df: collections.Counter = df) -> dict[tuple, float]:
                counts = ngrams(text.split(), n)
                return {g: c * math.log(len(corpus) / max(1, df[g])) for g, c in counts.items()}

            caption = vector(hypotheses[image_id])
            for text in texts:
                other = vector(text)
                norm = math.sqrt(sum(w * w for w in caption.values())) * math.sqrt(sum(w * w for w in other.values()))
                if clipped:
                    dot = sum(min(w, other.get(g, 0.0)) * other.get(g, 0.0) for g, w in caption.items())
                    lengths = max(0, len(hypotheses[image_id].split()) - 1) - max(0, len(text.split()) - 1)
                    penalty = math.exp(-(lengths**2) / (2 * 6.0**2))
                else:
                    dot, penalty = sum(w * other.get(g, 0.0) for g, w in caption.items()), 1.0
                total += penalty * dot / norm if norm else 0.0
        scores.append(10 * total / 4 / len(texts))
    return scores


WORDS = "a the dog cat runs sleeps on red beach big".split()
captions = st.lists(st.sampled_from(WORDS), min_size=0, max_size=8).map(" ".join)
images = st.lists(st.tuples(st.lists(captions, min_size=1, max_size=3), captions), min_size=1, max_size=5)


@given(images)
@settings(deadline=None, max_examples=80)
def test_both_variants_agree_with_the_paper(drawn: list[tuple[list[str], str]]) -> None:
    references = {n: texts for n, (texts, _) in enumerate(drawn)}
    hypotheses = {n: text for n, (_, text) in enumerate(drawn)}
    found = score(references, hypotheses, ("CIDEr", "CIDEr-D"))
    for name, clipped in (("CIDEr", False), ("CIDEr-D", True)):
        expected = cider_of_paper(references, hypotheses, clipped, corpus=references)
        np.testing.assert_allclose(list(found.per_image[name].values()), expected, atol=1e-9)


@given(images, images)
@settings(deadline=None, max_examples=40)
def test_saved_document_frequencies(tmp_path_factory, drawn, others) -> None:
    references = {n: texts for n, (texts, _) in enumerate(drawn)}
    hypotheses = {n: text for n, (_, text) in enumerate(drawn)}
    corpus = {n: [text.replace("dog", "zebra") for text in texts] for n, (texts, _) in enumerate(others)}
    path = tmp_path_factory.mktemp("df") / "table.npz"
    References(corpus).df.save(path)
    found = score(references, hypotheses, ("CIDEr", "CIDEr-D"), df=DocumentFrequencies.load(path))
    for name, clipped in (("CIDEr", False), ("CIDEr-D", True)):
        expected = cider_of_paper(references, hypotheses, clipped, corpus=corpus)
        np.testing.assert_allclose(list(found.per_image[name].values()), expected, atol=1e-9)


def test_table_errors(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CapjaxError, match="no such df table"):
        DocumentFrequencies.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(CapjaxError, match="expected a df table"):
        DocumentFrequencies.load(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(CapjaxError, match="expected a df table"):
        DocumentFrequencies.load(tmp_path / "other.npz")
    np.savez(tmp_path / "newer.npz", capjax_df_version=2)
    with pytest.raises(CapjaxError, match="format version 1, found version 2"):
        DocumentFrequencies.load(tmp_path / "newer.npz")
    References({1: ["a dog runs"]}).df.save(tmp_path / "whole.npz")
    content = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "torn.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(CapjaxError, match="expected a df table"):
        DocumentFrequencies.load(tmp_path / "torn.npz")
    with open(tmp_path / "array.npz", "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(CapjaxError, match="expected a df table"):
        DocumentFrequencies.load(tmp_path / "array.npz")


def test_a_table_whose_numbers_do_not_fit_is_refused(tmp_path: pathlib.Path) -> None:
    table = References({1: ["a dog runs"]}).df
    singles, pairs, *longer = table.counts
    for change in ({"counts": (singles, pairs[:-1], *longer)}, {"num_images": 0}):
        dataclasses.replace(table, **change).save(tmp_path / "table.npz")
        with pytest.raises(CapjaxError, match="df table is damaged"):
            DocumentFrequencies.load(tmp_path / "table.npz")


def test_damaged_tables_end_in_clear_errors(tmp_path: pathlib.Path) -> None:
    References({1: ["a dog runs"]}).df.save(tmp_path / "whole.npz")
    num_refused = 0
    for name, data in mutations({"npz": (tmp_path / "whole.npz").read_bytes()}, 150, seed=0):
        (tmp_path / "damaged.npz").write_bytes(data)
        try:
            DocumentFrequencies.load(tmp_path / "damaged.npz")
        except CapjaxError as error:
            assert "\n" not in str(error), name
            num_refused += 1
    assert num_refused > 50


@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=9), min_size=1, max_size=6))
@settings(deadline=None, max_examples=60)
def test_counts_of_ngrams(sentences: list[list[str]]) -> None:
    known = count_ngrams(sentences[: len(sentences) // 2])
    counted = count_ngrams(sentences, known.table)
    for n, order in enumerate(counted.orders, 1):
        per_caption = [sorted(ngrams(words, n).values()) for words in sentences]
        found = [sorted(order.count[order.caption == i].tolist()) for i in range(len(sentences))]
        assert found == per_caption
