"""The fields of a run's configuration, with their defaults, and how configuration files are read.

A recipe under configs/ starts from `default_config()` and changes what it means to change; the defaults are the
reference system. The ConfigDict is locked: a field that does not exist is an error that names the nearest one.
"""

import argparse
import ast
import dataclasses
import difflib
import importlib.util
import inspect
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from capjax import __version__
from capjax.decoding.settings import DecoderSettings
from capjax.errors import CapjaxError
from capjax.host.disk import local_path, write_atomically
from capjax.models import decoder_settings

DTYPES = ("bfloat16", "float32")
STORED_DTYPES = ("float16", "float32", "uint8")


def default_config() -> ConfigDict:
    """Return the reference system's configuration, every field explained."""
    config = ConfigDict()

    config.recipe = ""  # the file that the configuration comes from, and its argument; set when it is read
    config.seed = 0  # of initial parameters, data order, dropout

    config.dataset = ConfigDict()
    config.dataset.name = "coco/2014"  # a source of capjax.data, prepared with `capjax data prepare`
    config.dataset.data_dir = ""  # where it was prepared; "" is $TFDS_DATA_DIR or ~/tensorflow_datasets
    config.dataset.train_split = "train"  # the split that is trained on
    config.dataset.val_split = "val"  # the split whose scores choose the model that is kept

    config.vocabulary = ConfigDict()
    config.vocabulary.tokenizer = "words"  # "words": the reference's \W+ split; "ptb": the COCO scorer's
    config.vocabulary.min_count = 5  # rarer words of the training captions become UNK
    config.vocabulary.multiple_of = 1  # entries are a multiple of it, filled up with words that nobody uses

    config.mesh = ConfigDict()
    config.mesh.model_parallel = 1  # neighbouring devices that share one part of a batch, and split the vocabulary

    config.encoder = ConfigDict()
    # A file of `capjax weights`, "scenes" (ships with capjax), "random", or "" where features were imported.
    config.encoder.weights = "inception_v3.safetensors"
    config.encoder.endpoint = ""  # cut the weights off behind this block, such as "mixed9"; "" takes them whole
    config.encoder.grid = False  # feed the decoder grid features as well
    config.encoder.grid_side = 0  # average the grid down to this side: 4 makes 16 positions of 64; 0 leaves it
    config.encoder.learning_rate_scale = 0.0  # share of the decoder's learning rate; 0 freezes the encoder
    config.encoder.train_batch_norm = False  # use and update batch statistics while fine-tuning
    # The architecture of a "random" encoder; a weights file knows its own.
    config.encoder.depth_multiplier = 1.0
    config.encoder.final_endpoint = "mixed10"
    config.encoder.image_size = 299
    config.encoder.crop = "center"  # "center": cut to a square; "none": squeeze to one
    config.encoder.resize = "bilinear"  # or "bicubic", "lanczos", "box": the filter of the antialiased resize
    config.encoder.dtype = "float32"  # of its computation: "bfloat16" on accelerators

    config.features = ConfigDict()
    config.features.dir = ""  # the feature store to train from; "" trains from images
    config.features.dtype = "float32"  # of stored features, or "float16", or "uint8" (the grid alone, in 255 steps)
    config.features.batch_size = 64  # images encoded at once on each device

    config.decoder = decoder_config("init_inject")  # a decoder of capjax.models, with the fields that it has

    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"  # or another of `capjax.training.optimizer.OPTIMIZERS`
    config.optimizer.learning_rate = 1e-3  # behind the warm-up, before any decay
    config.optimizer.schedule = "constant"  # "cosine", to zero at the end, or "exponential", in stairs
    config.optimizer.warmup_steps = 0  # steps in which the learning rate rises from zero
    config.optimizer.decay_steps = 0  # steps of a stair of the exponential schedule
    config.optimizer.decay_rate = 0.5  # factor of the learning rate from one stair to the next
    config.optimizer.clip_norm = 0.0  # 0: no clipping
    config.optimizer.weight_decay = 0.0  # of adamw, lion

    config.train = ConfigDict()
    config.train.objective = "cross_entropy"  # of `capjax.training_run.objectives`: or "self_critical"
    config.train.init_from = ""  # a model or workdir, whose weights and vocabulary the run starts from
    config.train.num_steps = 12_000  # updates
    config.train.batch_size = 64  # captions over all devices
    config.train.captions_per_image = 1  # captions that share one encoded image
    config.train.max_tokens = 20  # ids kept of a caption, START included
    config.train.label_smoothing = 0.0  # share of a target that all words divide (Szegedy et al. 2016)
    config.train.accumulate_steps = 1  # microbatches of one update
    config.train.ema_decay = 0.0  # of a moving average of the weights, which then is validated and kept; 0 for none
    config.train.dtype = "float32"  # of the decoder's computation: "bfloat16" on accelerators
    config.train.augment = False  # random crops, when training from images
    config.train.num_workers = 0  # processes that decode images
    config.train.log_every = 50  # steps that a line of the log averages
    config.train.checkpoint_every = 1000  # steps from one checkpoint, to go on from, to the next
    config.train.keep_checkpoints = 2  # the newest so many stay

    # Words are fed as people wrote them with a probability that falls (Bengio et al. 2015), or always.
    config.scheduled_sampling = ConfigDict()
    config.scheduled_sampling.schedule = ""  # "linear", "exponential", "inverse_sigmoid"; "" always
    config.scheduled_sampling.k = 1.0  # its constant, see `capjax.training.scheduled_sampling`
    config.scheduled_sampling.slope = 0.0  # fall of the linear schedule by step
    config.scheduled_sampling.minimum = 0.0  # where the linear schedule ends

    # Reinforcement on CIDEr-D, for train.objective = "self_critical"; see `capjax.training.scst_step`.
    config.self_critical = ConfigDict()
    config.self_critical.num_samples = 5  # captions drawn of each image
    config.self_critical.baseline = "mean"  # of the image's other samples; "greedy": the greedy caption's reward
    config.self_critical.bleu_weight = 0.0  # of BLEU-4 beside CIDEr-D in the reward
    config.self_critical.xe_weight = 0.0  # of the cross-entropy of people's captions beside the reward, by caption
    config.self_critical.temperature = 1.0  # of the distribution that is drawn from and learnt; below 1: sharper

    config.eval = ConfigDict()
    config.eval.every = 1000  # steps between two validations
    config.eval.batch_size = 256  # images at once, with their captions
    config.eval.max_images = 5000  # validation images used, 0 for all
    config.eval.best_metric = "CIDEr-D"  # chooses the model that is kept: or "loss", "accuracy"
    config.eval.patience = 0  # validations without improvement before the run stops; 0 never stops early

    # What TensorBoard shows of every validation beside its scores; for what it costs see
    # `capjax.training_run.validation_summaries`.
    config.log = ConfigDict()
    config.log.num_pictures = 8  # validation pictures with their captions, always the same; 0 for none
    config.log.histograms = True  # of every trained array, and of what it changed by since the validation before

    # How captions are searched for, see `DecoderSettings`; words of the constraints are separated by commas.
    config.search = ConfigDict(
        {field.name: "" if field.default == () else field.default for field in dataclasses.fields(DecoderSettings)}
    )

    config.lock()
    return config


