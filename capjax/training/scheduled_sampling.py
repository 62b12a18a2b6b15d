"""Scheduled sampling (Bengio et al. 2015, https://arxiv.org/abs/1506.03099): now and then a model reads its own words.

Under teacher forcing a model always sees what people wrote, in use only what it wrote itself. Here a word is fed as
people wrote it with a probability that falls during training, and is otherwise drawn from the model.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from capjax.decoding.sampling import draw_tokens
from capjax.errors import CapjaxError
from capjax.models.captioner import Captioner, Images, begin_search
from capjax.models.decoder import per_caption
from capjax.types import SPECIAL_IDS, Features, RowKeys

TeacherShare = Callable[[Int[Array, ""]], Float[Array, ""]]
"""The probability ε that a word is fed as people wrote it, by the number of updates done."""

_SITE = 1_000_000  # among what is folded into a caption's key, away from the sites of dropout
SCHEDULES = ("linear", "exponential", "inverse_sigmoid")


def make_teacher_share(schedule: str, k: float, slope: float = 0.0, minimum: float = 0.0) -> TeacherShare | None:
    """Make one of the three schedules of the paper's section 2.4.

    Args:
        schedule: `linear`, ε = max(minimum, k - slope i); `exponential`, ε = k^i; `inverse_sigmoid`,
            ε = k / (k + exp(i / k)); "" for none. i counts updates.
        k: its constant: at most 1 for `linear`, below 1 for `exponential`, at least 1 for `inverse_sigmoid`.
        slope: fall by update of `linear`.
        minimum: where `linear` ends.

    Raises:
        CapjaxError: if there is no such schedule, or its numbers make none.
    """
    if schedule == "":
        return None
    if schedule not in SCHEDULES:
        raise CapjaxError(f"expected scheduled_sampling.schedule out of {list(SCHEDULES)} or '', got {schedule!r}")
    fits = {
        "linear": 0 <= minimum <= k <= 1 and slope >= 0 and (slope > 0 or k < 1),  # or it would change nothing
        "exponential": 0 < k < 1,
        "inverse_sigmoid": k >= 1,
    }
    if not fits[schedule]:
        raise CapjaxError(
            "expected 0 <= minimum <= k <= 1 and slope > 0 (linear; 0 with k < 1), 0 < k < 1 (exponential) or k >= 1 "
            f"(inverse_sigmoid) in scheduled_sampling, got {schedule} with k {k}, slope {slope}, minimum {minimum}"
        )

    def teacher_share(step: Int[Array, ""]) -> Float[Array, ""]:
        i = step.astype(jnp.float32)
        if schedule == "linear":
            return jnp.maximum(minimum, k - slope * i)
        if schedule == "exponential":
            return jnp.float32(k) ** i
        return 1.0 / (1.0 + jnp.exp(i / k - jnp.log(k)))

    return teacher_share


def mix_in_samples(
    model: Captioner,
    variables: Any,
    inputs: Images | Features,
    tokens: Int[Array, "B L"],
    keys: RowKeys,
    teacher_share: Float[Array, ""],
    unused_ids: tuple[int, ...] = (),
) -> Int[Array, "B L"]:
    """Replace some words of captions by what the model says there, given the words before as replaced.

    Which ones, and by what, follows from each caption's key. No gradient goes through the choice, as in the paper;
    START, END and padding stay, and so does the length. The samples are drawn without dropout.

    Args:
        model: the captioner.
        variables: its weights.
        inputs: N images or their features.
        tokens: the captions without their last id.
        keys: of the captions.
        teacher_share: probability that a word stays.
        unused_ids: of the vocabulary, that are no words.
    """
    num_captions, length = tokens.shape
    step, carry = begin_search(model, variables, inputs, length)
    keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, _SITE), length))(keys)
    is_word = (tokens != SPECIAL_IDS.pad) & (tokens != SPECIAL_IDS.end)
    no_words = jnp.asarray([*vars(SPECIAL_IDS).values(), *unused_ids])
    is_no_word = jnp.zeros((1, model.decoder.vocab_size), bool).at[0, no_words].set(True)

    def say_next(state: tuple[Any, Array], position: tuple[Array, Array, Array]) -> tuple[tuple[Any, Array], Array]:
        carry, said = state
        written, is_word, key = position
        replace, draw = jnp.moveaxis(jax.vmap(jax.random.split)(key), 1, 0)
        replaces = jax.vmap(lambda k: jax.random.uniform(k) >= teacher_share)(replace) & is_word
        word = jnp.where(replaces, said, written)
        carry, logits = step(carry, word)
        said = draw_tokens(draw, jnp.where(is_no_word, -jnp.inf, logits))
        return (carry, said.astype(tokens.dtype)), word

    # START is always fed as it is.
    positions = (tokens.T, is_word.T.at[0].set(False), jnp.swapaxes(keys, 0, 1))
    _, words = jax.lax.scan(say_next, (per_caption(carry, num_captions), tokens[:, 0]), positions)
    return jax.lax.stop_gradient(words.T)
