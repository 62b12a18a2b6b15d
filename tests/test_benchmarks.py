"""What the benchmarks report of a profile is what the program spent."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "experiments" / "benchmarks"


@pytest.fixture(scope="module")
def device():
    spec = importlib.util.spec_from_file_location("benchmark_device", FOLDER / "device.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_time_of_a_loop_is_not_that_of_its_body(device):
    events = [(10, 4, "after"), (5, 1, "inner"), (0, 10, "loop"), (1, 3, "one"), (5, 2, "two")]
    assert device.own_times(events) == [("loop", 5), ("one", 3), ("two", 1), ("inner", 1), ("after", 4)]


def test_a_profile_names_what_takes_the_time(device):
    program = jax.jit(lambda x: jnp.tanh(x @ x))
    x = jnp.ones((600, 600))
    rows = device.busiest(lambda: program(x).block_until_ready(), calls=4)
    *operations, total = rows
    assert total[0] == "of all"
    assert total[1] == pytest.approx(sum(spent for _, spent, _ in operations))
    assert operations == sorted(operations, key=lambda row: -row[1])
    assert all(spent > 0 and share > 0 for _, spent, share in rows)
