"""Ways to write the LSTM that were tried, and PyTorch's: milliseconds forward and backward, interleaved in one run.

    python experiments/benchmarks/lstm_variants.py [--batch=1024 --dtype=bfloat16]

Captions of 19 positions, the loss on the first 17. On a GPU PyTorch's is cuDNN's. All variants have the same parameters
and, which is checked first, the same gradients as `capjax.models.recurrence.LSTM`.
"""

import argparse
from collections.abc import Callable
from functools import partial

from capjax.host.memory import keep_freed_memory

keep_freed_memory()  # before there are threads

import jax
import jax.numpy as jnp
import numpy as np
import torch
from device import DEVICE, finish
from jax import lax, nn
from jaxtyping import Array
from timing import interleave, told

from capjax.models.recurrence import LSTM

Carry = tuple[Array, Array]


def cell(carry: Carry, gates: Array) -> tuple[Carry, Array]:
    """Take a step of the LSTM from its gates."""
    i, j, f, o = jnp.split(gates, 4, axis=-1)
    c = nn.sigmoid(f + 1.0) * carry[0] + nn.sigmoid(i) * jnp.tanh(j)
    h = nn.sigmoid(o) * jnp.tanh(c)
    return (c, h), h


def cut_at_every_step(xs: Array, kernel: Array, carry: Carry) -> Array:
    """Project the inputs ahead, captions first; each step cuts its half out of the kernel."""
    size = xs.shape[-1]
    projected = xs @ kernel[:size]
    steps = jnp.arange(xs.shape[1])

    def step(carry: Carry, t: Array) -> tuple[Carry, Array]:
        return cell(carry, lax.dynamic_index_in_dim(projected, t, axis=1, keepdims=False) + carry[1] @ kernel[size:])

    return jnp.swapaxes(lax.scan(step, carry, steps)[1], 0, 1)


def projected_ahead(xs: Array, kernel: Array, carry: Carry, unroll: int = 1) -> Array:
    """Project the inputs ahead, time first; the kernel is cut once."""
    size = xs.shape[-1]
    recurrent = kernel[size:]
    projected = jnp.swapaxes(xs, 0, 1) @ kernel[:size]
    hidden = lax.scan(lambda carry, p: cell(carry, p + carry[1] @ recurrent), carry, projected, unroll=unroll)[1]
    return jnp.swapaxes(hidden, 0, 1)


def added_up_in_the_scan(xs: Array, kernel: Array, carry: Carry) -> Array:
    """One product a step, time first; autodiff adds the kernel's gradient up step by step."""

    def step(carry: Carry, x: Array) -> tuple[Carry, Array]:
        return cell(carry, jnp.concatenate([x, carry[1]], axis=-1) @ kernel)

    return jnp.swapaxes(lax.scan(step, carry, jnp.swapaxes(xs, 0, 1))[1], 0, 1)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64, help="captions")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()
    num_captions, length, counted, dtype = args.batch, 19, 17, jnp.dtype(args.dtype)
    tolerance = 1e-4 if dtype == jnp.float32 else 3e-2
    rows: dict[str, list[str]] = {}
    for embed, hidden in ((100, 300), (512, 512)):
        rng = np.random.default_rng(0)
        xs = jnp.asarray(rng.normal(size=(num_captions, length, embed)), dtype)
        kernel = jnp.asarray(0.05 * rng.normal(size=(embed + hidden, 4 * hidden)), dtype)
        carry = (jnp.zeros((num_captions, hidden), dtype),) * 2
        module, bias = LSTM(embed, hidden, dtype=dtype), jnp.zeros(4 * hidden)
        variants = {
            "`capjax`": lambda xs, kernel, carry, m=module, b=bias: m.apply(
                {"params": {"kernel": kernel, "bias": b}}, carry, xs
            )[1],
            "words projected ahead, captions first, the kernel cut at each step": cut_at_every_step,
            "words projected ahead, time first, the kernel cut once": projected_ahead,
            "the same, unrolled": lambda *inputs: projected_ahead(*inputs, unroll=length),
            "the same product a step, the kernel's gradient added up in the scan": added_up_in_the_scan,
        }

        def loss_of(variant: Callable[..., Array], *inputs: Array) -> Array:
            return jnp.sum(jnp.square(variant(*inputs)[:, :counted].astype(jnp.float32)))

        gradients = {name: jax.jit(jax.grad(partial(loss_of, f), argnums=(0, 1, 2))) for name, f in variants.items()}
        expected = gradients["`capjax`"](xs, kernel, carry)
        for gradient in gradients.values():
            for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(gradient(xs, kernel, carry)), strict=True):
                a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
                np.testing.assert_allclose(a, b, rtol=10 * tolerance, atol=tolerance * np.abs(a).max())
        on_device = {"device": DEVICE, "dtype": getattr(torch, args.dtype)}
        lstm = torch.nn.LSTM(embed, hidden, batch_first=True, **on_device)
        theirs = torch.tensor(np.asarray(xs, np.float32), requires_grad=True, **on_device)
        programs = {
            name: lambda g=g, a=(xs, kernel, carry): jax.block_until_ready(g(*a)) for name, g in gradients.items()
        }

        def of_torch(lstm: torch.nn.LSTM = lstm, theirs: torch.Tensor = theirs) -> None:
            lstm(theirs)[0][:, :counted].float().pow(2).sum().backward()
            finish()

        programs["PyTorch's `nn.LSTM`"] = of_torch
        for name, seconds in interleave(programs, args.rounds).items():
            rows.setdefault(name, []).append(told(1000 * seconds, 2))
    print("| LSTM, ms | 300 units behind words of 100 | 512 behind 512 |", "| --- | --- | --- |", sep="\n")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
