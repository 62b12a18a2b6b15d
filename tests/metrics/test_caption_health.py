"""Health measures on captions whose faults are known."""

import json
import pathlib

import pytest

from capjax.errors import CapjaxError
from capjax.metrics.caption_health import ailments, health, image_dependence, leakage, repeats_itself
from capjax.metrics.coco_files import read_references


def test_every_measure() -> None:
    captions = ["A man with a", "a man with a dog.", "a dog <unk> a UNK", "", "a cat cat on a mat", "A man with a dog"]
    found = health(captions, train_captions=["A man with a dog!", "another"])
    assert found.num_captions == 6
    assert found.mean_length == pytest.approx((4 + 5 + 5 + 0 + 6 + 5) / 6)
    assert found.empty == pytest.approx(1 / 6)
    assert found.dangling_end == pytest.approx(1 / 6)
    assert found.unknown_word == pytest.approx(1 / 6)
    assert found.repetition == pytest.approx(1 / 6)
    assert found.distinct_captions == pytest.approx(5 / 6)
    assert found.vocabulary == 9  # a man with dog <unk> unk cat on mat
    assert found.distinct_1 == pytest.approx(9 / 25)
    assert found.distinct_2 == pytest.approx(12 / 20)
    assert found.novel_captions == pytest.approx(4 / 6)
    assert health(captions).novel_captions is None


def test_ailments_of_each_caption() -> None:
    captions = ["A man with a dog.", "a dog dog with a", "a dog <unk> a UNK", ""]
    assert ailments(captions) == [(), ("dangling_end", "repetition"), ("unknown_word",), ("empty",)]


@pytest.mark.parametrize(
    ("caption", "repeats"),
    [
        ("a dog on a beach", False),
        ("a dog dog", True),
        ("on a on a beach", True),
        ("a red dog and a red dog", True),
        ("a red dog and a red cat", False),
        ("", False),
    ],
)
def test_repetition(caption: str, repeats: bool) -> None:
    assert repeats_itself(caption.split()) is repeats


def test_human_captions_are_healthy(real_data: pathlib.Path) -> None:
    references = read_references(real_data / "coco" / "captions_4000_images.json")
    found = health([captions[0] for captions in references.values()])
    assert found.dangling_end < 0.005
    assert found.repetition < 0.02
    assert found.distinct_captions > 0.98


def test_no_captions() -> None:
    with pytest.raises(CapjaxError, match="at least one caption"):
        health([])


def test_image_dependence() -> None:
    nouns = ["dog", "cat", "bus", "train", "kite", "cake"]
    references = {n: [f"a {noun} in the picture", f"there is a {noun}"] for n, noun in enumerate(nouns)}
    looking = image_dependence(references, {n: f"a {noun} in the picture" for n, noun in enumerate(nouns)})
    assert looking["drop"] > 0.9
    blind = image_dependence(references, dict.fromkeys(references, "a dog in the picture"))
    assert blind["drop"] == pytest.approx(0.0)
    again = image_dependence(references, dict.fromkeys(references, "a dog in the picture"), seed=0)
    assert json.dumps(again) == json.dumps(blind)


def test_no_image_keeps_its_caption_in_the_shuffle() -> None:
    """Without a word in common, a caption scores at its own image alone."""
    words = {1: "dog", 2: "cat", 3: "bus"}
    for seed in range(10):
        found = image_dependence({n: [word] for n, word in words.items()}, words, seed=seed)
        assert found["score"] > 0 and found["shuffled"] == 0.0, seed


def test_leakage() -> None:
    train = {1: ["A dog runs.", "The dog on the beach", "a brown dog"], 2: ["a cat"], 3: ["a cat", "the cat sits"]}
    test = {
        3: ["something else"],
        10: ["a dog runs", "the dog on the beach!", "new"],
        11: ["a cat", "a cat", "a red bus"],
        12: ["a green bus"],
    }
    found = leakage(train, test)
    assert found.shared_image_ids == (3,)
    assert found.same_image_captions == (10,)
    assert found.shared_captions == pytest.approx(4 / 8)  # one said twice counts twice
