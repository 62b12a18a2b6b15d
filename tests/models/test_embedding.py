"""The embedding's gradient against float64 sums, where a few words are most of all words."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capjax.models.embedding import Embed, sum_by_products, sum_one_by_one
from tests.compiling import AS_FOR_USERS

NUM_WORDS, SIZE = 30, 7


def draw(shape, dtype):
    rng = np.random.default_rng(0)
    ids = np.where(rng.random(shape) < 0.5, 0, rng.integers(0, NUM_WORDS, shape))  # half of them padding
    return jnp.asarray(ids, jnp.int32), jnp.asarray(rng.normal(1.0, 0.1, (*shape, SIZE)), dtype)


def expected(ids, cotangent):
    sums = np.zeros((NUM_WORDS, SIZE))
    for i, row in zip(np.asarray(ids).reshape(-1), np.asarray(cotangent, np.float64).reshape(-1, SIZE), strict=True):
        sums[i] += row
    return sums


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("add_up", [sum_one_by_one, sum_by_products])
@pytest.mark.parametrize("shape", [(4096, 5), (40000, 5), (1000, 19), (3, 4), (5000,)])
def test_sums_are_those_in_float64(shape, add_up, dtype):
    ids, cotangent = draw(shape, dtype)
    sums = jax.jit(partial(add_up, NUM_WORDS))(ids, cotangent)
    assert sums.dtype == jnp.float32
    np.testing.assert_allclose(sums, expected(ids, cotangent), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gradient_is_summed_in_float32(dtype):
    """In bfloat16, 10,000 ones add up to 256."""
    module = Embed(NUM_WORDS, SIZE, dtype=dtype)
    ids, cotangent = draw((1000, 19), dtype)
    variables = module.init(jax.random.key(0), ids)
    out, pullback = jax.vjp(lambda variables: module.apply(variables, ids), variables)
    assert out.dtype == dtype
    gradient = pullback(cotangent)[0]["params"]["embedding"]
    np.testing.assert_allclose(gradient, expected(ids, cotangent), rtol=1e-5)


def test_it_is_flax_embed_otherwise():
    ids, _ = draw((6, 5), jnp.float32)
    ours, theirs = Embed(NUM_WORDS, SIZE), nn.Embed(NUM_WORDS, SIZE)
    variables = theirs.init(jax.random.key(1), ids)
    np.testing.assert_array_equal(
        ours.init(jax.random.key(1), ids)["params"]["embedding"], variables["params"]["embedding"]
    )
    np.testing.assert_array_equal(ours.apply(variables, ids), theirs.apply(variables, ids))


def test_products_hold_some_thousand_one_hot_vectors_at_a_time():
    """Of 16,384 captions of 8 words, whose one-hot vectors would take 128 MB, those of one word each."""
    ids, cotangent = jnp.zeros((16384, 8), jnp.int32), jnp.zeros((16384, 8, SIZE))
    compiled = jax.jit(partial(sum_by_products, 256)).lower(ids, cotangent).compile(AS_FOR_USERS)
    assert compiled.memory_analysis().temp_size_in_bytes < 70e6


@pytest.mark.parametrize("num_captions", [64, 65536])
def test_there_are_eight_products_at_most(num_captions):
    """Each reads and writes the whole table; a batch of many devices is a small one for each of them."""
    ids, cotangent = jnp.zeros((num_captions, 19), jnp.int32), jnp.zeros((num_captions, 19, 1))
    jaxpr = jax.make_jaxpr(partial(sum_by_products, NUM_WORDS))(ids, cotangent)
    (scan,) = (equation for equation in jaxpr.eqns if equation.primitive.name == "scan")
    assert scan.params["length"] == (1 if num_captions == 64 else 7)
