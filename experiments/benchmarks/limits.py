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

    A product of few rows is bound by reading its matrix, which in a program lies in no cache: it counts with the bytes
    of the matrix over the memory's bandwidth, where that is more.
    """
    return sum(
        product.times * max(_fastest(*product[:3]), 4 * product.k * product.n / bandwidth() if product.m < 8 else 0.0)
        for product in products
    )


@functools.cache
def bandwidth() -> float:
    """Measure the bytes a second that all cores read from memory: a sum over 512 MB."""
    numbers = torch.ones(1 << 27)
    return 4 * numbers.numel() / _best(numbers.sum, repeats=7)


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
