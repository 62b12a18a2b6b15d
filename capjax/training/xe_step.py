"""Maximum likelihood under teacher forcing: the training step and the validation step."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray

from capjax.losses.linear_cross_entropy import WordSums, linear_cross_entropy
from capjax.models.captioner import Captioner
from capjax.models.decoder import DecoderOutput, OutputProjection
from capjax.sharding import DATA_AXIS, MODEL_AXIS, keep_sharded
from capjax.training.scheduled_sampling import TeacherShare, mix_in_samples
from capjax.training.train_state import TrainState
from capjax.training.update import Batch, Metrics, row_keys, sum_gradients, update, visual_input


def sum_words(
    output: DecoderOutput,
    targets: Int[Array, "B L"],
    weights: Float[Array, "B L"],
    *,
    mesh: Mesh,
    label_smoothing: float = 0.0,
) -> WordSums:
    """Put every device's own positions through its part of the last layer and the loss, then add up."""
    chunk_size = 256 if mesh.devices.flat[0].platform == "cpu" else 4096

    def on_one_device(hidden: Array, projection: Any, targets: Array, weights: Array) -> WordSums:
        flat = (x.reshape(-1, *x.shape[2:]) for x in (targets, weights))
        sums = linear_cross_entropy(
            hidden.reshape(-1, hidden.shape[-1]), *projection, *flat, label_smoothing, chunk_size, MODEL_AXIS
        )
        return jax.tree.map(lambda x: x[None], sums)

    split = PartitionSpec(DATA_AXIS)
    columns = OutputProjection(PartitionSpec(None, MODEL_AXIS), PartitionSpec(MODEL_AXIS))
    sums = jax.shard_map(
        on_one_device, mesh=mesh, in_specs=(split, columns, split, split), out_specs=split, check_vma=False
    )(output.hidden, output.projection, targets, weights)
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
    teacher_share: TeacherShare | None = None,
    unused_ids: tuple[int, ...] = (),
    ema_decay: float = 0.0,
) -> tuple[TrainState, Metrics]:
    """Do one update on the global batch.

    Args:
        state: before the update; donated when jitted by `jit_train_step`.
        batch: see `capjax.data.input_pipeline`.
        key: of the run; the step's number and the caption's row are folded in, so that dropout does not depend on how
            the batch lies on devices or is cut into microbatches.
        model: the captioner.
        optimizer: the one `state` was created with.
        mesh: the devices.
        label_smoothing: see `linear_cross_entropy`.
        accumulate_steps: microbatches that the batch is cut into to save memory. The update is the same as from the
            whole batch (but for BatchNorm that is trained, whose statistics are those of a microbatch).
        teacher_share: for scheduled sampling, the share of words that are fed as people wrote them, by step.
        unused_ids: of the vocabulary that are no words, which then are never fed.
        ema_decay: of the moving average of the parameters, 0 for none; shorter at first, (1 + step) / (10 + step).

    Returns:
        The new state, and scalars: `loss` in nats per word, `accuracy`, `num_words`, `gradient_norm`, `update_norm`,
        and the decoder's penalties by name, in nats per word as well. An update that is not finite is left out; its
        step counts all the same.
    """
    num_words = jnp.maximum(jnp.sum(batch["mask"].astype(jnp.float32)), 1.0)
    batch = {**batch, "row": jnp.arange(batch["tokens"].shape[0])}
    step_key = jax.random.fold_in(key, state.step)

    def loss_of(params: Any, batch_stats: Any, part: Batch) -> tuple[Array, tuple[Any, tuple[WordSums, Metrics]]]:
        variables, keys = {"params": params, "batch_stats": batch_stats}, row_keys(step_key, part["row"])
        inputs, words = visual_input(part), part["tokens"][:, :-1]
        if teacher_share is not None:
            words = mix_in_samples(model, variables, inputs, words, keys, teacher_share(state.step), unused_ids)
        output, updates = model.apply(variables, inputs, words, keys, mutable=["batch_stats"])
        weights = part["mask"].astype(jnp.float32)
        sums = sum_words(output, part["tokens"][:, 1:], weights, mesh=mesh, label_smoothing=label_smoothing)
        penalties = {name: jnp.sum(values) / num_words for name, values in output.penalties.items()}
        loss = sums.loss / num_words + sum(penalties.values())
        return loss, (updates.get("batch_stats", batch_stats), (sums, penalties))

    gradient, batch_stats, (sums, penalties) = sum_gradients(loss_of, state, batch, accumulate_steps)
    loss = sums.loss / num_words
    state, norms = update(state, gradient, batch_stats, loss, optimizer=optimizer, ema_decay=ema_decay)
    return keep_sharded(state, mesh), {
        "loss": loss,
        "accuracy": sums.correct / num_words,
        "num_words": sums.count,
        **norms,
        **penalties,
    }


def validation_step(state: TrainState, batch: Batch, *, model: Captioner, mesh: Mesh) -> WordSums:
    """Add up loss, correct next words and words of one global batch, without dropout or label smoothing."""
    output = model.apply(state.eval_variables, visual_input(batch), batch["tokens"][:, :-1])
    return sum_words(output, batch["tokens"][:, 1:], batch["mask"].astype(jnp.float32), mesh=mesh)


def jit_train_step(mesh: Mesh, **static: Any) -> Any:
    """Compile `train_step` for states and batches that lie on a mesh; the old state's memory is reused."""
    return jax.jit(partial(train_step, mesh=mesh, **static), donate_argnums=0)


def jit_validation_step(mesh: Mesh, **static: Any) -> Any:
    """Compile `validation_step` for states and batches that lie on a mesh."""
    return jax.jit(partial(validation_step, mesh=mesh, **static))
