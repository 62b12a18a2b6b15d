"""Everything that a training step changes."""

from typing import Any, Self

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Int


class TrainState(struct.PyTreeNode):
    """The state of a run between two steps.

    Attributes:
        step: updates done.
        params: trained parameters, under `decoder` and possibly `encoder`.
        batch_stats: BatchNorm statistics, under `encoder`; empty without one.
        opt_state: the optimiser's.
    """

    step: Int[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: optax.OptState

    @classmethod
    def create(cls, variables: dict[str, Any], optimizer: optax.GradientTransformation) -> Self:
        """Start from a model's variables."""
        params = variables["params"]
        return cls(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), optimizer.init(params))

    @property
    def variables(self) -> dict[str, Any]:
        """What the model is applied with."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def num_parameters(tree: Any) -> int:
    """Count the scalars of a pytree."""
    return sum(x.size for x in jax.tree.leaves(tree))
