"""One model that serves: from uploads to the entries of an answer."""

import asyncio
import dataclasses
import functools
import pathlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jax.sharding import Mesh

from capjax.attribution.explainer import Explainer
from capjax.captioning.generator import Caption
from capjax.captioning.loaded_model import LoadedModel
from capjax.decoding.settings import DecoderSettings
from capjax.host.disk import finite_or_none
from capjax.report.explanation import Explanation, explained_json
from capjax.serving.admission import Admission
from capjax.serving.batching import Batcher
from capjax.serving.intake import Photo, UploadedImage, read_photo
from capjax.serving.limits import Limits
from capjax.serving.metrics import Metrics
from capjax.serving.problems import Problem, busy
from capjax.serving.programs import Programs
from capjax.serving.searches import SearchRules


class Service:
    """Captions uploads with one model.

    Attributes:
        limits: that it was given.
        rules: of searches.
        admission: counts what is in the house.
        metrics: count what happened.
        is_ready: whether all sizes of batches are compiled.
    """

    def __init__(self, model: LoadedModel, search: DecoderSettings, limits: Limits, mesh: Mesh) -> None:
        """Prepare to start.

        Args:
            model: that captions.
            search: of requests that say nothing about it.
            limits: of what is taken on.
            mesh: the devices that batches are divided over.

        Raises:
            CapjaxError: if the model has no encoder to look at photos with, or cannot be searched so.
        """
        self._preprocessing = model.require_preprocessing("capjax evaluate scores it on such features")
        self._model, self.limits = model, limits
        self.rules = SearchRules(model, search)
        programs = Programs(model, self.rules, limits.batch_sizes, limits.max_searches, mesh)
        self._batcher = Batcher(programs, limits.batch_wait_ms / 1000, lambda number: self.metrics.batch(number))
        self.admission = Admission(limits)
        self.metrics = Metrics(limits.batch_sizes, lambda: self._batcher.num_waiting)
        self.is_ready = False
        self._decoders = ThreadPoolExecutor(limits.decode_threads, "decode")
        self._explanations = ThreadPoolExecutor(1, "explain")  # each takes all cores, and its program is compiled once

    def start(self, on_ready: Callable[[Exception | None], None]) -> None:
        """Compile, on a thread; `on_ready` is told, on that thread, when it is done or why it failed."""

        def ready(error: Exception | None) -> None:
            self.is_ready = error is None
            on_ready(error)

        self._batcher.start(self.rules.default, ready)

    def close(self, timeout: float) -> bool:
        """Stop; return whether all threads of JAX ended within `timeout` seconds each."""
        self.is_ready = False
        for pool in (self._decoders, self._explanations):
            pool.shutdown(wait=False, cancel_futures=True)
        return self._batcher.close(timeout)

    @property
    def is_alive(self) -> bool:
        """Whether it can still answer."""
        return self._batcher.is_alive

    @property
    def name(self) -> dict[str, str]:
        """The model as every answer names it."""
        name = "/".join(pathlib.Path(self._model.path).resolve().parts[-2:])  # with the run that it is of
        return {"name": name, "sha256": self._model.weights_sha256}

    def describe(self) -> dict[str, Any]:
        """Say what the model is and what it can be asked for."""
        config = self._model.config
        return {
            "model": self.name,
            "recipe": config.recipe,
            "decoder": config.decoder.name,
            "vocabulary_size": len(self._model.vocabulary),
            "image_size": self._preprocessing.image_size,
            "crop": self._preprocessing.crop,
            "scores": self._model.summary["scores"],
            "search": self.rules.default.to_dict(),
            "fields": self.rules.fields(),
            "limits": dataclasses.asdict(self.limits),
        }

    async def answer(self, images: list[UploadedImage], settings: DecoderSettings, explain: bool) -> list[Any]:
        """Caption the images of a request.

        Returns:
            For each image the members of its entry, or the problem that it has.

        Raises:
            Problem: if it takes too long.
        """
        try:
            async with asyncio.timeout(self.limits.answer_seconds), asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._entry(image, settings, explain)) for image in images]
        except TimeoutError:
            raise busy(
                f"expected an answer within {self.limits.answer_seconds:g} seconds, there is more to do; send fewer "
                "images at once, or try again later"
            ) from None
        return [task.result() for task in tasks]

    async def _entry(self, image: UploadedImage, settings: DecoderSettings, explain: bool) -> dict[str, Any] | Problem:
        in_thread = asyncio.get_running_loop().run_in_executor
        read = functools.partial(read_photo, image.content, self.limits.max_pixels, self._preprocessing)
        try:
            photo = await in_thread(self._decoders, read)
        except Problem as problem:
            self.metrics.image(captioned=False)
            return problem
        caption = await asyncio.wrap_future(self._batcher.submit(photo, settings))
        entry = {"file": image.name, **_members(caption)}
        if explain:
            explanation = await in_thread(self._explanations, self._explain, photo, caption)
            entry["explanation"] = explained_json(explanation, self._preprocessing.crop)
        self.metrics.image(captioned=True)
        return entry

    def _explain(self, photo: Photo, caption: Caption) -> Explanation:
        return self._explainer(photo.pixels, caption)

    @functools.cached_property
    def _explainer(self) -> Explainer:
        return Explainer(self._model, max_words=self.rules.longest)


def _members(caption: Caption) -> dict[str, Any]:
    alternatives = [{"caption": text, "log_prob": finite_or_none(score)} for text, score in caption.alternatives]
    return {"caption": caption.text, "log_prob": finite_or_none(caption.log_prob), "alternatives": alternatives}
