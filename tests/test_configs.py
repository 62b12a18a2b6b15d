"""Every recipe builds, fits its model, and takes one step at reduced size; wrong fields are named."""

import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from capjax import assembly
from capjax.config import check, decoder_config, default_config, from_dict, load_config, to_dict
from capjax.decoding.settings import DecoderSettings
from capjax.errors import CapjaxError
from capjax.images import Preprocessing
from capjax.models import DECODERS
from capjax.pretrained.encoder_file import EncoderConfig
from capjax.sharding import make_mesh, replicate, shard_batch
from capjax.training.optimizer import make_optimizer
from capjax.training.schedules import make_schedule
from capjax.training.train_state import TrainState
from capjax.training.xe_step import jit_train_step
from capjax.types import Features

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
SPECS = [str(path) for path in sorted(CONFIGS.glob("*.py"))]
SPECS += [f"{CONFIGS}/scenes.py:from_scratch", f"{CONFIGS}/flickr8k.py:imported", f"{CONFIGS}/folder.py:mine"]
VOCAB_SIZE = 50
BOTTLENECKS = ("image_bottleneck", "logit_bottleneck")


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.rsplit("/", 1)[1])
def test_recipe_builds_at_its_own_sizes(spec):
    config = load_config(spec)
    assert to_dict(from_dict(to_dict(config), "here")) == to_dict(config)
    DecoderSettings.from_dict(config.search.to_dict())

    encoder = EncoderConfig(final_endpoint="mixed0", image_size=75) if config.encoder.weights else None
    fed_images = not config.features.dir
    model = assembly.captioner_from(config, 9000, encoder if fed_images else None)
    tokens = jax.ShapeDtypeStruct((config.train.captions_per_image, config.train.max_tokens - 1), jnp.int32)
    features = Features(*(jax.ShapeDtypeStruct((1, *shape), jnp.float32) for shape in ((2048,), (64, 2048))))
    variables = jax.eval_shape(model.init, jax.random.key(0), features, tokens)
    logits = jax.eval_shape(lambda *inputs: model.apply(*inputs).logits, variables, features, tokens)
    assert logits.shape == (*tokens.shape, 9000) and logits.dtype == jnp.float32


@pytest.mark.parametrize("recipe", ["flickr8k_finetune", "flickr8k_self_critical"])
@pytest.mark.parametrize("start", ["flickr8k_up_down:inception_v3", f"{CONFIGS}/flickr8k_up_down.py"])
def test_recipes_that_go_on_take_the_recipe_of_their_start(recipe, start):
    config, of_start = load_config(f"{CONFIGS}/{recipe}.py:{start}"), load_config("flickr8k_up_down")
    assert config.train.init_from == "runs/flickr8k_up_down"
    assert config.decoder.name == "up_down" and config.encoder.weights == of_start.encoder.weights
    assert config.encoder.grid and config.vocabulary == of_start.vocabulary


# The recipes for COCO that attend differ from those for Flickr8k in sizes and data alone.
STEPS = [spec for spec in SPECS if not re.search(r"coco_(soft_attention|att2in|up_down|transformer)", spec)]


@pytest.mark.parametrize("spec", STEPS, ids=lambda spec: spec.rsplit("/", 1)[1])
def test_recipe_takes_a_step(spec):
    """On features, at reduced size, with the recipe's optimiser."""
    config = load_config(spec)
    for name in set(config.decoder) & {f"{part}_size" for part in ("embed", "hidden", "attention", *BOTTLENECKS)}:
        config.decoder[name] = 8
    section = config.optimizer
    schedule = make_schedule(
        section.schedule, section.learning_rate, config.train.num_steps, section.warmup_steps, section.decay_steps
    )
    optimizer = make_optimizer(section.name, schedule, weight_decay=section.weight_decay, clip_norm=section.clip_norm)
    model = assembly.captioner_from(config, VOCAB_SIZE, None)
    grid = np.random.default_rng(0).normal(size=(8, 4, 16)).astype(np.float32)
    features = Features(grid.mean(axis=1), grid if config.encoder.grid else None)
    tokens = np.full((8 * config.train.captions_per_image, config.train.max_tokens), 5, np.int32)
    mesh = make_mesh(jax.devices()[:1])
    variables = jax.jit(model.init)(jax.random.key(0), features, tokens[:, :-1])
    state = replicate(TrainState.create(variables, optimizer), mesh)
    step = jit_train_step(mesh, model=model, optimizer=optimizer)
    batch = {"features": features, "tokens": tokens, "mask": tokens[:, 1:] != 0, "valid": np.ones(8, bool)}
    new_state, metrics = step(state, shard_batch(batch, mesh), jax.random.key(0))
    assert int(new_state.step) == 1
    assert np.isfinite(metrics["loss"])


