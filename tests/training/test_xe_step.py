"""The training step: what it computes, that devices and microbatches do not matter, that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from capjax.models import Captioner, InitInjectDecoder, build_decoder
from capjax.sharding import make_mesh, shard_batch, shard_state
from capjax.training.train_state import TrainState
from capjax.training.xe_step import jit_train_step, jit_validation_step
from capjax.types import Features

V, F, L = 12, 6, 7


def make_batch(num_images=8, captions_per_image=1, seed=0):
    """Captions of very different lengths, so that a mean of means would differ from the global mean."""
    rng = np.random.default_rng(seed)
    tokens = np.zeros((num_images * captions_per_image, L + 1), np.int32)
    for row in tokens:
        length = rng.integers(1, L)
        row[0], row[length + 1] = 2, 3
        row[1 : length + 1] = rng.integers(4, V, length)
    return {
        "features": Features(rng.normal(size=(num_images, F)).astype(np.float32)),
        "tokens": tokens,
        "mask": tokens[:, 1:] != 0,
        "image_id": np.arange(num_images),
        "valid": np.ones(num_images, bool),
    }


@pytest.fixture(scope="module")
def model():
    return Captioner(InitInjectDecoder(V, 4, 6, 5, 5))


@pytest.fixture(scope="module")
def variables(model):
    return model.init(jax.random.key(0), Features(jnp.zeros((1, F))), jnp.zeros((1, 1), jnp.int32))


def mesh_of(num_devices, model_parallel=1):
    return make_mesh(jax.devices()[:num_devices], model_parallel)


def one_update(model, variables, batch, num_devices, model_parallel=1, optimizer=None, at_step=0, **settings):
    mesh = mesh_of(num_devices, model_parallel)
    optimizer = optimizer or optax.sgd(1.0)
    state = shard_state(TrainState.create(variables, optimizer).replace(step=jnp.int32(at_step)), mesh)
    step = jit_train_step(mesh, model=model, optimizer=optimizer, **settings)
    return jax.device_get(step(state, shard_batch(batch, mesh), jax.random.key(0)))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_is_one_sum_over_one_count(model, variables, label_smoothing):
    batch = make_batch()
    _, metrics = one_update(model, variables, batch, 1, label_smoothing=label_smoothing)
    logits = model.apply(variables, batch["features"], jnp.asarray(batch["tokens"][:, :-1])).logits
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    losses = [
        -(1 - label_smoothing) * log_probs[b, position, batch["tokens"][b, position + 1]]
        - label_smoothing * log_probs[b, position].mean()
        for b in range(8)
        for position in range(L)
        if batch["tokens"][b, position + 1] != 0
    ]
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)
    assert metrics["num_words"] == len(losses)


def test_initial_loss_is_near_log_v(model, variables):
    _, metrics = one_update(model, variables, make_batch(), 1)
    assert abs(metrics["loss"] - np.log(V)) < 0.5


@pytest.mark.parametrize(
    ("num_devices", "model_parallel", "accumulate_steps"), [(8, 1, 1), (2, 1, 4), (8, 2, 1), (8, 4, 2), (2, 2, 4)]
)
def test_devices_and_microbatches_do_not_matter(variables, num_devices, model_parallel, accumulate_steps):
    model = Captioner(InitInjectDecoder(V, 4, 6, 5, 5, dropout_rate=0.5))
    batch = make_batch(num_images=8, captions_per_image=2)
    whole, metrics = one_update(model, variables, batch, 1, label_smoothing=0.1)
    parted, parted_metrics = one_update(
        model, variables, batch, num_devices, model_parallel, accumulate_steps=accumulate_steps, label_smoothing=0.1
    )
    np.testing.assert_allclose(parted_metrics["loss"], metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(parted_metrics["gradient_norm"], metrics["gradient_norm"], rtol=1e-4)
    assert parted_metrics["accuracy"] == metrics["accuracy"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole.params, parted.params)


def test_every_step_drops_other_units(variables):
    model, batch = Captioner(InitInjectDecoder(V, 4, 6, 5, 5, dropout_rate=0.5)), make_batch()
    first, second = (one_update(model, variables, batch, 1, at_step=step)[1]["loss"] for step in (0, 1))
    assert abs(first - second) > 1e-3


def test_moments_of_another_shape_than_their_parameters(model, variables):
    """Adafactor keeps a number by row and one by column."""
    optimizer = optax.adafactor(0.1, min_dim_size_to_factor=4)
    batch = make_batch()
    whole, _ = one_update(model, variables, batch, 1, optimizer=optimizer)
    parted, _ = one_update(model, variables, batch, 8, 4, optimizer=optimizer)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole.params, parted.params)


def test_padding_rows_and_positions_do_not_matter(model, variables):
    batch = make_batch()
    changed = dict(
        batch, tokens=np.where(np.pad(batch["mask"], ((0, 0), (1, 0)), constant_values=True), batch["tokens"], 7)
    )
    assert (changed["tokens"] != batch["tokens"]).any()
    plain, _ = one_update(model, variables, batch, 1)
    other, _ = one_update(model, variables, changed, 1)
    jax.tree.map(np.testing.assert_array_equal, plain.params, other.params)


def test_update_that_is_not_finite_is_left_out(model, variables):
    batch = make_batch()
    batch["features"] = Features(np.full((8, F), np.nan, np.float32))
    state, metrics = one_update(model, variables, batch, 1)
    assert np.isnan(metrics["loss"])
    assert state.step == 1, "the label of checkpoints and the position in the data go on"
    jax.tree.map(np.testing.assert_array_equal, state.params, jax.device_get(variables["params"]))


@pytest.mark.parametrize("model_parallel", [1, 2])
def test_step_compiles_once_and_overfits(variables, model_parallel):
    traces = []

    class CountingCaptioner(Captioner):
        def __call__(self, *args, **kwargs):
            traces.append(1)
            return super().__call__(*args, **kwargs)

    model = CountingCaptioner(InitInjectDecoder(V, 4, 6, 5, 5))
    mesh = mesh_of(8, model_parallel)
    optimizer = optax.adam(0.03)
    state = shard_state(TrainState.create(variables, optimizer), mesh)
    step = jit_train_step(mesh, model=model, optimizer=optimizer)
    batch = shard_batch(make_batch(), mesh)
    for _ in range(400):
        state, metrics = step(state, batch, jax.random.key(0))
    assert len(traces) == 1
    assert step._cache_size() == 1
    parts = state.params["decoder"]["logits"]["kernel"], state.opt_state[0].mu["decoder"]["embedding"]["embedding"]
    assert [x.addressable_data(0).shape for x in parts] == [(5, V // model_parallel), (V // model_parallel, 4)]
    assert metrics["loss"] < 0.2
    assert metrics["accuracy"] > 0.95
    sums = jit_validation_step(mesh, model=model)(state, batch)
    assert sums.loss / sums.count < 0.2


def test_penalties_are_in_the_loss_that_is_learnt_from_and_told_apart():
    """Two weights of one penalty: the gradients differ by that of the penalty itself."""
    sizes = {"embed_size": 4, "hidden_size": 6, "attention_size": 5, "dropout_rate": 0.0}
    batch = make_batch(captions_per_image=2)
    batch["features"] = Features(
        batch["features"].pooled, np.random.default_rng(1).normal(size=(8, 3, F)).astype(np.float32)
    )
    models = [
        Captioner(build_decoder("soft_attention", vocab_size=V, doubly_stochastic_weight=weight, **sizes))
        for weight in (0.0, 1.0)
    ]
    features = Features(*map(jnp.asarray, batch["features"]))
    variables = models[0].init(jax.random.key(0), features, jnp.zeros((8, 1), jnp.int32))

    def penalty(params):
        output = models[1].apply({"params": params}, features, jnp.asarray(batch["tokens"][:, :-1]))
        return jnp.sum(output.penalties["doubly_stochastic"]) / batch["mask"].sum()

    expected, gradient = jax.jit(jax.value_and_grad(penalty))(variables["params"])
    (without, none), (learnt, some) = (one_update(model, variables, batch, 1) for model in models)
    assert none["doubly_stochastic"] == 0
    np.testing.assert_allclose(some["doubly_stochastic"], expected, rtol=1e-5)
    np.testing.assert_allclose(some["loss"], none["loss"], rtol=1e-6)
    jax.tree.map(
        lambda a, b, g: np.testing.assert_allclose(a - b, g, rtol=1e-3, atol=1e-5),
        without.params,
        learnt.params,
        jax.device_get(gradient),
    )
