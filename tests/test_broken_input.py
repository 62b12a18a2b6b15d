"""Whatever the bytes of a user's file: it is read, or refused in one line. `experiments/fuzz.py` tries many more."""

import json
import pathlib
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from capjax.errors import CapjaxError
from experiments import fuzz
from tests.damage import ODD_TEXTS, damaged, replaced
from tests.image_mutations import encoded_images
from tests.parsers import PARSERS, Parser
from tests.rare_images import UNREADABLE

EXAMPLES = 40
JSON_PARSERS = [name for name, parser in PARSERS.items() if parser.kind == "json"]

texts = st.text(st.characters(), max_size=8) | st.sampled_from(ODD_TEXTS)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def few(cost: int) -> settings:
    return settings(
        max_examples=max(6, EXAMPLES // cost),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@pytest.fixture
def written(tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> tuple[Parser, pathlib.Path, bytes]:
    parser = PARSERS[request.param]
    parser.write(tmp_path)
    return parser, tmp_path, (tmp_path / parser.file).read_bytes()


def read_or_refused(parser: Parser, place: pathlib.Path, content: bytes) -> bool:
    """Tell whether a file is accepted; fail if it is neither that nor refused in one line."""
    (place / parser.file).write_bytes(content)
    try:
        parser.read(place)
    except CapjaxError as error:
        assert str(error) and str(error).isprintable()
        return False
    return True


@pytest.mark.parametrize("written", PARSERS, indirect=True)
def test_damaged_files_are_read_or_refused_in_one_line(written, wrong_types_allowed):
    parser, place, whole = written
    assert read_or_refused(parser, place, whole), "the file is read before it is damaged"

    @few(parser.cost)
    @given(st.randoms(use_true_random=False))
    def check(rng: random.Random) -> None:
        read_or_refused(parser, place, damaged(parser.kind, whole, b"", rng))

    check()


@pytest.mark.parametrize("written", JSON_PARSERS, indirect=True)
def test_any_json_in_a_place_of_a_document_is_read_or_refused_in_one_line(written, wrong_types_allowed):
    parser, place, whole = written

    @few(parser.cost)
    @given(values, st.randoms(use_true_random=False))
    def check(value: Any, rng: random.Random) -> None:
        read_or_refused(parser, place, json.dumps(replaced(json.loads(whole), value, rng)).encode())

    check()


def test_the_harness_keeps_what_ends_in_a_traceback_and_measures_the_rest(tmp_path, monkeypatch):
    outcomes = []
    reader = fuzz.Reader(tmp_path, seed=0)
    vocabulary, image = fuzz.Variant("vocabulary", 3, False), fuzz.Variant("PNG", 3, True)
    for variant in (vocabulary, image):
        assert reader.make(variant) == fuzz.Reader(tmp_path / variant.name, seed=0).make(variant)
        outcomes.append(fuzz.outcome_of(reader, variant, reader.make(variant)))
    assert {outcome.kind for outcome in outcomes} <= {"accepted", "refused"}

    def forget(content: bytes) -> None:
        raise RecursionError("without end") if content else CapjaxError("two\nlines")

    monkeypatch.setattr(fuzz, "_read_image", forget)
    assert fuzz.outcome_of(reader, image, b"x").kind == "another exception"
    assert fuzz.outcome_of(reader, image, b"").kind == "refused", "its line break is shown as an escape"
    monkeypatch.setattr(fuzz, "_read_image", lambda content: bytearray(400_000_000))
    assert fuzz.outcome_of(reader, image, b"x").memory > 200_000_000, "but for freed memory that is used again"


def test_every_format_of_pillow_is_among_the_images_that_are_damaged():
    Image.init()
    known = {name.split(",")[0] for name in (*encoded_images(), *UNREADABLE)}
    # PostScript is not read at all, HEIF by a package of its own.
    assert set(Image.ID) - {"EPS", "HEIF"} <= known
