"""Block top-k is `lax.top_k`, bit for bit."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from capjax.decoding.top_k import block_top_k

both = jax.jit(
    lambda values, k, block: (block_top_k(values, k, block), jax.lax.top_k(values, k)), static_argnums=(1, 2)
)


@pytest.mark.parametrize("size, k, block", [(60, 3, 7), (63, 5, 6), (64, 1, 8), (61, 2, 1), (10, 4, 5)])
@hypothesis_settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["distinct", "ties", "mostly forbidden"]))
def test_equals_lax_top_k(size, k, block, seed, kind):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(2, 3, size)).astype(np.float32)
    if kind == "ties":
        values = np.round(values) + 0.0  # not -0.0, which lax.top_k ranks below 0.0
    if kind == "mostly forbidden":
        values[rng.random(values.shape) < 0.97] = -np.inf
    (found, found_at), (expected, expected_at) = both(values, k, block)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found_at, expected_at)
