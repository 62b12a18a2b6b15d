"""Images that wait are captioned in batches: what arrives together shares one, and what compiles holds nobody up."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from capjax.captioning.generator import Caption, Generator
from capjax.decoding.settings import DecoderSettings
from capjax.serving.intake import Photo
from capjax.serving.programs import Programs

logger = logging.getLogger(__name__)


class _Waiting(NamedTuple):
    photo: Photo
    caption: "Future[Caption]"
    since: float


class _Batch(NamedTuple):
    settings: DecoderSettings
    generator: Generator
    images: list[_Waiting]


class Batcher:
    """Two threads and the images that wait for them, grouped by the search that they are to be captioned with.

    One thread captions, in the order of arrival, the groups whose search is compiled. The other compiles the searches
    of the other groups, one after another. Who has ceased to wait cancels the future, and its image goes. How many
    wait is bounded by who submits (`capjax.serving.admission`).
    """

    def __init__(self, programs: Programs, wait_seconds: float, on_batch: Callable[[int], None]) -> None:
        """Prepare to start.

        Args:
            programs: that caption.
            wait_seconds: that an image waits for others to share its batch, at most, while nothing else is done.
            on_batch: is told the number of images of every batch, on a thread of the batcher.
        """
        self._programs, self._wait_seconds, self._on_batch = programs, wait_seconds, on_batch
        self._groups: dict[DecoderSettings, deque[_Waiting]] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._threads: list[threading.Thread] = []

    def start(self, own: DecoderSettings, on_ready: Callable[[Exception | None], None]) -> None:
        """Start to work.

        Args:
            own: the server's own search, compiled before anything else.
            on_ready: is told, on a thread of the batcher, that it is compiled, or why it could not be.
        """

        def compile_own() -> None:
            try:
                self._programs.prepare(own)
            except Exception as error:
                on_ready(error)
            else:
                on_ready(None)
                self._compile_for_ever()

        for name, work in (("compile", compile_own), ("caption", self._caption_for_ever)):
            self._threads.append(threading.Thread(target=work, name=name, daemon=True))
            self._threads[-1].start()

    @property
    def num_waiting(self) -> int:
        """Images that no thread has taken up yet."""
        with self._changed:
            return sum(map(len, self._groups.values()))

    @property
    def is_alive(self) -> bool:
        """Whether both threads run."""
        return bool(self._threads) and all(thread.is_alive() for thread in self._threads)

    def submit(self, photo: Photo, settings: DecoderSettings) -> "Future[Caption]":
        """Let an image wait; return its caption to come."""
        waiting = _Waiting(photo, Future(), time.monotonic())
        with self._changed:
            self._forget_cancelled()
            self._groups.setdefault(settings, deque()).append(waiting)
            self._changed.notify_all()
        return waiting.caption

    def close(self, timeout: float) -> bool:
        """Stop; return whether both threads ended within `timeout` seconds each."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout)
        return not any(thread.is_alive() for thread in self._threads)

    def _forget_cancelled(self) -> None:
        for settings, group in list(self._groups.items()):
            kept = deque(waiting for waiting in group if not waiting.caption.cancelled())
            if kept:
                self._groups[settings] = kept
            else:
                del self._groups[settings]

    def _caption_for_ever(self) -> None:
        while batch := self._next_batch():
            self._caption(batch)

    def _next_batch(self) -> _Batch | None:
        """Wait for a batch that is due: a full one, or one whose first image has waited long enough."""
        with self._changed:
            while not self._closing:
                self._forget_cancelled()
                now, most = time.monotonic(), self._programs.max_batch
                found = [
                    (group[0].since + (0 if len(group) >= most else self._wait_seconds), settings, generator)
                    for settings, group in self._groups.items()
                    if (generator := self._programs.find(settings))
                ]
                if not found:
                    self._changed.wait()
                    continue
                due, settings, generator = min(found, key=lambda entry: entry[0])
                if due > now:
                    self._changed.wait(due - now)
                    continue
                group = self._groups[settings]
                taken = [group.popleft() for _ in range(min(most, len(group)))]
                if not group:
                    del self._groups[settings]
                if images := [w for w in taken if w.caption.set_running_or_notify_cancel()]:
                    return _Batch(settings, generator, images)
        return None

    def _caption(self, batch: _Batch) -> None:
        images = batch.images
        self._on_batch(len(images))
        try:
            captions = self._programs.caption(
                batch.generator,
                np.stack([waiting.photo.pixels for waiting in images]),
                np.asarray([waiting.photo.image_id for waiting in images], np.int64),
                batch.settings,
            )
        except Exception as error:
            for waiting in images:
                waiting.caption.set_exception(error)
            return
        for waiting, caption in zip(images, captions, strict=True):
            waiting.caption.set_result(caption)

    def _compile_for_ever(self) -> None:
        while settings := self._next_to_compile():
            try:
                self._programs.prepare(settings)
            except Exception as error:
                logger.warning("could not compile %s: %s", settings, error)
                with self._changed:
                    failed = self._groups.pop(settings, deque())
                for waiting in failed:
                    if waiting.caption.set_running_or_notify_cancel():
                        waiting.caption.set_exception(error)
            with self._changed:
                self._changed.notify_all()

    def _next_to_compile(self) -> DecoderSettings | None:
        """Wait for a search that is not compiled and that an image waits for."""
        with self._changed:
            while not self._closing:
                self._forget_cancelled()
                for settings in self._groups:
                    if not self._programs.find(settings):
                        return settings
                self._changed.wait()
        return None
