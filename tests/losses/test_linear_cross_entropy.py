"""The fused last layer and loss against the plain one: values, gradients, work done."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from capjax.losses.cross_entropy import masked_cross_entropy, next_word_accuracy
from capjax.losses.linear_cross_entropy import linear_cross_entropy

N, D, V = 20, 5, 7


@pytest.fixture
def example():
    rng = np.random.default_rng(0)
    hidden, kernel, bias = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((N, D), (D, V), (V,)))
    return hidden, kernel, bias, jnp.asarray(rng.integers(0, V, N)), jnp.asarray(rng.random(N) < 0.6)


def plain(hidden, kernel, bias, targets, mask, smoothing):
    arguments = (hidden @ kernel + bias[None])[None], targets[None], mask[None]
    return masked_cross_entropy(*arguments, smoothing), next_word_accuracy(*arguments)


@pytest.mark.parametrize("chunk_size", [1, 3, 8, 64])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_value_and_gradient_equal_plain(example, chunk_size, smoothing):
    *inputs, targets, mask = example
    sums = linear_cross_entropy(*example, smoothing, chunk_size)
    (loss, count), (correct, _) = plain(*example, smoothing)
    np.testing.assert_allclose(sums, (loss, correct, count), rtol=1e-5)

    # A factor behind the loss must reach the gradients, which are computed before it is known.
    def ours(*inputs):
        return 3.0 * linear_cross_entropy(*inputs, targets, mask, smoothing, chunk_size).loss

    def theirs(*inputs):
        return 3.0 * plain(*inputs, targets, mask, smoothing)[0][0]

    for a, b in zip(*(jax.grad(f, argnums=(0, 1, 2))(*inputs) for f in (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_padding_has_exactly_no_gradient(example):
    hidden, *rest, mask = example
    gradient = jax.grad(lambda h: linear_cross_entropy(h, *rest, mask, 0.0, 4).loss)(hidden)
    np.testing.assert_array_equal(gradient[~mask], 0.0)
    assert np.abs(gradient[mask]).max(axis=1).min() > 0


def test_nothing_counts(example):
    *inputs, _ = example
    sums = linear_cross_entropy(*inputs, jnp.zeros(N, bool))
    assert tuple(map(float, sums)) == (0.0, 0.0, 0.0)
