"""Learning rates by step, by hand."""

import numpy as np
import pytest

from capjax.training.schedules import make_schedule


@pytest.mark.parametrize(
    ("name", "warmup_steps", "rates"),
    [
        ("constant", 0, {0: 2, 5: 2, 10: 2}),
        ("constant", 4, {0: 0, 1: 0.5, 2: 1, 4: 2, 5: 2, 10: 2}),
        ("cosine", 0, {0: 2, 5: 1, 10: 0}),
        ("cosine", 4, {0: 0, 2: 1, 4: 2, 7: 1, 10: 0}),
        ("exponential", 0, {0: 2, 2: 2, 3: 1, 5: 1, 6: 0.5, 9: 0.25}),
        ("exponential", 4, {0: 0, 2: 1, 4: 2, 6: 2, 7: 1, 9: 1, 10: 0.5}),
    ],
)
def test_rates_by_hand(name, warmup_steps, rates):
    """The peak is 2 and a run 10 steps long; the staircase has 3 steps between two decays, by a half."""
    schedule = make_schedule(name, 2.0, 10, warmup_steps, decay_steps=3)
    np.testing.assert_allclose([schedule(step) for step in rates], list(rates.values()), atol=1e-6)
