"""METEOR against the published program, and its parts on known words."""

import gzip
import importlib.util
import json
import pathlib
import runpy
import shutil

import numpy as np
import pytest

from capjax.errors import CapjaxError
from capjax.metrics import coco_caption, meteor, meteor_resources, meteor_text
from capjax.metrics.meteor_text import Sentences, meteor_words, stem

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "metrics"
make_golden = runpy.run_path(str(GOLDEN / "make_golden.py"))
has_package = importlib.util.find_spec("pycocoevalcap") is not None
needs_word_lists = pytest.mark.skipif(not has_package, reason="METEOR's word lists come with pycocoevalcap")
needs_published_scorer = pytest.mark.skipif(
    not has_package or shutil.which("java") is None, reason="the judge is pycocoevalcap, which needs Java"
)


@needs_word_lists
def test_golden_scores() -> None:
    references, systems = make_golden["load_captions"]()
    published = json.loads((GOLDEN / "published_scores.json").read_text())
    # Both sets of captions as one: reading the paraphrase table takes longer than all the rest.
    number = len(references)
    truth = {place * number + n: texts for place in range(len(systems)) for n, texts in references.items()}
    hypotheses = {place * number + n: system[n] for place, system in enumerate(systems.values()) for n in references}
    found = coco_caption.score(truth, hypotheses, ("METEOR",))
    assert found.skipped == {}
    expected = [value for name in systems for value in published[name][1]["METEOR"]]
    np.testing.assert_allclose(list(found.per_image["METEOR"].values()), expected, atol=1e-9, rtol=0)
    result = found.results["METEOR"]
    for place, name in enumerate(systems):
        sums = result.statistics[place * number : (place + 1) * number].sum(axis=0)
        assert result.combine(sums, number) == pytest.approx(published[name][0]["METEOR"], abs=1e-9)


@needs_published_scorer
def test_nasty_captions_agree_with_the_published_program() -> None:
    texts = make_golden["nasty_captions"](seed=13, number=900)
    references = {n: texts[3 * n : 3 * n + 2] for n in range(300)}
    hypotheses = {n: texts[3 * n + 2] for n in range(300)}
    generator = np.random.default_rng(0)
    for n in range(0, 300, 2):  # half of them share most words with a reference, in another order
        hypotheses[n] = " ".join(generator.permutation(references[n][0].split(" ")))
    references[1], hypotheses[1], hypotheses[3] = ["", "..."], "", "a long caption of a dog " * 420
    corpus, per_image = make_golden["published_scores"](references, hypotheses, ("METEOR",))
    found = coco_caption.score(references, hypotheses, ("METEOR",))
    assert found.corpus["METEOR"] == pytest.approx(corpus["METEOR"], abs=1e-9)
    np.testing.assert_allclose(list(found.per_image["METEOR"].values()), per_image["METEOR"], atol=1e-9, rtol=0)


@needs_published_scorer
def test_words_that_later_stemmers_treat_otherwise_agree_with_the_published_program() -> None:
    pairs = [("evening", "even"), ("added", "ad"), ("organized", "organ"), ("university", "univers"), ("paste", "past")]
    pairs += [("geologist", "geolog"), ("geologists", "geologist"), ("emergency", "emerged"), ("internal", "interns")]
    references = {n: [f"the {first} xylophone"] for n, (first, _) in enumerate(pairs)}
    hypotheses = {n: f"the {second} xylophone" for n, (_, second) in enumerate(pairs)}
    _, per_image = make_golden["published_scores"](references, hypotheses, ("METEOR",))
    found = coco_caption.score(references, hypotheses, ("METEOR",)).per_image["METEOR"]
    np.testing.assert_allclose(list(found.values()), per_image["METEOR"], atol=1e-9, rtol=0)


