"""What devices send each other in a training step: sums of gradients, and no batch, activation or table."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from capjax.models import DECODERS, Captioner
from capjax.sharding import shard_batch, shard_state
from capjax.training.train_state import TrainState
from capjax.training.xe_step import jit_train_step
from tests.models.test_decoders import V, images, small
from tests.training.test_xe_step import make_batch, mesh_of

COLLECTIVE = re.compile(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_nothing_but_sums_travels(name):
    mesh, model, optimizer = mesh_of(8), Captioner(small(name)), optax.adam(1e-3)
    batch = make_batch(num_images=16, captions_per_image=2)
    batch["tokens"] %= V
    batch["features"] = jax.tree.map(np.asarray, images(16))
    one = jax.tree.map(lambda x: x[:1], batch["features"])
    variables = jax.jit(model.init)(jax.random.key(0), one, jnp.zeros((1, 2), jnp.int32))
    state = shard_state(TrainState.create(variables, optimizer), mesh)
    step = jit_train_step(mesh, model=model, optimizer=optimizer)
    program = step.lower(state, shard_batch(batch, mesh), jax.random.key(0)).compile().as_text()
    assert set(COLLECTIVE.findall(program)) == {"all-reduce"}
