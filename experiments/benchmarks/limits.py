"""The least time that a program's matrix products take on this machine: what the benchmarks' shares are shares of.

python experiments/benchmarks/limits.py 64,300,1200 128,120,8769      # GFLOP/s of products [m, k] @ [k, n]
"""

import functools
import sys
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch


class Product(NamedTuple):
    """`times` products [m, k] @ [k, n] in float32."""

    m: int
    k: int
    n: int
    times: int = 1


def seconds_of(products: Iterable[Product]) -> float:
    """Return what the products take one after the other, each with the fastest library for its shape.

    Each is repeated on the same matrices, so those that fit a cache lie in it, which in a program they may not: of one
    row, where reading the matrix is all of the work, the limit is a generous one.
    """
    return sum(product.times * min(seconds_by_library(*product[:3]).values()) for product in products)


@functools.cache
def seconds_by_library(m: int, k: int, n: int) -> dict[str, float]:
    """Time a product [m, k] @ [k, n] with each library."""
    rng = np.random.default_rng(0)
    a, b = rng.random((m, k), np.float32), rng.random((k, n), np.float32)
    out = np.empty((m, n), np.float32)
    ours, theirs = (jnp.asarray(a), jnp.asarray(b)), (torch.from_numpy(a), torch.from_numpy(b))
    product, theirs_out = jax.jit(jnp.dot), torch.empty(m, n)
    return {
        "XLA": _best(lambda: product(*ours).block_until_ready()),
        "PyTorch": _best(lambda: torch.mm(*theirs, out=theirs_out)),
        "OpenBLAS": _best(lambda: np.dot(a, b, out=out)),
    }


def _best(program: Callable[[], object], repeats: int = 15) -> float:
    """Return the least seconds of a call, after one to warm up."""
    program()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        program()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    for shape in sys.argv[1:]:
        m, k, n = map(int, shape.split(","))
        rates = {name: 2e-9 * m * k * n / seconds for name, seconds in seconds_by_library(m, k, n).items()}
        print(f"{m} × {k} × {n}:", ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()))