def test_phrases_are_found_by_what_they_are() -> None:
    sentences = [("ein", "großer", "hund"), (), ("hund",), ("ein", "hund") * 5, ("a",)]
    known = Sentences(sentences)
    text = [
        (place, length, " ".join(words[start : start + length]).encode())
        for words, place in zip(sentences, known.starts, strict=True)
        for start, place in enumerate(range(place, place + len(words)))
        for length in range(1, min(7, len(words) - start) + 1)
    ]
    spans = {span[:2]: span[2] for of_length in known.spans for span in zip(*of_length, strict=True)}
    assert spans == {(place, length): known.phrases.numbers([phrase])[0] for place, length, phrase in text}
    numbers = {phrase: spans[place, length] for place, length, phrase in text}
    assert sorted(numbers.values()) == list(range(len(known.phrases)))
    asked = [b"ein hund", b"hund ein", b"", b"ei", b"hund hund", "großer hund".encode(), b"hund a", b"a", b" a"]
    assert known.phrases.numbers(asked).tolist() == [numbers.get(phrase, -1) for phrase in asked]
    assert Sentences([()]).phrases.numbers([b"a", b""]).tolist() == [-1, -1]


def test_the_sieve_lets_every_phrase_pass_and_few_others() -> None:
    rng = np.random.default_rng(0)
    words = sorted({"".join(rng.choice(list("abcdeé"), rng.integers(1, 12))) for _ in range(3000)})
    known = Sentences([tuple(words[:300])]).phrases
    lines = [" ".join(words[i : i + n]).encode() for n in range(1, 8) for i in range(len(words) - n)]
    text = b"\n".join([b"", *lines])  # the last ends with the text, the first is empty
    ends = np.append(np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")), len(text))
    passes = known.sift(text, np.append(0, ends[:-1] + 1), ends)[1:]
    is_known = known.numbers(lines) >= 0
    assert is_known.sum() > 2000 and passes[is_known].all()
    assert passes[~is_known].mean() < 0.1
    assert not Sentences([()]).phrases.sift(b"a", np.array([0]), np.array([1])).any()


@pytest.mark.parametrize("block", [1, 50, 1 << 20])
def test_paraphrases_are_read_as_line_by_line(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["ein", "großer", "hund", "a"], rng.integers(1, 4))) for _ in range(200)]
    lines = [line for one, other in zip(texts[::2], texts[1::2], strict=True) for line in ("0.5", one, other)]
    (tmp_path / "data").mkdir()
    (tmp_path / "meteor-1.5.jar").touch()
    (tmp_path / "data" / "paraphrase-en.gz").write_bytes(gzip.compress("\n".join([*lines, "0.5", "torn"]).encode()))
    monkeypatch.setattr(meteor_resources, "published_folder", lambda: tmp_path)
    monkeypatch.setattr(meteor_resources, "_BLOCK", block)
    phrases = Sentences([("ein", "großer", "hund"), ("hund", "a", "a")]).phrases
    numbers = dict(zip(texts, phrases.numbers([text.encode() for text in texts]).tolist(), strict=True))
    pairs = {i: (numbers[lines[i]], numbers[lines[i + 1]]) for i in range(1, len(lines), 3)}
    expected = {pair: i for i, pair in pairs.items() if min(pair) >= 0}
    assert len(expected) > 10
    assert meteor_resources.load_paraphrases(phrases) == expected


def test_phrases_of_the_same_hash_are_not_taken_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meteor_text, "hash", len, raising=False)
    known = Sentences([("hund",), ("ein", "hund")]).phrases
    assert known.numbers([b"hand", b"eine", b"ein hand", b"aus"]).tolist() == [-1] * 4
    assert (known.numbers([b"hund", b"ein", b"ein hund"]) >= 0).all()


def test_score_of_an_alignment_worked_by_hand() -> None:
    # Caption of 6 words (2 function words), reference of 5 (1); 3 content words and 1 function word equal, in 2 chunks.
    statistics = np.zeros((1, 23))
    statistics[0, :4] = 6, 5, 2, 1
    statistics[0, 4:8] = 3, 3, 1, 1
    statistics[0, 20:] = 2, 4, 4
    matched = 0.75 * 3 + 0.25 * 1
    precision, recall = matched / (0.75 * 4 + 0.25 * 2), matched / (0.75 * 4 + 0.25 * 1)
    f_mean = precision * recall / (0.85 * precision + 0.15 * recall)
    expected = f_mean * (1 - 0.6 * (2 / 4) ** 0.2)
    result = meteor.result_from_statistics(statistics)
    assert result.per_image.tolist() == pytest.approx([expected])
    assert result.corpus == pytest.approx(expected)


