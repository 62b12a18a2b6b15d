"""A vocabulary split over devices: every decoder, and both objectives, learn the same as on one device.

By plain gradient descent: Adam divides by the size of a gradient, and some are zero but for rounding (of the biases of
a softmax's keys, say).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from capjax.models import DECODERS, Captioner, build_decoder
from capjax.sharding import make_mesh, replicate, shard_batch, shard_state
from capjax.text.vocabulary import Vocabulary
from capjax.training.scst_step import RewardTables, SelfCriticalSettings, jit_scst_step
from capjax.training.train_state import TrainState
from capjax.training.xe_step import jit_train_step, jit_validation_step
from capjax.training_run.objectives.packed_references import pack_references
from capjax.types import Features
from tests.tokenizing import tokenized

CAPTIONS = [[f"a {c} {s}", f"one {s} that is {c}"] for c in ("red", "blue", "green", "pink") for s in ("star", "heart")]
VOCABULARY = Vocabulary.build((c for of_image in CAPTIONS for c in of_image), "words", 1, multiple_of=4)
N, P, F, L = 8, 4, 6, 8
SIZES = ("embed_size", "hidden_size", "attention_size", "image_bottleneck_size", "logit_bottleneck_size")


def make_model(name, **settings):
    fields = DECODERS[name].__dataclass_fields__
    settings |= {size: 8 for size in SIZES if size in fields}
    if name == "transformer":
        settings |= {"num_heads": 2, "num_layers": 1, "max_length": L}
    return Captioner(build_decoder(name, vocab_size=len(VOCABULARY), **settings))


def three_steps(model, objective, num_devices, model_parallel):
    rng = np.random.default_rng(0)
    mesh, optimizer = make_mesh(jax.devices()[:num_devices], model_parallel), optax.sgd(0.1)
    grid = rng.normal(size=(N, P, F)).astype(np.float32)
    tokens = np.zeros((N, L), np.int32)
    for row, (caption, _) in zip(tokens, CAPTIONS, strict=True):
        ids = VOCABULARY.encode(caption)[:L]
        row[: len(ids)] = ids
    batch = {"features": Features(grid.mean(axis=1), grid), "tokens": tokens, "mask": tokens[:, 1:] != 0}
    batch |= {"valid": np.ones(N, bool), "image_id": np.arange(N)}
    one = jax.tree.map(lambda x: x[:1], batch["features"])
    variables = jax.jit(model.init)(jax.random.key(0), one, jnp.zeros((1, L - 1), jnp.int32))
    state = shard_state(TrainState.create(variables, optimizer, keep_ema=True), mesh)
    tables = ()
    if objective == "cross_entropy":
        step = jit_train_step(mesh, model=model, optimizer=optimizer, ema_decay=0.9)
    else:
        packed = pack_references(tokenized(CAPTIONS), VOCABULARY)
        batch |= packed.of_images(range(N))
        tables = RewardTables(packed.trie, packed.number_of_token, np.zeros(len(VOCABULARY), bool))
        tables = (replicate(tables, mesh),)
        settings = SelfCriticalSettings(num_samples=3, max_length=L - 1, xe_weight=0.5, temperature=0.7)
        step = jit_scst_step(mesh, model=model, optimizer=optimizer, settings=settings, ema_decay=0.9)
    batch = shard_batch(batch, mesh)
    for _ in range(3):
        state, metrics = step(state, batch, *tables, jax.random.key(0))
    assert step._cache_size() == 1
    sums = jit_validation_step(mesh, model=model)(state, batch)
    return jax.device_get((state.params, state.ema_params, metrics, sums))


LEARNT = [(name, "cross_entropy") for name in sorted(DECODERS)]
LEARNT += [(name, "self_critical") for name in ("init_inject", "transformer")]


@pytest.mark.parametrize(("name", "objective"), LEARNT)
def test_the_same_is_learnt(name, objective):
    model = make_model(name, dropout_rate=0.3)
    expected, found = three_steps(model, objective, 1, 1), three_steps(model, objective, 4, 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), expected, found)


def test_with_embeddings_that_are_not_tied():
    model = make_model("transformer", dropout_rate=0.0, tie_embeddings=False)
    expected, found = three_steps(model, "cross_entropy", 1, 1), three_steps(model, "cross_entropy", 2, 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), expected, found)
