"""The fields of a configuration, with their defaults, which are the reference system."""

import dataclasses
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from capjax.decoding.settings import DecoderSettings
from capjax.errors import CapjaxError
from capjax.models import decoder_settings

PATHS = ("dataset.data_dir", "encoder.weights", "features.dir", "train.init_from")
"""The fields that may name files or folders."""
OF_DRAWN_ENCODERS = ("depth_multiplier", "final_endpoint", "image_size")
"""The fields of `encoder` that mean something for weights that are drawn ("random") alone."""


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
    config.train.max_tokens = 20  # ids kept of a caption, START and END included
    config.train.label_smoothing = 0.0  # share of a target that all words divide (Szegedy et al. 2016)
    config.train.accumulate_steps = 1  # microbatches of one update
    config.train.ema_decay = 0.0  # of a moving average of the weights, which then is validated and kept; 0 for none
    config.train.dtype = "float32"  # of the decoder's computation: "bfloat16" on accelerators
    config.train.augment = False  # random crops, when training from images
    config.train.num_workers = 0  # worker processes that read and decode; 0: threads of this one
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
        CapjaxError: if there is no such decoder, or it has no such setting, or none of that type.
    """
    settings = decoder_settings(name)
    if unknown := sorted(set(changes) - set(settings)):
        raise CapjaxError(f"decoder {name!r} has no setting {unknown[0]!r}; it has {sorted(settings)}")
    return ConfigDict({"name": name} | settings | {k: _like(settings[k], v, k) for k, v in changes.items()})


def _like(usual: Any, value: Any, name: str) -> Any:
    """Return a decoder's setting with the type of its default; a whole number does for a float.

    Raises:
        CapjaxError: if it is of another.
    """
    value = value.item() if isinstance(value, np.generic) else value
    value = float(value) if type(usual) is float and type(value) is int else value
    if type(value) is not type(usual):
        raise CapjaxError(f"expected decoder.{name} to be {type(usual).__name__} like {usual!r}, got {value!r}")
    return value


def flat(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Flatten a configuration to {"section.field": value}."""
    fields: dict[str, Any] = {}
    for key, value in config.items():
        fields |= flat(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {prefix + key: value}
    return fields
