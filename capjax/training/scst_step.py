"""Self-critical sequence training: captions sampled, rewarded and learnt from in one compiled step.

Rennie et al. 2017 (https://arxiv.org/abs/1612.00563), equation 6: the gradient of the expected reward E[r(w)] of the
model's own captions is E[(r(w) - b) ∇ log p(w)] (REINFORCE), with a baseline b that does not depend on the caption: the
reward of the greedy caption, or the mean of the image's other samples. So a step draws captions, scores them, and
takes the gradient of their cross-entropy with each caption weighted by its advantage r - b. Nothing of this leaves the
devices, and each draws and scores the captions of its own images without talking to the others.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from capjax.decoding.settings import DecoderSettings, build_search
from capjax.losses.self_critical import leave_one_out
from capjax.metrics import device_scores
from capjax.metrics.ngram_trie import NgramTrie
from capjax.models.captioner import Captioner, begin_search
from capjax.models.decoder import OutputProjection
from capjax.sharding import DATA_AXIS, keep_sharded
from capjax.training.train_state import TrainState
from capjax.training.update import Batch, Metrics, row_keys, sum_gradients, update, visual_input
from capjax.training.xe_step import sum_words
from capjax.types import SPECIAL_IDS, Features

BASELINES = ("mean", "greedy")

_UNSAYABLE = (SPECIAL_IDS.pad, SPECIAL_IDS.unk, SPECIAL_IDS.start)
# What is folded into the key of a step, so that its draws are independent.
_SAMPLES, _SAMPLES_DROPOUT, _REFERENCES_DROPOUT = 1, 2, 3


@dataclasses.dataclass(frozen=True)
class SelfCriticalSettings:
    """How captions are drawn and rewarded; the fields of `config.self_critical`.

    Attributes:
        num_samples: K, captions drawn of each image.
        baseline: `mean`, of the image's other samples; `greedy`, the caption of greedy search, as published.
        bleu_weight: of BLEU-4 (0 to 1), added to CIDEr-D (0 to 10).
        xe_weight: of the cross-entropy of the references' words, added to the loss, both by caption.
        temperature: what logits are divided by in the distribution that is drawn from and learnt. Below 1, captions are
            more like those that a search will find, and the gradient is about these. (1 in the papers.)
        max_length: L, tokens of a caption, END included.
        unused_ids: those of the vocabulary that are no words, beside the special ones.
    """

    num_samples: int = 5
    baseline: str = "mean"
    bleu_weight: float = 0.0
    xe_weight: float = 0.0
    temperature: float = 1.0
    max_length: int = 20
    unused_ids: tuple[int, ...] = ()


class RewardTables(NamedTuple):
    """What the reward needs beside a batch, the same for all.

    Attributes:
        trie: document frequencies of the references.
        number_of_token: the number of each word of the vocabulary among theirs, see `PackedReferences`.
        is_dangling: words that need another one behind them.
    """

    trie: NgramTrie
    number_of_token: Int[Array, " V"]
    is_dangling: Bool[Array, " V"]


class Drawn(NamedTuple):
    """Captions of N images, with what they are worth."""

    tokens: Int[Array, "N K L"]
    reward: Float[Array, "N K"]
    baseline: Float[Array, "N K"]


class CaptionSums(NamedTuple):
    """Sums over the captions drawn from a batch."""

    num_words: Float[Array, ""]
    loss: Float[Array, ""]
    reward: Float[Array, ""]
    baseline: Float[Array, ""]
    squared_advantage: Float[Array, ""]
    repetition: Float[Array, ""]
    dangling_end: Float[Array, ""]


def draw_captions(
    model: Captioner,
    variables: Any,
    features: Features,
    references: Int[Array, "N R T"],
    reference_norms: Float[Array, "N R 4"],
    keys: Key[Array, " N"],
    tables: RewardTables,
    settings: SelfCriticalSettings,
) -> Drawn:
    """Draw captions of images, without dropout, and score them; everything on one device.

    Args:
        model: the captioner.
        variables: its weights.
        features: of the images.
        references: of the images.
        reference_norms: of the references.
        keys: of the images.
        tables: for the reward.
        settings: of the training.
    """

    def search(**changes: Any) -> Int[Array, "N K L"]:
        step, carry = begin_search(model, variables, features, settings.max_length)
        own = DecoderSettings(max_length=settings.max_length, must_not_contain=settings.unused_ids, **changes)
        return build_search(own, SPECIAL_IDS)(step, carry, keys).tokens

    def reward_of(tokens: Int[Array, "N K L"]) -> Float[Array, "N K"]:
        captions = tables.number_of_token[tokens]
        matches = device_scores.match(captions, references)
        reward = device_scores.cider_d(captions, matches, references, reference_norms, tables.trie)
        if settings.bleu_weight:
            reward += settings.bleu_weight * device_scores.bleu_4(captions, matches, references)
        return reward

    tokens = search(method="sample", num_captions=settings.num_samples, temperature=settings.temperature)
    if settings.baseline == "mean":
        reward = reward_of(tokens)
        return Drawn(tokens, reward, leave_one_out(reward))
    both = reward_of(jnp.concatenate([tokens, search(method="greedy")], axis=1))
    return Drawn(tokens, both[:, :-1], jnp.broadcast_to(both[:, -1:], both[:, :-1].shape))


def scst_step(
    state: TrainState,
    batch: Batch,
    tables: RewardTables,
    key: PRNGKeyArray,
    *,
    model: Captioner,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    settings: SelfCriticalSettings,
    accumulate_steps: int = 1,
    ema_decay: float = 0.0,
) -> tuple[TrainState, Metrics]:
    """Do one update on the global batch.

    The distribution that is learnt is the one that is drawn from: at a temperature, and without probability for PAD,
    UNK, START and what else is no word. Where the decoder has dropout, it acts where the gradient is taken, and not
    where captions are drawn.

    Args:
        state: before the update; donated when jitted by `jit_scst_step`.
        batch: see `capjax.data.input_pipeline`, with `references` and `reference_norms` of the images.
        tables: for the reward.
        key: of the run; the step's number and the row of the image or caption are folded in, so that what is drawn and
            dropped does not depend on how the batch lies on devices or is cut into microbatches.
        model: the captioner. An encoder that is trained gets its gradient through all captions.
        optimizer: the one `state` was created with.
        mesh: the devices.
        settings: of the training.
        accumulate_steps: microbatches that the batch is cut into.
        ema_decay: see `capjax.training.update.update`.

    Returns:
        The new state, and scalars: `loss`, `reward`, `baseline` and `advantage_std` (the advantage's root mean square)
        by caption, `length` in tokens, `repetition` and `dangling_end` as shares of the captions, `num_words`,
        `gradient_norm`, `update_norm`.
    """
    num_images, num_references = batch["valid"].shape[0], batch["tokens"].shape[0]
    num_drawn = num_images * settings.num_samples
    batch = {
        **batch,
        "image_row": jnp.arange(num_images),
        "drawn_row": jnp.arange(num_drawn),
        "row": jnp.arange(num_references),
    }
    step_key = jax.random.fold_in(key, state.step)

    def keys_of(rows: Int[Array, " B"], purpose: int) -> Key[Array, " B"]:
        return row_keys(jax.random.fold_in(step_key, purpose), rows)

    split, whole = PartitionSpec(DATA_AXIS), PartitionSpec()

    def draw(variables: Any, features: Features, part: Batch) -> Drawn:
        of_own_images = jax.shard_map(
            lambda variables, features, references, norms, keys, tables: draw_captions(
                model, variables, features, references, norms, jax.random.wrap_key_data(keys), tables, settings
            ),
            mesh=mesh,
            in_specs=(whole, split, split, split, split, whole),
            out_specs=split,
            check_vma=False,
        )
        keys = jax.random.key_data(keys_of(part["image_row"], _SAMPLES))
        inputs = (variables, features, part["references"], part["reference_norms"], keys, tables)
        return of_own_images(*jax.lax.stop_gradient(inputs))

    def loss_of(params: Any, batch_stats: Any, part: Batch) -> tuple[Array, tuple[Any, CaptionSums]]:
        variables, inputs = {"params": params, "batch_stats": batch_stats}, visual_input(part)
        if not isinstance(inputs, Features):
            inputs, updates = model.apply(variables, inputs, True, method="encode", mutable=["batch_stats"])
            batch_stats = updates.get("batch_stats", batch_stats)
        drawn = draw(variables, inputs, part)
        advantage = drawn.reward - drawn.baseline

        tokens = drawn.tokens.reshape(-1, settings.max_length)
        is_said = (tokens != SPECIAL_IDS.pad).astype(jnp.float32)
        fed = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=SPECIAL_IDS.start)
        output = model.apply(variables, inputs, fed, keys_of(part["drawn_row"], _SAMPLES_DROPOUT))
        kernel, bias = (x / settings.temperature for x in output.projection)
        projection = OutputProjection(kernel, bias.at[jnp.asarray(_UNSAYABLE + settings.unused_ids)].set(-1e9))
        output = output._replace(projection=projection)
        loss = sum_words(output, tokens, advantage.reshape(-1, 1) * is_said, mesh=mesh).loss / num_drawn
        if settings.xe_weight:
            words = part["tokens"]
            written = model.apply(variables, inputs, words[:, :-1], keys_of(part["row"], _REFERENCES_DROPOUT))
            weights = part["mask"].astype(jnp.float32)
            cross_entropy = sum_words(written, words[:, 1:], weights, mesh=mesh).loss / num_references
            penalty = sum(jnp.sum(x) for x in written.penalties.values()) / num_references
            loss += settings.xe_weight * (cross_entropy + penalty)

        sums = CaptionSums(
            num_words=jnp.sum(is_said),
            loss=loss,
            reward=jnp.sum(drawn.reward),
            baseline=jnp.sum(drawn.baseline),
            squared_advantage=jnp.sum(advantage**2),
            repetition=jnp.sum(device_scores.repeats_itself(tables.number_of_token[tokens]).astype(jnp.float32)),
            dangling_end=jnp.sum(tables.is_dangling[_last_words(tokens)].astype(jnp.float32)),
        )
        return loss, (batch_stats, sums)

    gradient, batch_stats, sums = sum_gradients(loss_of, state, batch, accumulate_steps)
    state, norms = update(state, gradient, batch_stats, sums.loss, optimizer=optimizer, ema_decay=ema_decay)
    return keep_sharded(state, mesh), {
        "loss": sums.loss,
        "reward": sums.reward / num_drawn,
        "baseline": sums.baseline / num_drawn,
        "advantage_std": jnp.sqrt(sums.squared_advantage / num_drawn),
        "length": sums.num_words / num_drawn,
        "repetition": sums.repetition / num_drawn,
        "dangling_end": sums.dangling_end / num_drawn,
        "num_words": sums.num_words,
        **norms,
    }


def _last_words(tokens: Int[Array, "B L"]) -> Int[Array, " B"]:
    """Return the last word of each caption, END not counted; END or PAD where there is none."""
    is_word = (tokens != SPECIAL_IDS.pad) & (tokens != SPECIAL_IDS.end)
    last = jnp.maximum(jnp.sum(is_word, axis=1, dtype=jnp.int32) - 1, 0)
    return jnp.take_along_axis(tokens, last[:, None], axis=1)[:, 0]


def jit_scst_step(mesh: Mesh, **static: Any) -> Any:
    """Compile `scst_step` for states and batches that lie on a mesh; the old state's memory is reused."""
    return jax.jit(partial(scst_step, mesh=mesh, **static), donate_argnums=0)