def test_defaults_are_the_reference_system():
    reference = to_dict(load_config(str(CONFIGS / "reference.py")))
    assert reference["decoder"] == {
        "name": "init_inject",
        "embed_size": 100,
        "hidden_size": 300,
        "image_bottleneck_size": 120,
        "logit_bottleneck_size": 120,
        "normalize_features": False,
        "dropout_rate": 0.0,
    }
    assert reference["optimizer"]["learning_rate"] == 1e-3
    assert reference["train"]["batch_size"] == 64
    assert reference["train"]["num_steps"] == 12_000
    assert reference["train"]["max_tokens"] == 20


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eval.every=0"], r"eval\.every of at least 1, got 0"),
        (["train.log_every=0"], r"train\.log_every"),
        (["log.num_pictures=-1"], r"log\.num_pictures of at least 0, got -1"),
        (["train.checkpoint_every=0"], r"train\.checkpoint_every"),
        (["train.captions_per_image=0"], r"train\.captions_per_image of at least 1, got 0"),
        (["train.captions_per_image=3"], r"captions_per_image that divides train\.batch_size \(64\), got 3"),
        (["train.accumulate_steps=0"], r"train\.accumulate_steps"),
        (["train.accumulate_steps=5"], r"accumulate_steps that divides the 64 images of a batch, got 5"),
        (["train.batch_size=0"], r"train\.batch_size"),
        (["train.label_smoothing=1.0"], r"label_smoothing in \[0, 1\), got 1\.0"),
        (["train.dtype=float8"], r"train\.dtype out of"),
        (["features.dtype=int8"], r"features\.dtype out of"),
        (["features.dir=x", "encoder.learning_rate_scale=0.1"], r"learning_rate_scale.*train from images"),
        (["features.dir=x", "encoder.weights=", "encoder.endpoint=mixed9"], r"encoder\.endpoint is set.*imported"),
        (["features.dir=x", "encoder.weights=", "encoder.grid_side=2"], r"encoder\.grid_side is set.*imported.*at 0"),
        (["features.dir=x", "encoder.weights=", "features.dtype=uint8"], r"features\.dtype is set.*'float32'"),
        (["features.dir=x", "encoder.train_batch_norm=true"], r"train_batch_norm.*train from images"),
        (["features.dir=gs://bucket/features"], "mount the bucket"),
        (["dataset.data_dir=s3://bucket"], "mount the bucket"),
        (["decoder.name=transformer", "decoder.max_length=19"], r"decoder\.max_length of at least .*\(20\).*got 19"),
        (["decoder.name=lstm"], r"decoder\.name out of \['att2in'"),
        (["decoder.hidden_size=-3"], r"decoder\.hidden_size of at least 1, got -3"),
        (["decoder.name=transformer", "decoder.num_heads=0"], r"decoder\.num_heads of at least 1, got 0"),
        (["decoder.dropout_rate=1.0"], r"decoder\.dropout_rate in \[0, 1\), got 1\.0"),
        (["decoder.dropout_rate=-0.1"], r"decoder\.dropout_rate of at least 0, got -0\.1"),
        (["optimizer.warmup_steps=-1"], r"optimizer\.warmup_steps of at least 0, got -1"),
        (["decoder.name=soft_attention", "decoder.doubly_stochastic_weight=-1.0"], r"stochastic_weight of at least 0"),
        (["optimizer.decay_steps=-1"], r"optimizer\.decay_steps of at least 0, got -1"),
        (["encoder.image_size=0"], r"encoder\.image_size of at least 1, got 0"),
        (["search.method=zzz"], r"search: unknown decoding method 'zzz'"),
        (["search.beam_size=5"], "search: beam_size has no meaning for method=greedy"),
        (["optimizer.clip_norm=1e999"], r"optimizer\.clip_norm to be a finite number, got inf"),
        (["search.diversity_strength=1e999"], r"search\.diversity_strength to be a finite number"),
        (["optimizer.decay_steps=3000000000"], r"optimizer\.decay_steps below 2\^31, got 3000000000"),
        (["encoder.image_size=150"], r"encoder\.image_size is set, .*encoder\.weights=random.*leave it at 299"),
        (["encoder.final_endpoint=mixed3"], r"leave it at mixed10; encoder\.endpoint cuts them off"),
        (["search.max_length=0"], r"search: .*max_length lies in 1\.\.10000, got 0"),
    ],
)
def test_values_that_make_no_sense_are_clear_errors(overrides, message):
    with pytest.raises(CapjaxError, match=message) as error:
        load_config("reference", ["features.dir=", *overrides])
    assert "\n" not in str(error.value)


