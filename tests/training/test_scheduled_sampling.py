"""Scheduled sampling: the schedules by hand, what is replaced and by what, and the step that uses it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from capjax.errors import CapjaxError
from capjax.models import Captioner
from capjax.sharding import replicate, shard_batch
from capjax.training.scheduled_sampling import make_teacher_share, mix_in_samples
from capjax.training.train_state import TrainState
from capjax.training.xe_step import jit_train_step
from tests.models.test_decoders import captions, images, random_params, small
from tests.training.test_xe_step import make_batch, mesh_of


@pytest.mark.parametrize(
    ("settings", "step", "expected"),
    [
        (("linear", 0.9, 0.1, 0.25), 0, 0.9),
        (("linear", 0.9, 0.1, 0.25), 3, 0.6),
        (("linear", 0.9, 0.1, 0.25), 100, 0.25),
        (("exponential", 0.9), 2, 0.81),
        (("inverse_sigmoid", 10.0), 0, 10 / 11),
        (("inverse_sigmoid", 10.0), 20, 10 / (10 + np.exp(2))),
        (("inverse_sigmoid", 10.0), 10_000, 0.0),
    ],
)
def test_schedules_by_hand(settings, step, expected):
    assert float(make_teacher_share(*settings)(jnp.asarray(step))) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        ("cosine", 0.5),
        ("linear", 1.5),
        ("exponential", 1.0),
        ("inverse_sigmoid", 0.5),
        ("linear", 0.1, 0, 0.2),
        ("linear", 1.0),
    ],
)
def test_schedules_that_make_no_sense_are_refused(settings):
    with pytest.raises(CapjaxError, match="scheduled_sampling"):
        make_teacher_share(*settings)


def make(name):
    decoder = small(name, dropout_rate=0.0)
    return Captioner(decoder), {"params": {"decoder": random_params(decoder)["params"]}}


@pytest.fixture(scope="module", params=["init_inject", "soft_attention", "transformer"])
def model(request):
    return make(request.param)


def test_words_are_replaced_as_often_as_scheduled_and_specials_never(model):
    captioner, variables = model
    tokens = captions(600)[:, :-1]
    keys = jax.random.split(jax.random.key(0), 600)
    features = images(600)
    mix = jax.jit(lambda share: mix_in_samples(captioner, variables, features, tokens, keys, share))
    np.testing.assert_array_equal(mix(jnp.float32(1.0)), tokens)
    own, half = (np.asarray(mix(jnp.float32(share))) for share in (0.0, 0.5))
    is_word = np.asarray(tokens) > 3
    np.testing.assert_array_equal(np.where(is_word, 0, own), np.where(is_word, 0, tokens))
    assert own[is_word].min() > 3, "no special is drawn"
    mix = jax.jit(lambda: mix_in_samples(captioner, variables, features, tokens, keys, jnp.float32(0.0), (5, 8)))
    drawn = set(np.asarray(mix())[is_word][600:].tolist())
    assert {5, 8} & set(own[is_word].tolist()) and not {5, 8} & drawn, "nor what is no word"
    changed = [float((mixed != tokens)[is_word].mean()) for mixed in (half, own)]
    assert 0.5 < changed[1] < 1.0
    assert changed[0] == pytest.approx(changed[1] / 2, abs=0.04)


def test_samples_follow_the_models_distribution_given_the_words_fed(model):
    captioner, variables = model
    n = 4000
    one = jax.tree.map(lambda x: jnp.repeat(x, n, axis=0), images(1))
    tokens = jnp.tile(jnp.asarray([[2, 5, 6]]), (n, 1))
    keys = jax.random.split(jax.random.key(1), n)
    mixed = mix_in_samples(captioner, variables, one, tokens, keys, jnp.float32(0.0))
    first = mixed[0, 1]
    prefix = jnp.asarray([[2, int(first)]])
    logits = captioner.apply(variables, images(1), prefix).logits[0, 1]
    expected = jax.nn.softmax(jnp.where(jnp.arange(logits.size) > 3, logits, -jnp.inf))
    second = np.asarray(mixed[:, 2])[np.asarray(mixed[:, 1]) == int(first)]
    found = np.bincount(second, minlength=logits.size) / len(second)
    assert np.abs(found - expected).max() < 4 * np.sqrt(0.25 / len(second))


def updated(model, num_devices, accumulate_steps=1, at_step=0, **settings):
    captioner, variables = model
    batch, mesh, optimizer = make_batch(8, 2), mesh_of(num_devices), optax.sgd(1.0)
    grid = np.random.default_rng(0).normal(size=(8, 7, 11)).astype(np.float32)
    batch["features"] = batch["features"]._replace(pooled=grid.mean(axis=1), grid=grid)
    state = TrainState.create(variables, optimizer, keep_ema="ema_decay" in settings)
    state = replicate(state.replace(step=jnp.int32(at_step)), mesh)
    step = jit_train_step(mesh, model=captioner, optimizer=optimizer, accumulate_steps=accumulate_steps, **settings)
    return jax.device_get(step(state, shard_batch(batch, mesh), jax.random.key(0))[0])


def test_the_step_is_the_same_on_any_devices_and_in_microbatches():
    model = make("soft_attention")
    share = {"teacher_share": make_teacher_share("linear", 0.4)}
    whole = updated(model, 1, **share)
    parted = updated(model, 2, accumulate_steps=2, **share)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), whole.params, parted.params)
    plain = updated(model, 1)
    only_first = {"teacher_share": lambda step: jnp.where(step > 0, 0.0, 1.0)}
    first, second = (updated(model, 1, at_step=step, **only_first) for step in (0, 1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), plain.params, first.params)
    for sampled in (whole, second):
        differences = jax.tree.map(lambda a, b: np.abs(a - b).max(), plain.params, sampled.params)
        assert max(jax.tree.leaves(differences)) > 1e-4


def test_moving_average_by_hand():
    """At step 0 the decay is min(0.95, 1 / 10)."""
    model = _, variables = make("init_inject")
    state = updated(model, 1, ema_decay=0.95)
    expected = jax.tree.map(lambda old, new: 0.1 * old + 0.9 * new, variables["params"], state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.ema_params, expected)
    assert state.eval_variables["params"] is state.ema_params
    assert updated(model, 1).ema_params == {}
