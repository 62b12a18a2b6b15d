"""The least time that a program's matrix products take on this machine: what the benchmarks' shares are shares of."""

import functools
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
    return sum(product.times * _fastest(*product[:3]) for product in products)


@functools.cache
def _fastest(m: int, k: int, n: int) -> float:
    rng = np.random.default_rng(0)
    a, b = rng.random((m, k), np.float32), rng.random((k, n), np.float32)
    out = np.empty((m, n), np.float32)
    ours, theirs = (jnp.asarray(a), jnp.asarray(b)), (torch.from_numpy(a), torch.from_numpy(b))
    product, theirs_out = jax.jit(jnp.dot), torch.empty(m, n)
    return min(
        _best(lambda: np.dot(a, b, out=out)),
        _best(lambda: torch.mm(*theirs, out=theirs_out)),
        _best(lambda: product(*ours).block_until_ready()),
    )


def _best(program: Callable[[], object], repeats: int = 15) -> float:
    """Return the least seconds of a call, after one to warm up."""
    program()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        program()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