def test_fields_that_do_not_exist_are_named_however_they_came():
    """As in a section that a recipe made anew, where no lock sees a misspelt name."""
    config = default_config()
    with config.unlocked():
        config.optimizer = ConfigDict(config.optimizer.to_dict() | {"learning_rat": 3.0})
    with pytest.raises(
        CapjaxError, match=r"no field optimizer\.learning_rat .*; did you mean optimizer\.learning_rate"
    ):
        check(config)


def test_settings_of_a_decoder_have_the_type_of_their_defaults():
    config = default_config()
    with config.unlocked():
        config.decoder = decoder_config("att2in", dropout_rate=0)
    check(config)
    assert config.decoder.dropout_rate == 0.0 and isinstance(config.decoder.dropout_rate, float)
    config = decoder_config("att2in", hidden_size=np.int64(8), dropout_rate=np.float32(0.5))
    assert (type(config.hidden_size), type(config.dropout_rate)) == (int, float)
    for size in (64.0, "64", True):
        with pytest.raises(CapjaxError, match=r"expected decoder\.hidden_size to be int like \d+, got "):
            decoder_config("att2in", hidden_size=size)


def test_a_decoder_brings_its_own_fields(monkeypatch):
    class Other(nn.Module):
        vocab_size: int
        num_layers: int = 2
        dtype: object = jnp.float32

    monkeypatch.setitem(DECODERS, "other", Other)
    assert decoder_config("other", num_layers=3).to_dict() == {"name": "other", "num_layers": 3}
    with pytest.raises(CapjaxError, match=r"no setting 'hidden_size'.*num_layers"):
        decoder_config("other", hidden_size=3)
    # Another decoder on the command line, whatever the order of the options.
    config = load_config("reference", ["decoder.num_layers=5", "decoder.name=other"])
    assert config.decoder.to_dict() == {"name": "other", "num_layers": 5}
    assert from_dict(to_dict(config), "here").decoder.to_dict() == {"name": "other", "num_layers": 5}
    with pytest.raises(CapjaxError, match=r"no field 'decoder\.hidden_size'"):
        load_config("reference", ["decoder.name=other", "decoder.hidden_size=5"])


def test_a_decoder_with_a_field_without_a_default_is_a_clear_error(monkeypatch):
    class Bare(nn.Module):
        vocab_size: int
        num_layers: int

    monkeypatch.setitem(DECODERS, "bare", Bare)
    with pytest.raises(CapjaxError, match=r"default for every field of the decoder 'bare'.*num_layers"):
        load_config("reference", ["decoder.name=bare"])


def test_the_home_directory_in_a_recipe_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = "from capjax.config import default_config\n\n\ndef get_config():\n    config = default_config()\n"
    (tmp_path / "recipe.py").write_text(f'{recipe}    config.features.dir = "~/features"\n    return config\n')
    assert load_config(str(tmp_path / "recipe.py")).features.dir == str(tmp_path / "features")


