"""The fused last layer and loss against the plain one: values, gradients, work done."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from capjax.losses.linear_cross_entropy import linear_cross_entropy
from tests.plain_loss import next_word_accuracy, weighted_cross_entropy

N, D, V = 20, 5, 7


@pytest.fixture
def example():
    rng = np.random.default_rng(0)
    hidden, kernel, bias = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((N, D), (D, V), (V,)))
    weights = rng.normal(size=N) * (rng.random(N) < 0.6)
    return hidden, kernel, bias, jnp.asarray(rng.integers(0, V, N)), jnp.asarray(weights, jnp.float32)


def plain(hidden, kernel, bias, targets, weights, smoothing):
    arguments = (hidden @ kernel + bias[None])[None], targets[None], weights[None]
    return weighted_cross_entropy(*arguments, smoothing), next_word_accuracy(*arguments)


@pytest.mark.parametrize("chunk_size", [1, 3, 8, 64])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_value_and_gradient_equal_plain(example, chunk_size, smoothing):
    *inputs, targets, weights = example
    sums = linear_cross_entropy(*example, smoothing, chunk_size)
    (loss, count), (correct, _) = plain(*example, smoothing)
    np.testing.assert_allclose(sums, (loss, correct, count), rtol=1e-5)

    # A factor behind the loss must reach the gradients, which are computed before it is known.
    def ours(*inputs):
        return 3.0 * linear_cross_entropy(*inputs, targets, weights, smoothing, chunk_size).loss

    def theirs(*inputs):
        return 3.0 * plain(*inputs, targets, weights, smoothing)[0][0]

    for a, b in zip(*(jax.grad(f, argnums=(0, 1, 2))(*inputs) for f in (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_factor_is_not_rounded_to_bfloat16(example):
    """1 / 389 in eight bits is 0.3 % too small, for all positions and what lies below them alike."""
    hidden, *rest = example
    gradient, of_mean = (
        jax.grad(lambda h, n=n: linear_cross_entropy(h, *rest).loss / n)(hidden.astype(jnp.bfloat16))
        for n in (1.0, 389.0)
    )
    expected, found = (np.asarray(g, np.float64).ravel() for g in (gradient, of_mean))
    assert found @ expected / (expected @ expected) * 389 == pytest.approx(1, abs=5e-4)


def test_padding_has_exactly_no_gradient(example):
    hidden, *rest, weights = example
    gradient = jax.grad(lambda h: linear_cross_entropy(h, *rest, weights, 0.0, 4).loss)(hidden)
    assert 0 < np.count_nonzero(weights) < N
    np.testing.assert_array_equal(gradient[weights == 0], 0.0)
    assert np.abs(gradient[weights != 0]).max(axis=1).min() > 0


def test_nothing_counts(example):
    *inputs, _ = example
    sums = linear_cross_entropy(*inputs, jnp.zeros(N))
    assert tuple(map(float, sums)) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("num_devices", "smoothing"), [(2, 0.0), (4, 0.1)])
def test_a_vocabulary_split_over_devices(num_devices, smoothing):
    rng = np.random.default_rng(0)
    vocab_size = 8
    hidden, kernel, bias = (
        jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((N, D), (D, vocab_size), (vocab_size,))
    )
    kernel = kernel.at[:, 5].set(kernel[:, 2])  # equal logits on two devices: either is right
    bias = bias.at[5].set(9.0).at[2].set(9.0)
    targets = jnp.asarray(rng.integers(0, vocab_size, N)).at[:6].set(2).at[6:9].set(5)
    weights = jnp.asarray(rng.normal(size=N) * (rng.random(N) < 0.8), jnp.float32)
    mesh = Mesh(np.asarray(jax.devices()[:num_devices]), ("words",))
    whole, columns = PartitionSpec(), (PartitionSpec(None, "words"), PartitionSpec("words"))

    def split(*inputs):
        def on_one_device(*inputs):
            return linear_cross_entropy(*inputs, targets, weights, smoothing, 6, "words")

        return jax.shard_map(on_one_device, mesh=mesh, in_specs=(whole, *columns), out_specs=whole, check_vma=False)(
            *inputs
        )

    def of_one_device(*inputs):
        return linear_cross_entropy(*inputs, targets, weights, smoothing, 6)

    inputs = hidden, kernel, bias
    sums, expected = jax.jit(split)(*inputs), of_one_device(*inputs)
    np.testing.assert_allclose(sums, expected, rtol=1e-5)
    assert sums.correct == expected.correct >= 3
    gradients, wanted = (
        jax.jit(jax.grad(lambda *inputs, f=f: 3.0 * f(*inputs).loss, argnums=(0, 1, 2)))(*inputs)
        for f in (split, of_one_device)
    )
    for a, b in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
