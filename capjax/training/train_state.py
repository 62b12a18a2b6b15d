"""Everything that a training step changes."""

from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import optax
from flax import struct


class TrainState(struct.PyTreeNode):
    """The state of a run between two steps.

    Attributes:
        step: batches seen; it is also the position in the data, and the label of checkpoints.
        params: trained parameters, under `decoder` and possibly `encoder`.
        batch_stats: BatchNorm statistics, under `encoder`; empty without one.
        opt_state: the optimiser's.
        ema_params: exponential moving average of `params`; empty where none is kept.
    """

    step: Any  # Int[Array, ""], but for the shapes and shardings that stand in its place in trees of their own
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema_params: Any

    @classmethod
    def create(
        cls, variables: dict[str, Any], optimizer: optax.GradientTransformation, keep_ema: bool = False
    ) -> "TrainState":
        """Start from a model's variables."""
        params = variables["params"]
        # A copy: the state's memory is given away at every step, each array of it once.
        ema = jax.tree.map(jnp.copy, params) if keep_ema else {}
        return cls(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), optimizer.init(params), ema)

    @property
    def eval_variables(self) -> dict[str, Any]:
        """What the model is validated, kept and decoded with."""
        return {"params": self.ema_params or self.params, "batch_stats": self.batch_stats}


def num_parameters(tree: Any) -> int:
    """Count the scalars of a pytree."""
    return sum(x.size for x in jax.tree.leaves(tree))


def parameter_overview(params: Any) -> str:
    """Lay out name, shape, mean and standard deviation of every parameter, the encoder's in one line.

    Args:
        params: arrays of this process, not spread over several: nothing is computed together with other processes.
    """
    rows = []
    for part, tree in sorted(params.items()):
        if part == "encoder":
            rows.append(("encoder/…", f"{num_parameters(tree):,} in all", "", ""))
            continue
        for name, x in sorted(flax.traverse_util.flatten_dict(tree, sep="/").items()):
            rows.append((f"{part}/{name}", str(x.shape), f"{float(x.mean()):+.4f}", f"{float(x.std()):.4f}"))
    rows = [("parameter", "shape", "mean", "std"), *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
