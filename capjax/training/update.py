"""What every training step does with a batch: gradients summed over microbatches, and one update from them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from capjax.training.train_state import TrainState
from capjax.types import Features, RowKeys

Batch = dict[str, Any]
Metrics = dict[str, Float[Array, ""]]


def visual_input(batch: Batch) -> Array | Features:
    """Pick the images [N, H, W, 3] or the `Features` of a batch."""
    return batch["features"] if "features" in batch else batch["image"]


def row_keys(key: PRNGKeyArray, rows: Int[Array, " B"]) -> RowKeys:
    """Fold the captions' rows in the global batch into the key of a step."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)


def sum_gradients(
    loss_fn: Callable[[Any, Any, Batch], tuple[Float[Array, ""], tuple[Any, Any]]],
    state: TrainState,
    batch: Batch,
    num_microbatches: int,
) -> tuple[Any, Any, Any]:
    """Differentiate a loss that is a sum over the rows of a batch, one microbatch after the other.

    Args:
        loss_fn: (params, batch_stats, batch) -> (loss, (batch_stats, sums)), the sums a pytree of scalars to add up.
        state: the parameters to differentiate by, and the BatchNorm statistics.
        batch: the global batch.
        num_microbatches: parts it is cut into, to save memory.

    Returns:
        The gradient, the new BatchNorm statistics, and the sums.
    """

    def gradient_of(batch_stats: Any, part: Batch) -> tuple[Any, tuple[Any, Any]]:
        gradient, (batch_stats, sums) = jax.grad(loss_fn, has_aux=True)(state.params, batch_stats, part)
        return batch_stats, (gradient, sums)

    if num_microbatches == 1:
        batch_stats, (gradient, sums) = gradient_of(state.batch_stats, batch)
        return gradient, batch_stats, sums

    parts = _microbatches(batch, num_microbatches)
    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(gradient_of, state.batch_stats, first)[1]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def accumulate(carry: tuple[Any, Any], part: Batch) -> tuple[tuple[Any, Any], None]:
        batch_stats, totals = carry
        batch_stats, terms = gradient_of(batch_stats, part)
        return (batch_stats, jax.tree.map(jnp.add, totals, terms)), None

    (batch_stats, (gradient, sums)), _ = jax.lax.scan(accumulate, (state.batch_stats, zeros), parts)
    return gradient, batch_stats, sums


def _microbatches(batch: Batch, num_parts: int) -> Batch:
    """Cut a batch: image n and its captions go to part n mod `num_parts`, so that every device keeps its own rows."""
    num_images = batch["valid"].shape[0]

    def cut(x: Array) -> Array:
        by_image = x.reshape(num_images // num_parts, num_parts, x.shape[0] // num_images, *x.shape[1:])
        return jnp.swapaxes(by_image, 0, 1).reshape(num_parts, -1, *x.shape[1:])

    return jax.tree.map(cut, batch)


def update(
    state: TrainState,
    gradient: Any,
    batch_stats: Any,
    loss: Float[Array, ""],
    *,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
) -> tuple[TrainState, Metrics]:
    """Do one update.

    Args:
        state: before it.
        gradient: by the parameters.
        batch_stats: after the forward pass.
        loss: of the batch.
        optimizer: the one `state` was created with.
        ema_decay: of the moving average of the parameters, 0 for none; shorter at first, (1 + step) / (10 + step).

    Returns:
        The new state, `gradient_norm` and `update_norm`. Where the loss or its gradient is not finite, the update is
        left out; its step counts all the same.
    """
    gradient_norm = optax.tree.norm(gradient)

    def apply(state: TrainState) -> tuple[TrainState, Float[Array, ""]]:
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = optax.incremental_update(params, state.ema_params, 1.0 - decay) if state.ema_params else {}
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema), optax.tree.norm(updates)

    def leave_out(state: TrainState) -> tuple[TrainState, Float[Array, ""]]:
        return state.replace(step=state.step + 1), jnp.float32(jnp.nan)

    # A branch, not a choice by `where`: that would hold the old state beside the new one, and pass over both.
    is_finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    state, update_norm = jax.lax.cond(is_finite, apply, leave_out, state)
    return state, {"gradient_norm": gradient_norm, "update_norm": update_norm}
