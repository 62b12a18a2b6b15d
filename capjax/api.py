"""capjax from a program: five functions that do what the commands do.

    model = capjax.train_model("flickr8k:imported", "runs/flickr8k", {"train.num_steps": 2000})
    report = capjax.evaluate_model(model, "val", "runs/flickr8k/evaluation", beam_size=3)
    captions = capjax.caption_photos(capjax.load_model("demo/run/model"), "holiday", num_captions=3, beam_size=5)

All raise `capjax.errors.CapjaxError`, whose text is one line for the user: what was expected, what came, what to
change.
"""

import functools
import os
import pathlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image

from capjax import config as configuration
from capjax import evaluate, train
from capjax.captioning import loaded_model
from capjax.captioning.generator import Caption
from capjax.captioning.loaded_model import LoadedModel, check_ensemble
from capjax.captioning.photos import PhotoCaptioner, find_photos
from capjax.errors import CapjaxError
from capjax.host.disk import local_path
from capjax.images import MIN_SIDE, load_rgb
from capjax.metrics.coco_caption import DEFAULT_METRICS, References, score
from capjax.metrics.score_report import metric_names, score_report

PathLike = str | os.PathLike[str]
Photo = PathLike | Image.Image | UInt8[np.ndarray, "H W 3"]


def load_model(path: PathLike) -> LoadedModel:
    """Restore a model directory.

    Args:
        path: the folder, such as `runs/reference/model`.

    Returns:
        The captioner, its weights and its vocabulary, and what is known of its training.

    Raises:
        CapjaxError: if the folder is no model directory, or a damaged one.
    """
    if not isinstance(path, str | os.PathLike):
        raise CapjaxError(f"expected the path of a model directory, got {type(path).__name__}")
    return loaded_model.load_model(os.fspath(path))


def caption_photos(
    model: LoadedModel | Sequence[LoadedModel], photos: Photo | Sequence[Photo], *, batch_size: int = 16, **search: Any
) -> list[Caption]:
    """Caption photos. The first call compiles, as does one with other settings; the two models used last are kept.

    Args:
        model: one, or several that vote: an ensemble, whose models share a vocabulary.
        photos: image files, folders of them, PIL images, or RGB pixels uint8 [H, W, 3].
        batch_size: photos captioned at once.
        search: settings other than the model's own, such as `beam_size=3`: see `capjax.decoding.settings`.

    Returns:
        A caption for each photo, in order: its `text`, its `log_prob`, and with `num_captions` its `alternatives`.

    Raises:
        CapjaxError: if a photo cannot be read, or a setting makes no sense.
    """
    models = _models(model)
    several = isinstance(photos, Iterable) and not isinstance(photos, str | bytes | np.ndarray | Image.Image)
    found = [one for photo in (photos if several else [photos]) for one in _readable(photo)]
    captions = list(_photo_captioner(tuple(models), batch_size)(found, models[0].search.updated(search)))
    for photo, caption in zip(found, captions, strict=True):
        if isinstance(caption, CapjaxError):
            raise CapjaxError(f"{photo}: {caption}")
    return captions


def train_model(
    config: PathLike | ConfigDict, workdir: PathLike, changes: Mapping[str, Any] | None = None
) -> LoadedModel:
    """Train a captioner, or go on where an earlier call stopped.

    Args:
        config: a recipe (`reference`, `flickr8k:imported`), a file with `get_config()`, or what that returns.
        workdir: of the run; a call with one that holds a run resumes it.
        changes: of fields of the configuration, such as `{"train.num_steps": 1000}`.

    Returns:
        The best model, which lies in `workdir/model`.

    Raises:
        CapjaxError: if something in the configuration or the data does not fit.
        Interrupted: if a Ctrl-C or SIGTERM stopped the run, which the same call goes on with.
    """
    if not isinstance(config, str | os.PathLike | ConfigDict) or not isinstance(changes or {}, Mapping):
        raise CapjaxError(
            "expected a recipe, a file or what its get_config() returns, and changes as {'train.num_steps': 1000}, got "
            f"{type(config).__name__} and {type(changes).__name__}"
        )
    overrides = [f"{name}={_as_override(value)}" for name, value in (changes or {}).items()]
    if isinstance(config, str | os.PathLike):
        config = configuration.load_config(os.fspath(config), overrides)
    else:
        config = configuration.changed(config, overrides)
    workdir = local_path(os.fspath(workdir))
    train.train_and_draw(config, workdir)
    return load_model(workdir / "model")


