"""The least time that a program's matrix products take on this machine: what the benchmarks' shares are shares of.

python experiments/benchmarks/limits.py 64,300,1200 128,120,8769      # GFLOP/s of products [m, k] @ [k, n]

On an accelerator the library is PyTorch's (XLA would compile for seconds for every shape), and the products stand in
line, as a program's would.
"""

import argparse
import functools
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from device import DEVICE, ON_CPU, finish
from timing import warm_up


class Product(NamedTuple):
    """`times` products [m, k] @ [k, n]."""

    m: int
    k: int
    n: int
    times: int = 1


def seconds_of(products: Iterable[Product], dtype: str = "float32") -> float:
    """Return what the products take one after the other, each with the fastest library for its shape.

    Each is repeated on the same matrices, so those that fit a cache lie in it, which in a program they may not: of one
    row, where reading the matrix is all of the work, the limit is a generous one.
    """
    return sum(product.times * min(seconds_by_library(*product[:3], dtype).values()) for product in products)


@functools.cache
def seconds_by_library(m: int, k: int, n: int, dtype: str = "float32") -> dict[str, float]:
    """Time a product [m, k] @ [k, n] with each library: XLA only on a CPU, OpenBLAS only there and in float32."""
    rng = np.random.default_rng(0)
    a, b = rng.random((m, k), np.float32), rng.random((k, n), np.float32)
    ours = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
    theirs = [torch.from_numpy(x).to(DEVICE, getattr(torch, dtype)) for x in (a, b)]
    product = jax.jit(jnp.dot)
    out, theirs_out = np.empty((m, n), np.float32), torch.empty(m, n, device=DEVICE, dtype=theirs[0].dtype)
    in_line = 1 if ON_CPU else 20

    def by_xla() -> None:
        product(*ours).block_until_ready()

    def by_torch() -> None:
        for _ in range(in_line):
            torch.mm(*theirs, out=theirs_out)
        finish()

    seconds = {"PyTorch": _best(by_torch) / in_line}
    if ON_CPU:
        seconds["XLA"] = _best(by_xla)
    if ON_CPU and dtype == "float32":
        seconds["OpenBLAS"] = _best(lambda: np.dot(a, b, out=out))
    return seconds


def _best(program: Callable[[], object], repeats: int = 15) -> float:
    """Return the least seconds of a call."""
    warm_up(program)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        program()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="+", type=lambda text: tuple(map(int, text.split(","))), metavar="M,K,N")
    for m, k, n in parser.parse_args().shapes:
        rates = {name: 2e-9 * m * k * n / seconds for name, seconds in seconds_by_library(m, k, n).items()}
        print(f"{m} × {k} × {n}:", ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()))
