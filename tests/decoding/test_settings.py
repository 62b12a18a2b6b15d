"""Decoder settings: what is accepted, inferred, refused, and that it survives a round trip through JSON."""

import argparse
import json
import math

import pytest

from capjax.decoding import DecoderSettings, build_search
from capjax.decoding.flags import add_decoder_flags, settings_from_flags
from capjax.errors import CapjaxError
from capjax.types import SpecialIds


@pytest.mark.parametrize(
    "values, method",
    [
        ({}, "greedy"),
        ({"max_length": 30, "temperature": None}, "greedy"),
        ({"temperature": 0.7}, "sample"),
        ({"beam_size": 3}, "beam"),
        ({"must_contain": "dog"}, "beam"),
        ({"must_contain": "dog | puppy , grass"}, "beam"),
        ({"num_groups": 3, "beam_size": 3}, "diverse_beam"),
    ],
)
def test_the_method_follows_from_the_fields(values, method):
    assert DecoderSettings.from_dict(values).method == method


def test_changes_replace_what_the_new_method_does_not_use():
    base = DecoderSettings(method="beam", beam_size=5, length_penalty=0.7, min_length=4)
    assert base.updated({"beam_size": 2}).length_penalty == 0.7
    assert base.updated({"temperature": 0.5}) == DecoderSettings(method="sample", temperature=0.5, min_length=4)
    assert base.updated({"max_length": 9}).beam_size == 5
    assert base.updated({"num_captions": 2}).method == "beam"
    diverse = DecoderSettings(method="diverse_beam", beam_size=4, num_groups=2)
    assert diverse.updated({"beam_size": 6}).method == "diverse_beam"


@pytest.mark.parametrize(
    "settings",
    [
        DecoderSettings(min_length=3),
        DecoderSettings(method="sample", top_p=0.9, seed=4),
        DecoderSettings(method="beam", must_contain=("dog|puppy", 7, (4, 5)), must_not_contain=("cat",)),
        DecoderSettings(method="diverse_beam", beam_size=6, num_groups=2, num_captions=6),
    ],
)
def test_round_trip_through_json(settings):
    values = json.loads(json.dumps(settings.to_dict()))
    assert DecoderSettings.from_dict(values) == settings
    assert ("beam_size" in values) == ("beam" in settings.method)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"beam_sise": 3}, "beam_sise.*did you mean beam_size"),
        ({"method": "bean"}, "bean.*did you mean beam"),
        ({"beam_size": 3, "temperature": 0.5}, "temperature has no meaning for method=beam.*sample"),
        ({"method": "greedy", "num_captions": 2}, "num_captions has no meaning for method=greedy"),
        ({"method": "sample", "must_contain": "dog"}, "must_contain has no meaning for method=sample"),
        ({"method": "beam", "num_groups": 2}, "num_groups has no meaning for method=beam"),
        ({"temperature": 0.0}, r"temperature lies in 0\.001\.\.1000"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"method": "diverse_beam", "diversity_strength": math.inf}, "diversity_strength is 0 or more, and finite"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"max_length": 0}, "max_length"),
        ({"max_length": 10**12}, r"max_length lies in 1\.\.10000"),
        ({"beam_size": 10**30}, r"beam_size lies in 1\.\.10000"),
        ({"method": "sample", "num_captions": 10**30}, r"num_captions lies in 1\.\.10000"),
        ({"no_repeat_ngram_size": 10**30}, "no_repeat_ngram_size"),
        ({"top_k": 10**30}, "top_k"),
        ({"length_penalty": float("nan")}, r"length_penalty lies in -10\.\.10"),
        ({"length_penalty": float("inf")}, r"length_penalty lies in -10\.\.10"),
        ({"max_length": 5, "min_length": 6}, "min_length"),
        ({"beam_size": "3"}, "beam_size is of type int"),
        ({"beam_size": True}, "beam_size is of type int"),
        ({"beam_size": 0}, "beam_size"),
        ({"beam_size": 2, "num_captions": 3}, "num_captions is at most beam_size"),
        ({"beam_size": 4, "num_groups": 3}, "num_groups divides beam_size"),
        ({"beam_size": 3, "length_formula": "gmnt"}, "did you mean gnmt"),
        ({"must_contain": "a,b,c,d,e"}, "at most 4 words"),
        ({"must_contain": "dog|cat", "must_not_contain": "cat,dog"}, "both name 'dog|cat'"),
        ({"must_contain": 3.5}, "list of words"),
        ({"must_not_contain": [2.5]}, "list of words"),
        ({"must_not_contain": "a,,b"}, "list of words"),
    ],
)
def test_what_makes_no_sense_is_one_clear_line(values, message):
    with pytest.raises(CapjaxError, match=message) as error:
        DecoderSettings.from_dict(values)
    assert "\n" not in str(error.value)


def test_settings_are_told_as_they_are_given():
    settings = DecoderSettings(method="diverse_beam", must_contain=(("dog", "puppy"), "red"), diversity_strength=0.0)
    assert settings.told() == "diverse_beam, beam_size 3, must_contain dog|puppy,red, diversity_strength 0.0"


def test_words_become_token_ids():
    settings = DecoderSettings(method="beam", must_contain=("dog | puppy", "grass"), must_not_contain=("cat",))
    resolved = settings.with_token_ids({"dog": 4, "puppy": 9, "grass": 5, "cat": 6})
    assert resolved.must_contain == ((4, 9), (5,))
    assert resolved.must_not_contain == (6,)
    with pytest.raises(CapjaxError, match=r"'cat'.*did you mean cats"):
        settings.with_token_ids({"cats": 4})
    assert settings.with_token_ids({"dog": 4, "puppy": 9, "grass": 5, "cat": 6}, [7, 8]).must_not_contain[-2:] == (7, 8)


@pytest.mark.parametrize("outside", [-1, 3, 6])
def test_ids_that_no_word_has_are_refused(outside):
    settings = DecoderSettings(method="beam", must_contain=(4, outside))
    with pytest.raises(CapjaxError, match=f"ids of words of the vocabulary, from 4 to 5, got {outside}"):
        settings.with_token_ids({"dog": 4, "cat": 5})


@pytest.mark.parametrize(
    "settings, message",
    [
        (DecoderSettings(must_not_contain=("cat",)), "'cat'.*with_token_ids"),
        (DecoderSettings(must_not_contain=(3,)), "END.*min_length"),
        (DecoderSettings(method="beam", must_contain=(1,)), r"special token ids \[1\]"),
    ],
)
def test_searches_that_cannot_be_built(settings, message):
    with pytest.raises(CapjaxError, match=message):
        build_search(settings, SpecialIds())


def test_sampling_needs_keys(toy):
    search = build_search(DecoderSettings(method="sample"), SpecialIds())
    with pytest.raises(CapjaxError, match="image_keys"):
        search(toy.decode_step, toy.initial_carry(toy.random_tables(0)), None)


def test_flags():
    parser = argparse.ArgumentParser()
    add_decoder_flags(parser)
    base = DecoderSettings(method="beam", beam_size=5)
    assert settings_from_flags(parser.parse_args([]), base) == base
    flags = ["--beam_size=4", "--length_penalty=0.6", "--allow_unk", "--must_contain=dog|puppy,grass"]
    assert settings_from_flags(parser.parse_args(flags), base) == DecoderSettings(
        method="beam", beam_size=4, length_penalty=0.6, allow_unk=True, must_contain=("dog|puppy", "grass")
    )
    assert settings_from_flags(parser.parse_args(["--method=greedy"]), base) == DecoderSettings()
