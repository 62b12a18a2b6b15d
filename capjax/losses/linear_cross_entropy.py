"""The last layer and the loss in one: cross-entropy of `hidden @ kernel + bias` that never holds all logits.

Captions differ in length, so about 40 % of a padded COCO batch is padding, and the product with the vocabulary is most
of a captioner's arithmetic. Here the positions that count are moved to the front and go through the vocabulary in
chunks; the loop ends with the last word. Logits of one chunk exist at a time, and their gradient is taken on the spot
(as in Wijmans et al. 2024, Cut Your Losses in Large-Vocabulary Language Models); memory does not grow with the batch.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from capjax.ops.affine import affine

_TILE = 64  # chunks are a multiple of it: 256 rows take a quarter less time on a CPU than 244


class WordSums(NamedTuple):
    """Sums over the words of a batch: weighted cross-entropy in nats, words that none was more probable than, words."""

    loss: Float[Array, ""]
    correct: Float[Array, ""]
    count: Float[Array, ""]


def linear_cross_entropy(
    hidden: Float[Array, "N D"],
    kernel: Float[Array, "D V"],
    bias: Float[Array, " V"],
    targets: Int[Array, " N"],
    weights: Float[Array, " N"],
    label_smoothing: float = 0.0,
    chunk_size: int = 256,
    vocab_axis: str | None = None,
) -> WordSums:
    """Sum weighted cross-entropy, and hits, over the positions that count.

    Equal to what the logits `hidden @ kernel + bias` of all positions at once would give, gradients included. A step
    adds up the sums and the counts of all its parts and divides once, so that the loss is the same for one device or a
    thousand.

    Args:
        hidden: input of the last layer at N positions; the product is computed in its dtype, the softmax in float32.
        kernel: of the last layer.
        bias: of the last layer.
        targets: ids of the words that came.
        weights: factor of each position's cross-entropy, of any sign; 0 where the target is padding, and no work is
            done there. They get no gradient.
        label_smoothing: ε in [0, 1): the target distribution is (1 - ε) onehot + ε / V (Szegedy et al. 2016, section
            7).
        chunk_size: positions that go through the vocabulary at once, at most: about 256 for the caches of a CPU, more
            for accelerators.
        vocab_axis: mesh axis over which the vocabulary is split, inside `jax.shard_map(…, check_vma=False)`: `kernel`
            and `bias` are this device's columns, `targets` still number all words, and what the devices contribute is
            added up (as in Shoeybi et al. 2019, Megatron-LM, section 3).
    """
    num_chunks = -(-hidden.shape[0] // chunk_size)
    even = -(-hidden.shape[0] // num_chunks)  # chunks of equal size leave little to fill up in the last
    chunk_size = min(chunk_size, hidden.shape[0], -(-even // _TILE) * _TILE)
    counts = weights != 0
    order = jnp.argsort(~counts, stable=True)
    padding = -hidden.shape[0] % chunk_size
    # Each row comes once: where that is known, no row of the gradient waits for another.
    packed = hidden.at[order].get(unique_indices=True, mode="promise_in_bounds")
    packed = jnp.pad(packed, ((0, padding), (0, 0)))
    packed_targets, packed_weights = (jnp.pad(x[order], (0, padding)) for x in (targets, weights))
    count = jnp.sum(counts, dtype=jnp.int32)
    loss, correct = _packed(
        packed, kernel, bias, packed_targets, packed_weights, count, label_smoothing, chunk_size, vocab_axis
    )
    return WordSums(loss, correct, count.astype(jnp.float32))


@partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8))
def _packed(hidden, kernel, bias, targets, weights, count, *static):
    """Sum over the first `count` rows; shapes as of `linear_cross_entropy`."""
    return _over_chunks(hidden, kernel, bias, targets, weights, count, *static, gradients=False)[0]


def _packed_forward(hidden, kernel, bias, targets, weights, count, *static):
    return _over_chunks(hidden, kernel, bias, targets, weights, count, *static, gradients=True)


def _packed_backward(label_smoothing, chunk_size, vocab_axis, gradients, cotangents):
    loss_cotangent, _ = cotangents
    if vocab_axis:  # every device holds the same loss, and a share of its cotangent
        loss_cotangent = jax.lax.psum(loss_cotangent, vocab_axis)
    # In the cotangent's precision: rounded to eight bits it would be off by the same factor at all positions.
    return (*((loss_cotangent * g).astype(g.dtype) for g in gradients), None, None, None)


_packed.defvjp(_packed_forward, _packed_backward)


def _over_chunks(
    hidden: Float[Array, "N D"],
    kernel: Float[Array, "D V"],
    bias: Float[Array, " V"],
    targets: Int[Array, " N"],
    weights: Float[Array, " N"],
    count: Int[Array, ""],
    label_smoothing: float,
    chunk_size: int,
    vocab_axis: str | None,
    gradients: bool,
) -> tuple[tuple[Float[Array, ""], Float[Array, ""]], tuple[Array, ...]]:
    """Return (loss, correct) and, if wanted, the gradients of the loss by hidden, kernel and bias."""
    num_columns = kernel.shape[1]
    vocab_size = num_columns * (jax.lax.axis_size(vocab_axis) if vocab_axis else 1)
    first_column = jax.lax.axis_index(vocab_axis) * num_columns if vocab_axis else 0
    matrix = kernel.astype(hidden.dtype)

    def over_vocabulary(reduce: Callable[..., Array], x: Array) -> Array:
        return reduce(x, vocab_axis) if vocab_axis else x

    def one_chunk(state: tuple) -> tuple:
        start, loss, correct, grads = state
        h = jax.lax.dynamic_slice_in_dim(hidden, start, chunk_size)
        t = jax.lax.dynamic_slice_in_dim(targets, start, chunk_size)
        w = jax.lax.dynamic_slice_in_dim(weights, start, chunk_size).astype(jnp.float32)
        logits, gradients_of = jax.vjp(affine, h, matrix, bias)
        highest = over_vocabulary(jax.lax.pmax, jnp.max(logits, axis=-1))
        log_normalizer = highest + jnp.log(
            over_vocabulary(jax.lax.psum, jnp.sum(jnp.exp(logits - highest[:, None]), axis=-1))
        )
        # The target's column among this device's; one that is not among them falls out of range, and counts nothing.
        column = jnp.where((t >= first_column) & (t < first_column + num_columns), t - first_column, num_columns)
        own_target = jnp.take_along_axis(logits, column[:, None], axis=-1, mode="fill", fill_value=0.0)[:, 0]
        of_target = over_vocabulary(jax.lax.psum, own_target)
        losses = log_normalizer - of_target
        if label_smoothing:
            mean = over_vocabulary(jax.lax.psum, jnp.sum(logits, axis=-1)) / vocab_size
            losses += label_smoothing * (of_target - mean)
        loss += jnp.sum(losses * w)
        correct += jnp.sum((of_target == highest) & (w != 0))
        if gradients:
            d_hidden, d_kernel, d_bias = grads
            is_target = jnp.arange(num_columns)[None, :] == column[:, None]
            expected = label_smoothing / vocab_size + (1 - label_smoothing) * is_target
            d_logits = (jnp.exp(logits - log_normalizer[:, None]) - expected) * w[:, None]
            of_h, of_kernel, of_bias = gradients_of(d_logits)
            d_hidden = jax.lax.dynamic_update_slice_in_dim(d_hidden, of_h, start, axis=0)
            grads = d_hidden, d_kernel + of_kernel.astype(jnp.float32), d_bias + of_bias
        return start + chunk_size, loss, correct, grads

    zero = jnp.zeros((), jnp.float32)
    grads = (jnp.zeros_like(hidden), jnp.zeros_like(kernel), jnp.zeros_like(bias)) if gradients else ()
    state = (jnp.zeros((), jnp.int32), zero, zero, grads)
    _, loss, correct, grads = jax.lax.while_loop(lambda state: state[0] < count, one_chunk, state)
    return (loss, correct), grads
