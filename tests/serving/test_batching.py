"""Batches as they are made of what waits, with programs that a test holds up as it likes."""

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest

from capjax.captioning.generator import Caption
from capjax.captioning.loaded_model import LoadedModel
from capjax.decoding.settings import DecoderSettings
from capjax.serving.batching import Batcher
from capjax.serving.intake import Photo
from capjax.serving.programs import Programs
from capjax.serving.searches import SearchRules
from capjax.sharding import make_mesh

OWN = DecoderSettings()
OTHER = DecoderSettings(method="beam", beam_size=2)


class HeldPrograms(Programs):
    """Programs that say the id of an image, once the test lets them."""

    def __init__(self, model: LoadedModel) -> None:
        super().__init__(model, SearchRules(model, OWN), (1, 4), 2, make_mesh())
        self.may_caption, self.may_compile = threading.Event(), threading.Event()
        self.begun, self.compiling = threading.Event(), threading.Event()
        self.batches: list[list[int]] = []
        self.compiled: set[DecoderSettings] = set()
        self.broken: set[int] = set()

    @property
    def max_batch(self) -> int:
        return 4

    def find(self, settings):
        return settings if settings in self.compiled else None

    def prepare(self, settings):
        if settings != OWN:
            self.compiling.set()
            assert self.may_compile.wait(60)
        if settings.max_length == 13:
            raise RuntimeError("does not compile")
        self.compiled.add(settings)

    def caption(self, generator, images, image_ids, settings):
        self.batches.append(image_ids.tolist())
        self.begun.set()
        assert self.may_caption.wait(60)
        if self.broken & set(image_ids.tolist()):
            raise RuntimeError("a broken device")
        return [Caption(int(i), f"{settings.method} {i}", -1.0) for i in image_ids]


@pytest.fixture
def programs(model: LoadedModel) -> HeldPrograms:
    return HeldPrograms(model)


@pytest.fixture(autouse=True)
def unchecked(wrong_types_allowed: None) -> None:
    """A stand-in for a compiled search is none."""


@contextlib.contextmanager
def running(programs: HeldPrograms, wait_seconds: float) -> Iterator[Batcher]:
    made = Batcher(programs, wait_seconds, lambda number: None)
    ready: Future[Exception | None] = Future()
    made.start(OWN, ready.set_result)
    assert ready.result(60) is None
    try:
        yield made
    finally:
        programs.may_caption.set()
        programs.may_compile.set()
        assert made.close(60)


@pytest.fixture
def batcher(programs: HeldPrograms) -> Iterator[Batcher]:
    with running(programs, 0.0) as made:
        yield made


def photo(image_id: int) -> Photo:
    return Photo(np.zeros((75, 75, 3), np.uint8), image_id)


def test_what_waits_while_a_batch_is_worked_on_shares_the_next(programs: HeldPrograms, batcher: Batcher) -> None:
    first = batcher.submit(photo(0), OWN)
    assert programs.begun.wait(60)
    others = [batcher.submit(photo(i), OWN) for i in range(1, 8)]
    assert batcher.num_waiting == 7
    programs.may_caption.set()
    assert [future.result(60).text for future in [first, *others]] == [f"greedy {i}" for i in range(8)]
    assert programs.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]


def test_a_full_batch_is_captioned_at_once_and_one_that_may_yet_fill_up_is_not(programs: HeldPrograms) -> None:
    programs.may_caption.set()
    with running(programs, wait_seconds=3600) as batcher:
        waiting = [batcher.submit(photo(1), OWN)]
        assert not programs.begun.wait(0.2)
        waiting += [batcher.submit(photo(i), OWN) for i in (2, 3, 4)]
        assert [future.result(60).image_id for future in waiting] == [1, 2, 3, 4]
    assert programs.batches == [[1, 2, 3, 4]]


def test_an_image_that_nothing_shares_a_batch_with_has_waited_as_long_as_it_should(programs: HeldPrograms) -> None:
    programs.may_caption.set()
    with running(programs, wait_seconds=0.3) as batcher:
        begin = time.monotonic()
        assert batcher.submit(photo(1), OWN).result(60).text == "greedy 1"
        assert time.monotonic() - begin >= 0.3


