"""Ensembles: several models that decode as one."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from capjax.errors import CapjaxError
from capjax.types import Carry, DecodeStep


def ensemble(decode_steps: Sequence[DecodeStep]) -> DecodeStep:
    """Return one decode_step whose next-token distribution is the mean of the probabilities of several.

    Its carry is the tuple of theirs. Its logits are the logarithm of that mean, log sum_m softmax(logits_m) - log M,
    computed in log space and already normalised. The models share a vocabulary and may differ in everything else.

    Raises:
      CapjaxError: no models, or (when traced) vocabularies of different sizes.
    """
    if not decode_steps:
        raise CapjaxError("an ensemble needs at least one model, got none")

    def decode_step(carries: Carry, tokens: Int[Array, " B"]) -> tuple[Carry, Float[Array, "B V"]]:
        steps = [step(carry, tokens) for step, carry in zip(decode_steps, carries, strict=True)]
        sizes = [logits.shape[-1] for _, logits in steps]
        if len(set(sizes)) > 1:
            raise CapjaxError(
                f"models of an ensemble share one vocabulary, got sizes {sizes}: use models trained with the same one"
            )
        log_probs = jnp.stack([jax.nn.log_softmax(logits.astype(jnp.float32)) for _, logits in steps])
        mean = jax.nn.logsumexp(log_probs, axis=0) - jnp.log(len(decode_steps))
        return tuple(carry for carry, _ in steps), mean

    return decode_step