def evaluate_model(
    model: LoadedModel | Sequence[LoadedModel],
    split: str = "test",
    out: PathLike | None = None,
    *,
    batch_size: int = 64,
    max_images: int = 0,
    metrics: str | Sequence[str] = DEFAULT_METRICS,
    **search: Any,
) -> dict[str, Any]:
    """Caption a split of the dataset that a model was trained on, score the captions, and write the report page.

    Args:
        model: one, or several that vote.
        split: of the dataset.
        out: the folder to write; by default `evaluation-SPLIT` beside the (first) model, here if that is of the hub.
        batch_size: images decoded at once on each device.
        max_images: the first so many, 0 for all.
        metrics: names of metrics, in a list or with commas.
        search: settings other than the model's own.

    Returns:
        The content of metrics.json: scores by name, intervals, the health of the captions, every setting.

    Raises:
        CapjaxError: if the split, its images or its features are not there, a setting makes no sense, or `out` cannot
            be written.
    """
    models = _models(model)
    loaded = ", ".join(f"capjax.load_model({each.path!r})" for each in models)
    asked = {"max_images": max_images, "metrics": metrics, **search}
    told = "".join(f", {name}={value!r}" for name, value in asked.items())
    out = local_path(os.fspath(out)) if out is not None else models[0].workdir / f"evaluation-{split}"
    return evaluate.evaluate(
        models,
        models[0].config,
        split,
        models[0].search.updated(search),
        out,
        batch_size=batch_size,
        max_images=max_images,
        metrics=_names(metrics),
        command=f"capjax.evaluate_model({loaded if len(models) == 1 else f'[{loaded}]'}, {split!r}{told})",
    )


def score_captions(
    references: Mapping[Hashable, Sequence[str]],
    captions: Mapping[Hashable, str],
    metrics: str | Sequence[str] = DEFAULT_METRICS,
    *,
    bootstrap_samples: int = 1000,
) -> dict[str, Any]:
    """Score captions, as the published COCO scorer does.

    Args:
        references: what people wrote of each image.
        captions: what is scored, of the same images.
        metrics: names of metrics, in a list or with commas.
        bootstrap_samples: draws for the intervals, 0 for none.

    Returns:
        Scores by name (unscaled: CIDEr-D of 1.0 is what papers print as 100), `intervals`, `health` and `settings`, and
        `per_image`: the scores of each image by the name of the metric.

    Raises:
        CapjaxError: if they are not of the same images, or there is no such metric.
    """
    for what, given in {"references": references, "captions": captions}.items():
        if not isinstance(given, Mapping):
            raise CapjaxError(f"expected {what} by image, such as {{'1.jpg': …}}, got {type(given).__name__}")
    number = {image: i for i, image in enumerate(references)}
    if unlike := sorted(map(str, set(references) ^ set(captions))):
        raise CapjaxError(
            f"expected captions of the images of the references, {len(unlike)} are in one of them alone: {unlike[0]}"
        )
    for image, texts in references.items():
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
            raise CapjaxError(f"expected a list of sentences as references of {image!r}, got {texts!r}")
    for image, text in captions.items():
        if not isinstance(text, str):
            raise CapjaxError(f"expected a sentence as the caption of {image!r}, got {text!r}")
    known = References({number[image]: list(texts) for image, texts in references.items()})
    hypotheses = {number[image]: text for image, text in captions.items()}
    scores = score(known, hypotheses, _names(metrics))
    report = score_report(scores, known, hypotheses, bootstrap_samples=bootstrap_samples, decoder="unknown")
    images = list(references)
    report["per_image"] = {
        name: {images[i]: value for i, value in values.items()} for name, values in scores.per_image.items()
    }
    return report


@functools.lru_cache(maxsize=2)
def _photo_captioner(models: tuple[LoadedModel, ...], batch_size: int) -> PhotoCaptioner:
    """Keep the weights on the devices, and what was compiled, for the next call with the same models."""
    return PhotoCaptioner(models, batch_size)


def _names(metrics: str | Sequence[str]) -> tuple[str, ...]:
    return metric_names(metrics if isinstance(metrics, str) else ",".join(metrics))


def _as_override(value: Any, separator: str = ",") -> str:
    """Write a value as the command line has it: words of a search with commas, alternatives among them with bars."""
    return separator.join(_as_override(each, "|") for each in value) if isinstance(value, list | tuple) else str(value)


def _readable(photo: Photo) -> list[pathlib.Path | np.ndarray]:
    """Return the files, or the pixels, that a photo is, or several in a folder.

    Raises:
        CapjaxError: if it is nothing that can be captioned.
    """
    if isinstance(photo, str | os.PathLike):
        return find_photos([os.path.expanduser(photo)])
    if isinstance(photo, Image.Image):
        return [np.asarray(load_rgb(photo))]
    if not isinstance(photo, np.ndarray):
        raise CapjaxError(
            f"expected photos as names of files, PIL images or pixels uint8 [H, W, 3], got {type(photo).__name__}"
        )
    if photo.dtype != np.uint8 or photo.shape[2:] != (3,) or min(photo.shape[:2]) < MIN_SIDE:
        raise CapjaxError(
            f"expected pixels uint8 [H, W, 3] of at least {MIN_SIDE}×{MIN_SIDE}, got {photo.dtype} "
            f"{list(photo.shape)}; np.uint8(255 * x) makes them of floats from 0 to 1, PIL.Image.fromarray(x) takes "
            "grey and transparent ones, and several photos come in a list"
        )
    return [photo]


def _models(model: LoadedModel | Sequence[LoadedModel]) -> list[LoadedModel]:
    models = list(model) if isinstance(model, Iterable) else [model]
    if not models or not all(isinstance(each, LoadedModel) for each in models):
        raise CapjaxError(f"expected a model that load_model or train_model returned, or several, got {model!r}")
    check_ensemble(models)
    return models
