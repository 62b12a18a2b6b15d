"""Teacher-forced losses of logits as (sum, count) pairs, written plainly: what `linear_cross_entropy` has to equal."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

SumAndCount = tuple[Float[Array, ""], Float[Array, ""]]


def weighted_cross_entropy(
    logits: Float[Array, "B L V"],
    targets: Int[Array, "B L"],
    weights: Float[Array, "B L"],
    label_smoothing: float = 0.0,
) -> SumAndCount:
    """Sum the weighted cross-entropy of the next word over the positions that count.

    Args:
        logits: float32 scores of every next word.
        targets: ids of the words that came.
        weights: factor of each position; 0 at padding.
        label_smoothing: ε in [0, 1): the target distribution is (1 - ε) onehot + ε / V (Szegedy et al. 2016, section
            7).

    Returns:
        The sum in nats and the number of positions.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    if label_smoothing:
        uniform = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
        losses = (1.0 - label_smoothing) * losses + label_smoothing * uniform
    return jnp.sum(losses * weights), jnp.sum(weights != 0).astype(jnp.float32)


def next_word_accuracy(
    logits: Float[Array, "B L V"], targets: Int[Array, "B L"], weights: Float[Array, "B L"]
) -> SumAndCount:
    """Count the positions where no word is more probable than the one that came, and all positions that count."""
    counts = (weights != 0).astype(jnp.float32)
    of_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.sum((of_target == jnp.max(logits, axis=-1)) * counts), jnp.sum(counts)
