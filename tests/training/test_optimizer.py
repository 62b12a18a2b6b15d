"""The update rule: what is set is done, and nothing else."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from capjax.training.optimizer import WITH_WEIGHT_DECAY, make_optimizer


def updates_of(optimizer, *gradients):
    """The updates after gradients, one after the other, each of a number of the decoder's and one of the encoder's."""
    params = {"decoder": {"kernel": jnp.ones(())}, "encoder": {"kernel": jnp.ones(())}}
    state, found = optimizer.init(params), []
    for decoder, encoder in gradients:
        gradient = {"decoder": {"kernel": jnp.float32(decoder)}, "encoder": {"kernel": jnp.float32(encoder)}}
        updates, state = optimizer.update(gradient, state, params)
        found.append([float(updates[part]["kernel"]) for part in ("decoder", "encoder")])
    return found


def test_gradients_are_clipped_by_their_norm_in_all_and_steps_are_not():
    optimizer = make_optimizer("sgd", optax.constant_schedule(0.1), clip_norm=5.0, encoder_scale=1.0)
    np.testing.assert_allclose(updates_of(optimizer, (30, 40), (0.3, 0.4)), [[-0.3, -0.4], [-0.03, -0.04]], rtol=1e-6)


@pytest.mark.parametrize("encoder_scale", [0.0, 0.1, 1.0])
def test_the_encoder_learns_at_its_share_of_the_rate(encoder_scale):
    optimizer = make_optimizer("sgd", optax.constant_schedule(0.5), encoder_scale=encoder_scale)
    np.testing.assert_allclose(updates_of(optimizer, (1, 1)), [[-0.5, -0.5 * encoder_scale]], rtol=1e-6)


def test_the_rate_goes_with_the_schedule():
    optimizer = make_optimizer("sgd", lambda step: step + 1.0, encoder_scale=0.1)
    np.testing.assert_allclose(updates_of(optimizer, *[(1, 1)] * 3), [[-1, -0.1], [-2, -0.2], [-3, -0.3]], rtol=1e-6)


@pytest.mark.parametrize("name", WITH_WEIGHT_DECAY)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_weight_decay_is_what_was_set_and_no_default(name, weight_decay):
    optimizer = make_optimizer(name, optax.constant_schedule(0.5), weight_decay=weight_decay)
    params = {"decoder": {"kernel": jnp.ones(3)}}
    gradient = {"decoder": {"kernel": jnp.zeros(3)}}
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(updates["decoder"]["kernel"], -0.5 * weight_decay)
