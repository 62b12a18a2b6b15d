"""What devices send each other in a training step: sums of gradients, and no batch, activation or table."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from capjax.models import DECODERS, Captioner
from capjax.sharding import replicate, shard_batch, shard_state
from capjax.text.vocabulary import Vocabulary
from capjax.training.scst_step import RewardTables, SelfCriticalSettings, jit_scst_step
from capjax.training.train_state import TrainState
from capjax.training.xe_step import jit_train_step
from capjax.training_run.objectives.packed_references import pack_references
from tests.models.test_decoders import V, captions, images, small
from tests.tokenizing import tokenized
from tests.training.test_xe_step import mesh_of

N = 16
COLLECTIVE = re.compile(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def collectives_of(step, model, optimizer, mesh, more, *tables):
    """Compile a step for batches of N images with a caption each; the kinds of its collectives."""
    tokens = np.asarray(captions(N))
    batch = {"features": jax.tree.map(np.asarray, images(N)), "tokens": tokens, "mask": tokens[:, 1:] != 0}
    batch |= {"valid": np.ones(N, bool), "image_id": np.arange(N)} | more
    one = jax.tree.map(lambda x: x[:1], batch["features"])
    variables = jax.jit(model.init)(jax.random.key(0), one, jnp.zeros((1, 2), jnp.int32))
    state = shard_state(TrainState.create(variables, optimizer), mesh)
    program = step.lower(state, shard_batch(batch, mesh), *tables, jax.random.key(0)).compile()
    return set(COLLECTIVE.findall(program.as_text()))


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_nothing_but_sums_travels(name):
    mesh, model, optimizer = mesh_of(8), Captioner(small(name)), optax.adam(1e-3)
    step = jit_train_step(mesh, model=model, optimizer=optimizer)
    assert collectives_of(step, model, optimizer, mesh, {}) == {"all-reduce"}


def test_nothing_but_sums_travels_for_microbatches_with_dropout():
    mesh, model, optimizer = mesh_of(8), Captioner(small("show_and_tell", dropout_rate=0.3)), optax.adam(1e-3)
    step = jit_train_step(mesh, model=model, optimizer=optimizer, accumulate_steps=2, ema_decay=0.9)
    assert collectives_of(step, model, optimizer, mesh, {}) == {"all-reduce"}


def test_nothing_but_sums_travels_in_reinforcement():
    mesh, model, optimizer = mesh_of(8), Captioner(small("att2in")), optax.adam(1e-3)
    words = [f"w{i}" for i in range(V - 4)]
    packed = pack_references(tokenized([words] * N), Vocabulary.build(words, "words", 1))
    tables = RewardTables(packed.trie, packed.number_of_token, np.zeros(V, bool))
    settings = SelfCriticalSettings(num_samples=2, max_length=4)
    step = jit_scst_step(mesh, model=model, optimizer=optimizer, settings=settings)
    more = packed.of_images(range(N))
    assert collectives_of(step, model, optimizer, mesh, more, replicate(tables, mesh)) == {"all-reduce"}