@needs_word_lists
def test_each_stage_matches() -> None:
    cases = {
        "equal words": ("a dog runs", "a dog runs"),
        "function word": ("the xylophone", "the car"),
        "stem": ("the photographing", "the photographed"),
        "synonym": ("the automobile", "the car"),
        "paraphrase": ("a large number of", "numerous"),
        "nothing": ("unrelated", "car"),
        "empty": ("", ""),
    }
    references = {n: [reference] for n, (reference, _) in enumerate(cases.values())}
    hypotheses = {n: caption for n, (_, caption) in enumerate(cases.values())}
    found = coco_caption.score(references, hypotheses, ("METEOR",)).per_image["METEOR"]
    scores = dict(zip(cases, found.values(), strict=True))
    assert scores["equal words"] == pytest.approx(1.0)
    assert scores["stem"] > scores["function word"] > 0
    assert scores["synonym"] > scores["function word"]
    assert scores["paraphrase"] > 0
    assert scores["nothing"] == scores["empty"] == 0


def test_without_the_package_there_is_no_meteor(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> pathlib.Path:
        raise CapjaxError("METEOR needs the word lists of the published scorer: pip install pycocoevalcap")

    meteor_resources.load_lexicon.cache_clear()
    monkeypatch.setattr(meteor_resources, "published_folder", missing)
    found = coco_caption.score({1: ["a dog"]}, {1: "a dog"}, ("METEOR", "BLEU-1"))
    assert list(found.corpus) == ["BLEU-1"]
    assert "pip install pycocoevalcap" in found.skipped["METEOR"]


def test_a_damaged_package_is_an_error(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "paraphrase-en.gz").write_bytes(b"\x1f\x8b\x08\x00 torn")
    (tmp_path / "meteor-1.5.jar").write_bytes(b"no jar")
    meteor_resources.load_lexicon.cache_clear()
    monkeypatch.setattr(meteor_resources, "published_folder", lambda: tmp_path)
    with pytest.raises(CapjaxError, match="install pycocoevalcap again"):
        meteor_resources.load_lexicon()
    with pytest.raises(CapjaxError, match="install pycocoevalcap again"):
        meteor_resources.load_paraphrases(Sentences([("a", "dog")]).phrases)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        # From the sample vocabulary of the published description, and each step's exceptions.
        ("consistency", "consist"),
        ("consolatory", "consolatori"),
        ("knightly", "knight"),
        ("knots", "knot"),
        ("kneeling", "kneel"),
        ("skies", "sky"),
        ("generously", "generous"),
        ("communication", "communic"),
        ("hopping", "hop"),
        ("hoping", "hope"),
        ("luxuriated", "luxuri"),
        ("ties", "tie"),
        ("cries", "cri"),
        ("gas", "gas"),
        ("kiwis", "kiwi"),
        ("by", "by"),
        ("enjoyed", "enjoy"),
        ("national", "nation"),
        ("inning", "inning"),
        ("dog's", "dog"),
        # What later versions of Snowball stem otherwise.
        ("evening", "even"),
        ("added", "ad"),
        ("organized", "organ"),
        ("university", "univers"),
        ("geologist", "geologist"),
    ],
)
def test_stems(word: str, expected: str) -> None:
    assert stem(word) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a black-and-white dog", ["a", "black", "and", "white", "dog"]),
        ("the dog's 3,000 toys , and", ["the", "dog", "'s", "3,000", "toys", ",", "and"]),
        ("u.s. Mr. a dog. X no. 5 end.", ["us", "mr.", "a", "dog", ".", "x", "no.", "5", "end", "."]),
        ("wait ... what", ["wait", "...", "what"]),
        ("", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert list(meteor_words(text, {"no": True, "Mr": False})) == words
