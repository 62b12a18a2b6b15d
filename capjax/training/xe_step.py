"""Maximum likelihood under teacher forcing: the training step and the validation step."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from capjax.losses.linear_cross_entropy import WordSums, linear_cross_entropy
from capjax.models.captioner import Captioner
from capjax.sharding import DATA_AXIS, batch_sharded, replicated
from capjax.training.train_state import TrainState

Batch = dict[str, Any]


def visual_input(batch: Batch) -> Any:
    """Pick the images [N, H, W, 3] or the `Features` of a batch."""
    return batch["features"] if "features" in batch else batch["image"]


def _forward(
    params: Any,
    batch_stats: Any,
    batch: Batch,
    key: PRNGKeyArray | None,
    *,
    model: Captioner,
    mesh: Mesh,
    label_smoothing: float,
) -> tuple[Float[Array, ""], tuple[WordSums, Any]]:
    """Compute the loss sum, with the sums to report and the new BatchNorm statistics; `key` given means training."""
    train = key is not None
    hidden, updates = model.apply(
        {"params": params, "batch_stats": batch_stats},
        visual_input(batch),
        batch["tokens"][:, :-1],
        train=train,
        rngs={"dropout": key} if train else None,
        mutable=["batch_stats"] if train else [],
        method="logit_inputs",
    )
    sums = _sum_words(
        hidden, params["decoder"]["logits"], batch["tokens"][:, 1:], batch["mask"], mesh=mesh, smoothing=label_smoothing
    )
    return sums.loss, (sums, updates.get("batch_stats", batch_stats))


def _sum_words(
    hidden: Float[Array, "B L M"],
    last_layer: dict[str, Array],
    targets: Int[Array, "B L"],
    mask: Bool[Array, "B L"],
    *,
    mesh: Mesh,
    smoothing: float,
) -> WordSums:
    """Put every device's own positions through the last layer and the loss, then add up."""
    chunk_size = 128 if jax.default_backend() == "cpu" else 4096

    def on_one_device(hidden: Array, last_layer: dict[str, Array], targets: Array, mask: Array) -> WordSums:
        flat = (x.reshape(-1, *x.shape[2:]) for x in (targets, mask))
        sums = linear_cross_entropy(
            hidden.reshape(-1, hidden.shape[-1]), last_layer["kernel"], last_layer["bias"], *flat, smoothing, chunk_size
        )
        return jax.tree.map(lambda x: x[None], sums)

    split = PartitionSpec(DATA_AXIS)
    sums = jax.shard_map(
        on_one_device, mesh=mesh, in_specs=(split, PartitionSpec(), split, split), out_specs=split, check_vma=False
    )(hidden, last_layer, targets, mask)
    return jax.tree.map(jnp.sum, sums)


def train_step(
    state: TrainState,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    model: Captioner,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    label_smoothing: float = 0.0,
    accumulate_steps: int = 1,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Do one update on the global batch.

    Args:
        state: before the update; donated when jitted by `jit_train_step`.
        batch: see `capjax.data.input_pipeline`.
        key: of the run; the step's number is folded in.
        model: the captioner.
        optimizer: the one `state` was created with.
        mesh: the devices.
        label_smoothing: see `masked_cross_entropy`.
        accumulate_steps: microbatches that the batch is cut into to save memory. The update is the same as from the
            whole batch, since gradients are summed and divided once by the count of all words.

    Returns:
        The new state, and scalars: `loss` in nats per word, `accuracy`, `num_words`, `gradient_norm`, `update_norm`.
    """
    key = jax.random.fold_in(key, state.step)
    grad_fn = jax.value_and_grad(
        partial(_forward, model=model, mesh=mesh, label_smoothing=label_smoothing), has_aux=True
    )

    def accumulate(carry: tuple[Any, WordSums, Any], inputs: tuple[Batch, PRNGKeyArray]) -> tuple[Any, None]:
        gradient, sums, batch_stats = carry
        (_, (new_sums, batch_stats)), new_gradient = grad_fn(state.params, batch_stats, *inputs)
        return (*jax.tree.map(jnp.add, (gradient, sums), (new_gradient, new_sums)), batch_stats), None

    if accumulate_steps == 1:
        (_, (sums, batch_stats)), gradient = grad_fn(state.params, state.batch_stats, batch, key)
    else:
        # Row r goes to microbatch r mod A, so that every device keeps its own rows.
        parts = jax.tree.map(
            lambda x: jnp.swapaxes(x.reshape(-1, accumulate_steps, *x.shape[1:]), 0, 1), _group_by_image(batch)
        )
        zeros = (jax.tree.map(jnp.zeros_like, state.params), WordSums(*3 * (jnp.zeros(()),)), state.batch_stats)
        ungrouped = lambda carry, inputs: accumulate(carry, (_ungroup(inputs[0]), inputs[1]))  # noqa: E731
        keys = jax.random.split(key, accumulate_steps)
        (gradient, sums, batch_stats), _ = jax.lax.scan(ungrouped, zeros, (parts, keys))

    count = jnp.maximum(sums.count, 1.0)
    gradient = jax.tree.map(lambda g: g / count, gradient)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    metrics = {
        "loss": sums.loss / count,
        "accuracy": sums.correct / count,
        "num_words": sums.count,
        "gradient_norm": optax.tree.norm(gradient),
        "update_norm": optax.tree.norm(updates),
    }
    new_state = TrainState(state.step + 1, optax.apply_updates(state.params, updates), batch_stats, opt_state)
    # An update that is not finite is left out, so that the loop, which looks later, finds the state before it.
    is_finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
    return jax.tree.map(partial(jnp.where, is_finite), new_state, state), metrics


def _group_by_image(batch: Batch) -> Batch:
    """Give captions a leading image axis, [B, …] to [N, B/N, …], so that an image and its captions stay together."""
    num_images = batch["valid"].shape[0]
    return {k: v.reshape(num_images, -1, v.shape[-1]) if k in ("tokens", "mask") else v for k, v in batch.items()}


def _ungroup(batch: Batch) -> Batch:
    return {k: v.reshape(-1, v.shape[-1]) if k in ("tokens", "mask") else v for k, v in batch.items()}


def validation_step(state: TrainState, batch: Batch, *, model: Captioner, mesh: Mesh) -> WordSums:
    """Add up loss, correct next words and words of one global batch, without dropout or label smoothing."""
    return _forward(state.params, state.batch_stats, batch, None, model=model, mesh=mesh, label_smoothing=0.0)[1][0]


def jit_train_step(mesh: Mesh, **static: Any) -> Any:
    """Compile `train_step` for a mesh: batches split, everything else replicated, the old state's memory reused."""
    return jax.jit(
        partial(train_step, mesh=mesh, **static),
        in_shardings=(replicated(mesh), batch_sharded(mesh), replicated(mesh)),
        out_shardings=replicated(mesh),
        donate_argnums=0,
    )


def jit_validation_step(mesh: Mesh, **static: Any) -> Any:
    """Compile `validation_step` for a mesh."""
    return jax.jit(
        partial(validation_step, mesh=mesh, **static),
        in_shardings=(replicated(mesh), batch_sharded(mesh)),
        out_shardings=replicated(mesh),
    )