def decoder_config(name: str, **changes: Any) -> ConfigDict:
    """Return the section `decoder`: the named decoder's settings at their defaults, but for `changes`.

    Raises:
        CapjaxError: if there is no such decoder, or it has no such setting.
    """
    settings = decoder_settings(name)
    if unknown := sorted(set(changes) - set(settings)):
        raise CapjaxError(f"decoder {name!r} has no setting {unknown[0]!r}; it has {sorted(settings)}")
    return ConfigDict({"name": name} | settings | changes)


def load_config(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Read a configuration file and apply `section.field=value` overrides.

    Args:
        spec: `FILE` or `FILE:ARGUMENT`, a Python file whose `get_config(arg)` returns a ConfigDict. A bare name means
            the file of that name among the recipes that come with capjax.
        overrides: assignments such as `train.num_steps=100`.

    Raises:
        CapjaxError: if the file is missing or broken, or an override does not fit.
    """
    file, _, argument = spec.partition(":")
    path = pathlib.Path(file)
    if not path.suffix:
        path = _recipes() / f"{file}.py"
    if not path.is_file():
        known = sorted(p.stem for p in _recipes().glob("*.py"))
        raise CapjaxError(f"expected a configuration, a Python file or a recipe out of {known}, got {file!r}")
    module_spec = importlib.util.spec_from_file_location(f"capjax_recipe_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        takes_argument = bool(inspect.signature(module.get_config).parameters)
        if argument and not takes_argument:
            raise CapjaxError(f"the configuration {file} takes no argument, got {argument!r}")
        config = module.get_config(argument) if argument else module.get_config()
        if not isinstance(config, ConfigDict):
            raise TypeError(f"it returned {type(config).__name__}; does it end with `return config`?")
    except CapjaxError:
        raise
    except Exception as error:  # it is anybody's program
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CapjaxError(f"expected {file} to define get_config() -> ConfigDict, got {reason}") from None
    if "recipe" in config:
        config.recipe = ":".join(filter(None, (path.stem, argument)))
    return changed(config, overrides)


def changed(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """Return a configuration with some fields changed, checked.

    Args:
        config: is left as it is.
        overrides: assignments such as `train.num_steps=100`.

    Raises:
        CapjaxError: if an override does not fit, or the values make no sense together.
    """
    config = config.copy_and_resolve_references()
    # Another decoder brings its own fields, which further overrides may set.
    for override in sorted(overrides, key=lambda override: not override.startswith("decoder.name=")):
        _apply(config, override)
    check(config)
    return config.lock()


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
    fields = _fields(config)
    expected = [name for name in _fields(default_config()) if not name.startswith("decoder.")]
    if missing := [name for name in (*expected, "decoder.name") if name not in fields]:
        raise CapjaxError(f"expected a field {missing[0]} in the configuration, got none; begin with default_config()")
    if empty := [name for name, value in fields.items() if value is None]:
        raise CapjaxError(f"expected {empty[0]} to have a value, got None")
    # Whole numbers of a decoder are sizes and numbers of parts.
    least |= {name: 1 for name, value in fields.items() if name.startswith("decoder.") and type(value) is int}
    least |= {name: 0 for name, value in fields.items() if name.startswith("decoder.") and type(value) is float}
    for name, low in least.items():
        if not fields[name] >= low:
            raise CapjaxError(f"expected {name} of at least {low}, got {fields[name]}")
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
                    f"{name} is set, but imported features are kept as their file has them; leave it at {unset!r}"
                )
    for name in ("dataset.data_dir", "features.dir"):
        local_path(fields[name])


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `--config`; the command line collects `--config.field=value` overrides in `args.overrides`."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARG]",
        help="a configuration file or the name of a recipe; --config.SECTION.FIELD=VALUE changes a field",
    )


def _recipes() -> pathlib.Path:
    """Find configs/: beside the package in a checkout, inside it when installed."""
    inside = pathlib.Path(__file__).parent / "configs"
    return inside if inside.is_dir() else pathlib.Path(__file__).parent.parent / "configs"


def _apply(config: ConfigDict, override: str) -> None:
    name, equals, text = override.partition("=")
    known = sorted(_fields(config))
    if not equals:
        raise CapjaxError(f"expected an override like --config.{name}=VALUE, got no value")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        near = near or [field for field in known if field.split(".")[-1] == name.split(".")[-1]]
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; fields are {', '.join(known)}"
        raise CapjaxError(f"the configuration has no field {name!r}{hint}")
    if name == "decoder.name" and text != config.decoder.name:
        with config.unlocked():
            config.decoder = decoder_config(text)
        return
    section, _, field = name.rpartition(".")
    parent = config
    for part in filter(None, section.split(".")):
        parent = parent[part]
    parent[field] = _parse(name, text, parent[field])


def _fields(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Flatten a configuration to {"section.field": value}."""
    fields: dict[str, Any] = {}
    for key, value in config.items():
        fields |= _fields(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {prefix + key: value}
    return fields


def _parse(name: str, text: str, old: Any) -> Any:
    """Read `text` as a value of the type of `old`."""
    if isinstance(old, str):
        return os.path.expanduser(text)  # no shell does so in the middle of a word
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
        if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
    except (ValueError, SyntaxError, OverflowError, RecursionError, MemoryError):  # the last two if it is nested
        value = text
    if type(value) is not type(old):
        raise CapjaxError(f"expected --config.{name} to be {type(old).__name__} like {old!r}, got {text!r}")
    return value


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """Turn a configuration into plain JSON values."""
    return json.loads(config.to_json_best_effort())


def changes(config: ConfigDict) -> dict[str, Any]:
    """Return what a configuration changes of the defaults, by `section.field`; of its decoder, by that one's own."""
    usual = default_config()
    with usual.unlocked():
        usual.decoder = decoder_config(config.decoder.name)
    defaults = _fields(usual) | {"decoder.name": None}
    return {name: value for name, value in _fields(config).items() if value != defaults[name]}


def from_dict(values: Mapping[str, Any], where: str) -> ConfigDict:
    """Restore a configuration that was stored as JSON; fields that are newer than it have their defaults.

    Args:
        values: what `to_dict` gave, in this version of capjax or an older one.
        where: the file they come from, for messages.

    Raises:
        CapjaxError: if a field is unknown to this version, or holds something else than it should.
    """
    config = default_config()
    decoder = values.get("decoder")
    name = decoder.get("name") if isinstance(decoder, Mapping) else "init_inject"
    if not isinstance(name, str):
        raise CapjaxError(f"expected decoder.name in {where} to be the name of a decoder, got {name!r}")
    with config.unlocked():
        config.decoder = decoder_config(name)
    _merge(config, values, where)
    return config.lock()


def _merge(config: ConfigDict, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
    for name, value in values.items():
        if name not in config:
            raise CapjaxError(
                f"the configuration in {where} has a field {prefix}{name}, which capjax {__version__} does not know; "
                "use the capjax that wrote it"
            )
        is_section = isinstance(config[name], ConfigDict)
        expected = "a section" if is_section else f"like {config[name]!r}"
        try:
            if is_section != isinstance(value, Mapping) or value is None:  # which a ConfigDict takes for anything
                raise TypeError
            if is_section:
                _merge(config[name], value, where, f"{prefix}{name}.")
            else:
                config[name] = value
        except TypeError:
            raise CapjaxError(f"expected {prefix}{name} in {where} to be {expected}, got {value!r}") from None


def write_json(path: str | os.PathLike[str], values: Any) -> None:
    """Write JSON, all or nothing."""
    write_atomically(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")
