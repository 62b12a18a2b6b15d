"""The update rule: clipping, an optax optimiser, and a learning rate of the encoder's own."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from capjax.errors import CapjaxError

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "sgd": optax.sgd,
    "rmsprop": optax.rmsprop,
    "adafactor": optax.adafactor,
    "lion": optax.lion,
}
WITH_WEIGHT_DECAY = ("adamw", "lion")


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    encoder_scale: float = 0.0,
) -> optax.GradientTransformation:
    """Build the gradient transformation of a run.

    Args:
        name: a key of `OPTIMIZERS`.
        schedule: learning rate of the decoder by step.
        weight_decay: of adamw and lion, decoupled; exactly that, never a default of theirs.
        clip_norm: largest global norm of the decoder's and the encoder's gradient together; 0 for no clipping.
        encoder_scale: the encoder's learning rate as a share of the decoder's; 0 freezes it and keeps no state for it.

    Raises:
        CapjaxError: if the optimiser is unknown or has no weight decay to set.
    """
    if name not in OPTIMIZERS:
        raise CapjaxError(f"expected optimizer.name out of {sorted(OPTIMIZERS)}, got {name!r}")

    if weight_decay and name not in WITH_WEIGHT_DECAY:
        raise CapjaxError(
            f"expected optimizer.weight_decay = 0 for {name!r}, got {weight_decay}; {' and '.join(WITH_WEIGHT_DECAY)} "
            "decay weights"
        )
    settings = {"weight_decay": weight_decay} if name in WITH_WEIGHT_DECAY else {}

    def rule(scale: float) -> optax.GradientTransformation:
        return OPTIMIZERS[name](lambda step: scale * schedule(step), **settings)

    parts = {"decoder": rule(1.0), "encoder": rule(encoder_scale) if encoder_scale else optax.set_to_zero()}

    def part_of_each(params: dict[str, Any]) -> dict[str, Any]:
        return {part: jax.tree.map(lambda _, name=part: name, tree) for part, tree in params.items()}

    update = optax.partition(parts, part_of_each)
    return optax.chain(optax.clip_by_global_norm(clip_norm), update) if clip_norm else update
