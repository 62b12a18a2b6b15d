"""Block top-k is `lax.top_k`, and its arg max `jnp.argmax`, bit for bit."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from capjax.ops.top_k import arg_max, block_top_k

both = jax.jit(
    lambda values, k, block: (block_top_k(values, k, block), jax.lax.top_k(values, k)), static_argnums=(1, 2)
)


def draw(seed, kind, size):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(2, 3, size)).astype(np.float32)
    if kind == "ties":
        values = np.round(values) + 0.0  # not -0.0, which lax.top_k ranks below 0.0
    if kind == "mostly forbidden":
        values[rng.random(values.shape) < 0.97] = -np.inf
    return values


@pytest.mark.parametrize("size, k, block", [(60, 3, 7), (63, 5, 6), (64, 1, 8), (61, 2, 1), (10, 4, 5)])
@hypothesis_settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["distinct", "ties", "mostly forbidden"]))
def test_equals_lax_top_k(size, k, block, seed, kind):
    values = draw(seed, kind, size)
    (found, found_at), (expected, expected_at) = both(values, k, block)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found_at, expected_at)


@pytest.mark.parametrize("size", [7, 200, 201, 1030])
@pytest.mark.parametrize("kind", ["distinct", "ties", "mostly forbidden"])
def test_arg_max_is_the_first_of_the_largest(size, kind):
    values = np.concatenate([draw(seed, kind, size) for seed in range(20)])
    values[1] = np.where(values[1] == 0, -0.0, values[1])
    values[2, :, ::2], values[2, :, 1::2] = -0.0, 0.0
    values[3] = -np.inf
    found = jax.jit(arg_max)(values)
    np.testing.assert_array_equal(found, np.argmax(values, axis=-1))
    assert found.dtype == np.int32