def test_searches_take_turns_by_the_first_image_that_waits_for_each(programs: HeldPrograms, batcher: Batcher) -> None:
    programs.compiled.add(OTHER)
    waiting = [batcher.submit(photo(0), OWN)]
    assert programs.begun.wait(60)
    waiting += [batcher.submit(photo(i), OTHER if i == 99 else OWN) for i in (1, 99, *range(2, 9))]
    programs.may_caption.set()
    assert all(future.result(60) for future in waiting)
    assert programs.batches == [[0], [1, 2, 3, 4], [99], [5, 6, 7, 8]], "a full batch that came later waits its turn"


def test_a_search_that_is_being_compiled_holds_nobody_up(programs: HeldPrograms, batcher: Batcher) -> None:
    programs.may_caption.set()
    waits = batcher.submit(photo(1), OTHER)
    assert batcher.submit(photo(2), OWN).result(60).text == "greedy 2"
    assert not waits.done()
    programs.may_compile.set()
    assert waits.result(60).text == "beam 1"


def test_who_has_gone_is_not_captioned(programs: HeldPrograms, batcher: Batcher) -> None:
    first = batcher.submit(photo(0), OWN)
    assert programs.begun.wait(60)
    gone, stays = batcher.submit(photo(1), OWN), batcher.submit(photo(2), OWN)
    gone.cancel()
    compiles = batcher.submit(photo(3), OTHER)
    compiles.cancel()
    programs.may_caption.set()
    assert first.result(60) and stays.result(60)
    assert programs.batches == [[0], [2]]
    batcher.submit(photo(4), OWN).result(60)
    assert batcher.num_waiting == 0


def test_who_goes_just_as_a_batch_is_made_is_not_captioned(
    programs: HeldPrograms, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Batcher, "_forget_cancelled", lambda self: None)  # it came too early to notice
    batcher.submit(photo(0), OWN)
    assert programs.begun.wait(60)
    gone, stays = batcher.submit(photo(1), OWN), batcher.submit(photo(2), OWN)
    gone.cancel()
    programs.may_caption.set()
    assert stays.result(60).text == "greedy 2"
    assert batcher.submit(photo(3), OWN).result(60).text == "greedy 3"
    assert programs.batches == [[0], [2], [3]] and batcher.is_alive


def test_who_has_gone_does_not_pile_up_while_both_threads_are_busy(programs: HeldPrograms, batcher: Batcher) -> None:
    batcher.submit(photo(0), OWN)
    batcher.submit(photo(1), OTHER)
    assert programs.begun.wait(60) and programs.compiling.wait(60)
    for i in range(2, 7):
        batcher.submit(photo(i), OWN).cancel()
    batcher.submit(photo(7), OWN)
    assert batcher.num_waiting == 2, "the one whose search is being compiled, and the last"


def test_a_batch_that_fails_takes_no_other_with_it(programs: HeldPrograms, batcher: Batcher) -> None:
    programs.broken.add(5)
    programs.may_caption.set()
    with pytest.raises(RuntimeError, match="a broken device"):
        batcher.submit(photo(5), OWN).result(60)
    assert batcher.submit(photo(6), OWN).result(60).text == "greedy 6"
    assert batcher.is_alive


def test_a_search_that_does_not_compile_takes_no_other_with_it(programs: HeldPrograms, batcher: Batcher) -> None:
    programs.may_caption.set()
    programs.may_compile.set()
    with pytest.raises(RuntimeError, match="does not compile"):
        batcher.submit(photo(1), DecoderSettings(max_length=13)).result(60)
    assert batcher.submit(photo(2), OTHER).result(60).text == "beam 2"


def test_a_failure_at_the_start_is_told(programs: HeldPrograms) -> None:
    made = Batcher(programs, 0.0, lambda number: None)
    told: Future[Exception | None] = Future()
    made.start(DecoderSettings(max_length=13), told.set_result)
    programs.may_compile.set()
    assert str(told.result(60)) == "does not compile"
    made._threads[0].join(60)  # the one that compiles; the other goes on
    assert made._threads[1].is_alive() and not made.is_alive
    assert made.close(60)
