"""A program's intermediate results are given back to the next call instead of to the kernel."""

import os
import platform
import subprocess
import sys

import pytest

from capjax import cli
from capjax.host.memory import keep_freed_memory

PROGRAM = """
import resource, sys
from capjax.host.memory import keep_freed_memory
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
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PROGRAM, how]
    environment["JAX_PLATFORMS"] = "cpu"
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=300)
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is set")
def test_freed_memory_is_used_again():
    of_intermediates = 128 * 2**20 // 4096
    usual, kept = pages_a_call("usual"), pages_a_call("kept")
    assert usual > of_intermediates, "JAX gives nothing back any more: then capjax.host.memory is of no use"
    assert kept < usual / 4


def test_what_the_environment_says_of_memory_stands(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert not keep_freed_memory()


def test_the_program_sets_it_before_anything_else(monkeypatch):
    called = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: called.append(1))
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert len(called) == 1
