"""All scores against the published scorer: live where Java is, through golden files everywhere."""

import functools
import importlib.util
import json
import pathlib
import runpy
import shutil

import numpy as np
import pytest

from capjax.errors import CapjaxError
from capjax.metrics.coco_caption import BLEU_NAMES, References, Scores, score
from capjax.metrics.coco_files import read_references, read_results

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "metrics"
make_golden = runpy.run_path(str(GOLDEN / "make_golden.py"))
EXACT_METRICS = (*BLEU_NAMES, "ROUGE-L", "CIDEr-D")
needs_published_scorer = pytest.mark.skipif(
    importlib.util.find_spec("pycocoevalcap") is None or shutil.which("java") is None,
    reason="the published scorer is the judge: needs pycocoevalcap and Java",
)


@functools.cache
def golden_captions() -> tuple[dict[int, list[str]], dict[str, dict[int, str]]]:
    return make_golden["load_captions"]()


def assert_same_scores(found: Scores, corpus: dict[str, float], per_image: dict[str, list[float]]) -> None:
    for name in EXACT_METRICS:
        assert found.corpus[name] == pytest.approx(corpus[name], abs=1e-9, rel=0), name
        np.testing.assert_allclose(list(found.per_image[name].values()), per_image[name], atol=1e-9, rtol=0)


@pytest.mark.parametrize("system", ["plain", "nasty"])
def test_golden_scores(system: str) -> None:
    references, systems = golden_captions()
    corpus, per_image = json.loads((GOLDEN / "published_scores.json").read_text())[system]
    assert_same_scores(score(references, systems[system], EXACT_METRICS), corpus, per_image)


@needs_published_scorer
def test_nasty_captions_agree_with_the_published_scorer() -> None:
    texts = make_golden["nasty_captions"](seed=11, number=1600)
    references = {100 + n: texts[4 * n : 4 * n + 3] for n in range(400)}
    hypotheses = {100 + n: texts[4 * n + 3] for n in range(400)}
    hypotheses[100], hypotheses[101] = "", "a long caption of a dog " * 420
    references[102], hypotheses[102] = ["", "..."], ""
    corpus, per_image = make_golden["published_scores"](references, hypotheses, ("Bleu", "ROUGE-L", "CIDEr-D"))
    assert_same_scores(score(references, hypotheses, EXACT_METRICS), corpus, per_image)


@needs_published_scorer
def test_real_captions_agree_with_the_published_scorer(real_data: pathlib.Path) -> None:
    references = read_references(real_data / "coco" / "captions_4000_images.json")
    image_ids = list(references)[:200]
    truth, hypotheses = {}, {}
    for number, file in enumerate(sorted((real_data / "coco" / "system_outputs").glob("*.json"))):
        captions = read_results(file)
        for image_id in image_ids:  # one run of the published scorer for all systems: Java starts slowly
            truth[image_id + number * 10_000_000] = references[image_id]
            hypotheses[image_id + number * 10_000_000] = captions[image_id]
    corpus, per_image = make_golden["published_scores"](truth, hypotheses)
    found = score(truth, hypotheses, (*EXACT_METRICS, "METEOR"))
    assert len(found.image_ids) == 600
    assert_same_scores(found, corpus, per_image)
    assert found.corpus["METEOR"] == pytest.approx(corpus["METEOR"], abs=1e-3)
    np.testing.assert_allclose(list(found.per_image["METEOR"].values()), per_image["METEOR"], atol=1e-3, rtol=0)


def test_prepared_references_give_the_same_scores() -> None:
    references, systems = golden_captions()
    prepared = References(references)
    for hypotheses in (*systems.values(), *systems.values()):
        fresh = score(references, hypotheses, EXACT_METRICS)
        assert score(prepared, hypotheses, EXACT_METRICS).per_image == fresh.per_image


def test_order_of_hypotheses_does_not_matter() -> None:
    references, systems = golden_captions()
    backwards = dict(reversed(systems["plain"].items()))
    expected = score(references, systems["plain"], EXACT_METRICS)
    assert score(references, backwards, EXACT_METRICS).per_image == expected.per_image


def test_perfect_captions() -> None:
    references = {1: ["a dog runs on the beach"], 2: ["two cats sleep in a basket"], 3: ["red apples in a bowl"]}
    found = score(references, {image_id: texts[0] for image_id, texts in references.items()}, EXACT_METRICS)
    for name in (*BLEU_NAMES, "ROUGE-L"):
        assert found.corpus[name] == pytest.approx(1.0, abs=1e-6)
    assert found.corpus["CIDEr-D"] == pytest.approx(10.0)


def test_only_what_was_asked_for() -> None:
    references, systems = golden_captions()
    found = score(references, systems["plain"], ("CIDEr-D", "BLEU-4"))
    assert list(found.corpus) == ["BLEU-4", "CIDEr-D"]
    assert list(found.per_image["BLEU-4"]) == list(references)


def test_a_metric_that_cannot_run_is_skipped_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    found = score({1: ["a dog"]}, {1: "a cat"}, ("SPICE", "BLEU-1"))
    assert list(found.corpus) == ["BLEU-1"]
    assert "SPICE" in found.skipped["SPICE"]


@pytest.mark.parametrize(
    ("references", "hypotheses", "message"),
    [
        ({}, {}, "at least one image"),
        ({1: []}, {1: "a"}, "reference captions for image 1"),
        ({1: "a dog"}, {1: "a"}, "reference captions for image 1"),
        ({1: ["a"], 2: ["b"]}, {1: "a"}, "1 images of the references have no caption .such as image 2"),
        ({1: ["a"]}, {1: "a", 7: "b"}, "without references .such as 7"),
        ({1: ["a"]}, {1: None}, "a caption as text for image 1"),
    ],
)
@pytest.mark.usefixtures("wrong_types_allowed")
def test_errors(references: dict, hypotheses: dict, message: str) -> None:
    with pytest.raises(CapjaxError, match=message):
        score(references, hypotheses)


def test_unknown_metric() -> None:
    with pytest.raises(CapjaxError, match="CIDEr-D"):
        score({1: ["a"]}, {1: "a"}, ("cider",))
