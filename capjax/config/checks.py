"""What the values of a configuration may be, alone and together."""

import difflib
import math

from ml_collections import ConfigDict

from capjax.config.fields import OF_DRAWN_ENCODERS, default_config, flat
from capjax.decoding.settings import DecoderSettings
from capjax.errors import CapjaxError
from capjax.host.disk import local_path

DTYPES = ("bfloat16", "float32")
STORED_DTYPES = ("float16", "float32", "uint8")


def check(config: ConfigDict) -> None:
    """Refuse values that make no sense, alone or together.

    Raises:
        CapjaxError: naming the field, its value and what it may be.
    """
    least = {
        "seed": 0,
        "vocabulary.min_count": 1,
        "vocabulary.multiple_of": 1,
        "mesh.model_parallel": 1,
        "features.batch_size": 1,
        "train.num_steps": 1,
        "train.batch_size": 1,
        "train.captions_per_image": 1,
        "train.max_tokens": 2,
        "train.accumulate_steps": 1,
        "train.num_workers": 0,
        "train.log_every": 1,
        "train.checkpoint_every": 1,
        "train.keep_checkpoints": 1,
        "eval.every": 1,
        "eval.batch_size": 1,
        "eval.max_images": 0,
        "eval.patience": 0,
        "log.num_pictures": 0,
        "optimizer.learning_rate": 0,
        "optimizer.clip_norm": 0,
        "optimizer.weight_decay": 0,
        "optimizer.warmup_steps": 0,
        "optimizer.decay_steps": 0,
        "encoder.image_size": 1,
        "encoder.learning_rate_scale": 0,
        "encoder.grid_side": 0,
    }
    fields = flat(config)
    expected = [name for name in flat(default_config()) if not name.startswith("decoder.")]
    if missing := [name for name in (*expected, "decoder.name") if name not in fields]:
        raise CapjaxError(f"expected a field {missing[0]} in the configuration, got none; begin with default_config()")
    if unknown := [name for name in fields if name not in expected and not name.startswith("decoder.")]:
        near = difflib.get_close_matches(unknown[0], expected, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise CapjaxError(f"expected no field {unknown[0]} in the configuration, which capjax does not know{hint}")
    if endless := [name for name, value in fields.items() if isinstance(value, float) and not math.isfinite(value)]:
        raise CapjaxError(f"expected {endless[0]} to be a finite number, got {fields[endless[0]]}")
    if empty := [name for name, value in fields.items() if value is None]:
        raise CapjaxError(f"expected {empty[0]} to have a value, got None")
    # Whole numbers of a decoder are sizes and numbers of parts.
    least |= {name: 1 for name, value in fields.items() if name.startswith("decoder.") and type(value) is int}
    least |= {name: 0 for name, value in fields.items() if name.startswith("decoder.") and type(value) is float}
    for name, low in least.items():
        if not fields[name] >= low:
            raise CapjaxError(f"expected {name} of at least {low}, got {fields[name]}")
        if name != "seed" and type(fields[name]) is int and fields[name] >= 2**31:
            raise CapjaxError(f"expected {name} below 2^31, got {fields[name]}")
    train, encoder = config.train, config.encoder
    if config.seed >= 2**32:
        raise CapjaxError(f"expected seed below 2^32, got {config.seed}")
    if not 0 <= train.label_smoothing < 1:
        raise CapjaxError(f"expected train.label_smoothing in [0, 1), got {train.label_smoothing}")
    if not 0 <= train.ema_decay < 1:
        raise CapjaxError(f"expected train.ema_decay in [0, 1), got {train.ema_decay}")
    if not 0 <= config.decoder.get("dropout_rate", 0.0) < 1:
        raise CapjaxError(f"expected decoder.dropout_rate in [0, 1), got {config.decoder.dropout_rate}")
    try:
        DecoderSettings.from_dict(config.search.to_dict())
    except CapjaxError as error:
        raise CapjaxError(f"search: {error}") from None
    if train.batch_size % train.captions_per_image:
        raise CapjaxError(
            f"expected train.captions_per_image that divides train.batch_size ({train.batch_size}), "
            f"got {train.captions_per_image}"
        )
    if (train.batch_size // train.captions_per_image) % train.accumulate_steps:
        raise CapjaxError(
            f"expected train.accumulate_steps that divides the {train.batch_size // train.captions_per_image} images "
            f"of a batch, got {train.accumulate_steps}"
        )
    longest = config.decoder.get("max_length")
    if longest is not None and longest < max(config.search.max_length, train.max_tokens - 1):
        raise CapjaxError(
            f"expected decoder.max_length of at least search.max_length ({config.search.max_length}) and the words of "
            f"train.max_tokens ({train.max_tokens}), got {longest}"
        )
    for name, choices in {"train.dtype": DTYPES, "encoder.dtype": DTYPES, "features.dtype": STORED_DTYPES}.items():
        if fields[name] not in choices:
            raise CapjaxError(f"expected {name} out of {sorted(choices)}, got {fields[name]!r}")
    if config.features.dir and (encoder.learning_rate_scale or encoder.train_batch_norm):
        field = "learning_rate_scale" if encoder.learning_rate_scale else "train_batch_norm"
        raise CapjaxError(
            f"encoder.{field} is set, but cached features cannot train the encoder that made them; train from images "
            "with --config.features.dir="
        )
    if config.features.dir and not encoder.weights:
        for name, unset in {"encoder.endpoint": "", "encoder.grid_side": 0, "features.dtype": "float32"}.items():
            if fields[name] != unset:
                raise CapjaxError(
                    f"{name} is set, but imported features are kept as they are, in float32; leave it at {unset!r}"
                )
    usual = flat(default_config())
    for name in (f"encoder.{field}" for field in OF_DRAWN_ENCODERS):
        if encoder.weights not in ("", "random") and fields[name] != usual[name]:
            hint = "; encoder.endpoint cuts them off" if name == "encoder.final_endpoint" else ""
            raise CapjaxError(
                f"{name} is set, but only for encoder.weights=random it means something, others bring their own; leave "
                f"it at {usual[name]}{hint}"
            )
    for name in ("dataset.data_dir", "features.dir"):
        local_path(fields[name])
