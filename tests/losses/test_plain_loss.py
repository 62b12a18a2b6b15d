"""The loss against hand-worked cases and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.plain_loss import next_word_accuracy, weighted_cross_entropy


@pytest.fixture
def example():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 5)).astype(np.float32)
    targets = rng.integers(0, 5, (2, 3)).astype(np.int32)
    mask = np.asarray([[1, 1, 1], [1, 0, 0]], bool)
    return logits, targets, mask


def test_hand_worked_value():
    logits = jnp.log(jnp.asarray([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]]))
    loss, count = weighted_cross_entropy(logits, jnp.asarray([[0, 1]]), jnp.asarray([[1.0, 1.0]]))
    assert count == 2
    np.testing.assert_allclose(loss, np.log(2) + np.log(1 / 0.8), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_torch(example, smoothing):
    torch = pytest.importorskip("torch")
    logits, targets, mask = example
    loss, count = weighted_cross_entropy(*map(jnp.asarray, (logits, targets, mask.astype(np.float32))), smoothing)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits[mask]),
        torch.tensor(targets[mask], dtype=torch.int64),
        label_smoothing=smoothing,
        reduction="sum",
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert count == mask.sum()


def test_padding_has_no_gradient(example):
    logits, targets, mask = example
    fixed = jnp.asarray(targets), jnp.asarray(mask, jnp.float32)
    gradient = jax.grad(lambda x: weighted_cross_entropy(x, *fixed, 0.1)[0])(jnp.asarray(logits))
    assert np.abs(gradient[mask]).min() > 0
    np.testing.assert_array_equal(gradient[~mask], 0.0)


def test_accuracy_counts_words_only():
    logits = jnp.asarray([[[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]])
    correct, count = next_word_accuracy(logits, jnp.asarray([[1, 0, 0]]), jnp.asarray([[1.0, 1.0, 0.0]]))
    assert (float(correct), float(count)) == (1.0, 2.0)
