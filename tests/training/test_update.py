"""Gradients summed over microbatches, one update from a gradient, and none from one that is not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from capjax.training.train_state import TrainState
from capjax.training.update import row_keys, sum_gradients, update

LEARNING_RATE, DECAY = 0.5, 0.75


@pytest.fixture
def state():
    variables = {"params": {"w": jnp.array([1.0, 2.0])}, "batch_stats": {"mean": jnp.array([3.0])}}
    state = TrainState.create(variables, optax.sgd(LEARNING_RATE, momentum=0.9), keep_ema=True)
    return state.replace(step=jnp.int32(100))  # the average is as long as it gets


def test_every_row_has_a_key_of_its_own():
    keys = jax.random.key_data(row_keys(jax.random.key(0), jnp.arange(8)))
    assert len(np.unique(keys, axis=0)) == 8


@pytest.mark.parametrize("num_microbatches", [1, 2, 4])
def test_gradients_and_sums_add_up_and_batch_stats_go_from_part_to_part(state, num_microbatches):
    def loss_fn(params, batch_stats, part):
        loss = jnp.sum(part["x"] @ params["w"])
        return loss, ({"mean": batch_stats["mean"] + 1}, (loss, jnp.float32(part["x"].shape[0])))

    batch = {"x": jnp.arange(16.0).reshape(8, 2), "valid": jnp.ones(4, bool)}  # two captions an image
    gradient, batch_stats, (loss, num_rows) = sum_gradients(loss_fn, state, batch, num_microbatches)
    np.testing.assert_allclose(gradient["w"], [0 + 2 + 4 + 6 + 8 + 10 + 12 + 14, 1 + 3 + 5 + 7 + 9 + 11 + 13 + 15])
    np.testing.assert_allclose(batch_stats["mean"], [3.0 + num_microbatches])
    assert (loss, num_rows) == (56 * 1.0 + 64 * 2.0, 8)


def updated(state, gradient, loss):
    new_stats = {"mean": jnp.array([4.0])}
    optimizer = optax.sgd(LEARNING_RATE, momentum=0.9)
    run = jax.jit(lambda *args: update(*args, optimizer=optimizer, ema_decay=DECAY))
    return run(state, {"w": jnp.array(gradient)}, new_stats, jnp.float32(loss))


def test_an_update_reaches_everything(state):
    new, norms = updated(state, [3.0, 4.0], 1.0)
    assert new.step == 101
    np.testing.assert_allclose(new.params["w"], [1 - 1.5, 2 - 2.0])
    np.testing.assert_allclose(new.ema_params["w"], [0.75 * 1 + 0.25 * -0.5, 0.75 * 2 + 0.25 * 0])
    np.testing.assert_allclose(new.batch_stats["mean"], [4.0])
    np.testing.assert_allclose(jax.tree.leaves(new.opt_state)[0], [3.0, 4.0])
    assert norms["gradient_norm"] == pytest.approx(5.0) and norms["update_norm"] == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("gradient", "loss"), [([3.0, 4.0], np.nan), ([3.0, np.inf], 1.0), ([np.nan, 4.0], 1.0)], ids=["loss", "inf", "nan"]
)
def test_what_is_not_finite_reaches_nothing_but_the_step(state, gradient, loss):
    new, norms = updated(state, gradient, loss)
    assert new.step == 101
    jax.tree.map(np.testing.assert_array_equal, new.replace(step=0), state.replace(step=0))
    assert np.isnan(norms["update_norm"])


def test_the_average_is_shorter_at_first(state):
    new, _ = updated(state.replace(step=jnp.int32(0)), [3.0, 4.0], 1.0)
    np.testing.assert_allclose(new.ema_params["w"], [0.1 * 1 + 0.9 * -0.5, 0.1 * 2], rtol=1e-6)
