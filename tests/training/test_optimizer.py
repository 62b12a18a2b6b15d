"""The update rule: what is set is done, and nothing else."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from capjax.training.optimizer import WITH_WEIGHT_DECAY, make_optimizer


@pytest.mark.parametrize("name", WITH_WEIGHT_DECAY)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_weight_decay_is_what_was_set_and_no_default(name, weight_decay):
    optimizer = make_optimizer(name, optax.constant_schedule(0.5), weight_decay=weight_decay)
    params = {"decoder": {"kernel": jnp.ones(3)}}
    gradient = {"decoder": {"kernel": jnp.zeros(3)}}
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(updates["decoder"]["kernel"], -0.5 * weight_decay)
