"""Encoder and decoder as one module: what of the encoder is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capjax.models import Captioner
from tests.models.test_decoders import captions, small
from tests.training.test_scst_step import TinyEncoder

IMAGES = jnp.asarray(np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3)), jnp.uint8)
TOKENS = captions(2)[:, :-1]
KEYS = jax.random.split(jax.random.key(0), 2)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(Captioner(small("init_inject"), TinyEncoder()).init)(jax.random.key(0), IMAGES, TOKENS)


@pytest.mark.parametrize("freeze", [True, False])
def test_no_gradient_reaches_an_encoder_that_is_frozen(variables, freeze):
    model = Captioner(small("init_inject"), TinyEncoder(), freeze_encoder=freeze)

    def loss(params):
        return jnp.sum(model.apply(variables | {"params": params}, IMAGES, TOKENS, KEYS).logits ** 2)

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    assert all(np.any(x) for x in jax.tree.leaves(gradient["decoder"]))
    assert [bool(np.any(x)) for x in jax.tree.leaves(gradient["encoder"])] == [not freeze] * 3


@pytest.mark.parametrize(("train_batch_norm", "train"), [(False, True), (True, False), (True, True)])
def test_batch_norm_learns_from_a_batch_in_training_where_it_is_trained(variables, train_batch_norm, train):
    model = Captioner(small("init_inject"), TinyEncoder(), train_batch_norm=train_batch_norm)
    _, of_captions = model.apply(variables, IMAGES, TOKENS, KEYS if train else None, mutable=["batch_stats"])
    _, of_images = model.apply(variables, IMAGES, train, method="encode", mutable=["batch_stats"])
    for updates in (of_captions, of_images):
        before, after = (jax.tree.leaves(x["batch_stats"]) for x in (variables, updates))
        moved = [bool(np.any(a != b)) for a, b in zip(before, after, strict=True)]
        assert moved == [train and train_batch_norm] * 2