def test_what_older_versions_did_not_look_at_is_no_reason_to_refuse_their_runs():
    stored = to_dict(load_config("reference", ["features.dir="]))
    stored["encoder"]["image_size"] = 150
    assert from_dict(stored, "there").encoder.image_size == 299
    stored["encoder"]["weights"] = "random"
    assert from_dict(stored, "there").encoder.image_size == 150


def test_bare_names_are_recipes():
    assert load_config("scenes").dataset.name == "scenes"


def test_overrides_keep_their_types():
    config = load_config("scenes", ["train.num_steps=7", "optimizer.learning_rate=1", "train.augment=true", "seed=3"])
    assert (config.train.num_steps, config.seed, config.train.augment) == (7, 3, True)
    assert config.optimizer.learning_rate == 1.0 and isinstance(config.optimizer.learning_rate, float)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.num_stepz=7", r"did you mean train\.num_steps"),
        ("num_steps=7", r"train\.num_steps"),
        ("zzz.qqq=1", "fields are"),
        ("train.num_steps=many", "to be int"),
        ("train.num_steps=1.5", "to be int"),
        ("train.num_steps", "got no value"),
        ("train=3", "no field 'train'"),
        ("optimizer.learning_rate=1" + "0" * 400, "to be float"),
        ("train.num_steps=" + "9" * 5000, "to be int"),
        ("train.num_steps=" + "-" * 100_000 + "1", "to be int"),
        ("train.num_steps=" + "(" * 100_000, "to be int"),
        ("train.\x1b[2J=1", r"no field 'train\.\\x1b\[2J'"),
    ],
)
def test_wrong_overrides_are_clear_errors(override, message):
    with pytest.raises(CapjaxError, match=message):
        load_config("scenes", [override])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "recipe out of"),
        ("x = (", "get_config"),
        ("import nonexistent_module", "get_config"),
        ("y = 1", "get_config"),
        ("def get_config():\n    from capjax.config import default_config\n    c = default_config()\n    c.trian = 1",
         "trian"),
        ("def get_config():\n    from capjax.config import default_config\n    default_config()", "return config"),
        ("x = 1 / 0", "get_config.*ZeroDivisionError: division by zero"),
        ("assert False", "get_config.*AssertionError"),
        ("def get_config():\n    raise OSError('one\\ntwo')", "get_config.*OSError: one two"),
        ("def get_config():\n    return get_config()", "get_config.*RecursionError"),
        ("def get_config():\n    from capjax.config import default_config\n    c = default_config()\n"
         "    c.train.num_steps = None\n    return c", r"train\.num_steps.*got None"),
        ("def get_config():\n    from capjax.config import default_config\n    c = default_config()\n"
         "    c.decoder.dropout_rate = None\n    return c", r"decoder\.dropout_rate.*got None"),
        ("from ml_collections import ConfigDict as get_config", r"a field dataset\.data_dir in"),
    ],
)  # fmt: skip
def test_broken_files_are_clear_errors(tmp_path, content, message):
    path = tmp_path / "config.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CapjaxError, match=message) as error:
        load_config(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("decay_rate", [-0.5, 0.0, 1.5, float("nan")])
def test_a_decay_that_is_none_is_refused(decay_rate):
    with pytest.raises(CapjaxError, match=r"optimizer\.decay_rate in \(0, 1\]"):
        make_schedule("exponential", 1e-3, 10, decay_steps=1, decay_rate=decay_rate)


def test_images_are_prepared_as_the_configuration_says():
    config = default_config()
    architecture = {"depth_multiplier": 0.1, "final_endpoint": "mixed0", "image_size": 80}
    config.encoder.update(weights="random", crop="none", resize="bicubic", **architecture)
    assert assembly.preprocessing_from(config, assembly.encoder_from(config)) == Preprocessing(80, "none", "bicubic")
    config.encoder.resize = "nearest"
    with pytest.raises(CapjaxError, match=r"resize must be one of bilinear, .* got 'nearest'"):
        assembly.preprocessing_from(config, assembly.encoder_from(config))
