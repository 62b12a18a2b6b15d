"""The tokeniser against the published one: live where Java is, through golden files everywhere."""

import importlib.util
import json
import pathlib
import runpy
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capjax.text.ptb_lexer import lex
from capjax.text.ptb_tokenizer import PUNCTUATION, tokenize, tokenize_captions

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "metrics"
make_golden = runpy.run_path(str(GOLDEN / "make_golden.py"))
needs_published_scorer = pytest.mark.skipif(
    importlib.util.find_spec("pycocoevalcap") is None or shutil.which("java") is None,
    reason="the published tokeniser is the judge: needs pycocoevalcap and Java",
)


def assert_same_tokens(captions: list[str], expected: list[list[str]]) -> None:
    found = tokenize_captions(captions)
    differences = [(c, f, e) for c, f, e in zip(captions, found, expected, strict=True) if f != e]
    assert not differences, f"{len(differences)} of {len(captions)} captions differ, first {differences[0]}"


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A man's dog can't sit.", ["a", "man", "'s", "dog", "ca", "n't", "sit"]),
        ("I cannot, gonna 'tis", ["i", "can", "not", "gon", "na", "'t", "is"]),
        ("(two) [dogs]", ["-lrb-", "two", "-rrb-", "-lsb-", "dogs", "-rsb-"]),
        ("no. 5, No way.", ["no.", "5", "no", "way"]),
        ("half 5 1/2 and ½", ["half", "5\xa01/2", "and", "1/2"]),
        ("see http://a.bc/d?e=f, ok", ["see", "http://a.bc/d?e=f", "ok"]),
        ("wow!! ... -- - ----- ok?", ["wow", "!!", "-----", "ok"]),
        ("cats 🐱 and 犬", ["cats", "and", "犬"]),
        ("half an emoji \ud83d here", ["half", "an", "emoji", "here"]),
        ("<unk> a black-and-white t-shirt", ["<unk>", "a", "black-and-white", "t-shirt"]),
        ("", []),
        (" \t\u3000 .", []),
        ("a dog\nruns\u2028fast", ["a", "dog", "runs", "fast"]),
    ],
)
def test_known_captions(caption: str, tokens: list[str]) -> None:
    assert tokenize(caption) == tokens


def test_the_next_caption_decides_about_a_last_letter() -> None:
    assert tokenize_captions(["Plan B.", "The dog."]) == [["plan", "b"], ["the", "dog"]]
    assert tokenize_captions(["Plan B.", "a dog."]) == [["plan", "b."], ["a", "dog"]]
    assert tokenize_captions(["Plan B.", "", " ", "The dog."])[0] == ["plan", "b"]


def test_golden_tokens() -> None:
    pairs = json.loads((GOLDEN / "published_tokens.json").read_text(encoding="utf-8"))
    assert len(pairs) > 1600
    assert_same_tokens([caption for caption, _ in pairs], [tokens for _, tokens in pairs])


@needs_published_scorer
def test_nasty_text_agrees_with_the_published_tokenizer() -> None:
    captions = make_golden["nasty_captions"](seed=7, number=8000)
    assert_same_tokens(captions, make_golden["published_tokens"](captions))


@needs_published_scorer
def test_long_captions_agree_with_the_published_tokenizer() -> None:
    pieces = [
        "a ",
        "a.",
        "1-",
        "'",
        "<a ",
        "www.",
        "@",
        "😀",
        "don't ",
        "1,",
        "etc. A",
        "x'y",
        "&amp;",
        "a-b.,",
        "A&",
        "(",
    ]
    captions = [(piece * 10_000)[:10_000] for piece in pieces]
    assert_same_tokens(captions, make_golden["published_tokens"](captions))


@needs_published_scorer
def test_real_captions_agree_with_the_published_tokenizer(real_data: pathlib.Path) -> None:
    annotations = json.loads((real_data / "coco" / "captions_4000_images.json").read_text())["annotations"]
    captions = [annotation["caption"] for annotation in annotations]
    for file in sorted((real_data / "coco" / "system_outputs").glob("*.json")):
        captions += [entry["caption"] for entry in json.loads(file.read_text())]
    assert len(captions) > 32_000
    assert_same_tokens(captions, make_golden["published_tokens"](captions))


@given(st.text(max_size=60))
@settings(deadline=None, max_examples=300)
def test_any_text_gives_clean_tokens(caption: str) -> None:
    for token in tokenize(caption):
        assert token
        assert token not in PUNCTUATION
        assert not set(token) & set(" \t\n\r\u2028")


@given(st.lists(st.from_regex(r"[A-Za-z]{1,9}[.,]?", fullmatch=True), max_size=8))
@settings(deadline=None, max_examples=300)
def test_the_short_cut_for_plain_words_agrees_with_the_rules(chunks: list[str]) -> None:
    line = " ".join(chunks)
    assert tokenize(line) == [token for token in lex(line) if token not in PUNCTUATION]
