"""Length penalties against values worked out by hand."""

import jax.numpy as jnp
import pytest

from capjax.decoding.length_penalty import LengthPenalty


@pytest.mark.parametrize(
    "alpha, formula, length, expected",
    [
        (0.0, "gnmt", 7, 1.0),
        (1.0, "gnmt", 1, 1.0),
        (1.0, "gnmt", 7, 2.0),
        (2.0, "gnmt", 7, 4.0),
        (0.0, "plain", 7, 1.0),
        (1.0, "plain", 7, 7.0),
        (0.5, "plain", 16, 4.0),
        (-1.0, "plain", 4, 0.25),
    ],
)
def test_divisor(alpha, formula, length, expected):
    assert LengthPenalty(alpha, formula).divisor(jnp.int32(length)) == pytest.approx(expected)
