"""A program's intermediate results are given back to the next call instead of to the kernel."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from capjax.host_memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
import jax, jax.numpy as jnp

@jax.jit
def program(x):  # keeps 128 MiB until its end
    _, rows = jax.lax.scan(lambda c, _: (jnp.tanh(c), c), x, None, length=32)
    return jnp.sum(rows[::-1] * rows)

x = jnp.ones((1024, 1024))
for _ in range(40):  # the heap grows until the pieces fit
    program(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    program(x).block_until_ready()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 5)
"""


def pages_a_call(how):
    run = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc that is set")
def test_freed_memory_is_used_again():
    of_intermediates = 128 * 2**20 // 4096
    usual, kept = pages_a_call("usual"), pages_a_call("kept")
    assert usual > of_intermediates, "JAX gives nothing back any more: then capjax.host_memory is of no use"
    assert kept < usual / 4
