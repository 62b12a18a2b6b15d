"""What a log line says of the steps since the one before."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from capjax.errors import CapjaxError
from capjax.training.log_window import LogWindow


def test_means_are_weighted_by_words_and_a_validation_takes_no_time(monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    window = LogWindow()
    for step, (loss, words) in enumerate(((2.0, 10.0), (4.0, 30.0)), 1):
        metrics = {"loss": loss, "gradient_norm": 1.0, "num_words": words}
        window.add(step, {name: jnp.asarray(value) for name, value in metrics.items()})
        now += 1.0
        with window.stopped_clock():
            now += 5.0
    scalars = window.summarise()
    assert scalars["train/loss"] == pytest.approx(3.5)
    assert scalars["train/seconds"] == pytest.approx(2.0)
    assert scalars["train/words_per_second"] == pytest.approx(20.0)
    assert window.summarise() == {}
    window.add(3, {"loss": jnp.ones(()), "gradient_norm": jnp.ones(()), "num_words": jnp.asarray(8.0)})
    now += 4.0
    assert window.summarise() == {
        "train/loss": 1.0,
        "train/gradient_norm": 1.0,
        "train/words_per_second": 2.0,
        "train/seconds": 4.0,
    }


@pytest.mark.parametrize("name", ["loss", "gradient_norm", "update_norm"])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_the_first_step_that_is_not_finite_is_named(name, value):
    window, metrics = LogWindow(), {"loss": 1.0, "gradient_norm": 1.0, "num_words": 1.0}
    for step, changes in ((2, {}), (3, {name: value}), (4, {name: value})):
        window.add(step, {key: jnp.asarray(number) for key, number in (metrics | changes).items()})
    with pytest.raises(CapjaxError, match="not finite at step 3"):
        window.check()


def test_a_line_that_was_begun_goes_on_in_another_run(monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    steps = [{"loss": loss, "gradient_norm": 1.0, "num_words": words} for loss, words in ((2.1, 10), (4.3, 30), (1, 9))]
    whole, first = LogWindow(), LogWindow()
    for step, metrics in enumerate(steps):
        whole.add(step, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()})
    for step, metrics in enumerate(steps[:2]):
        first.add(step, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()})
    first.check()
    second = LogWindow(json.loads(json.dumps(first.rows)))
    second.add(2, {name: jnp.asarray(value, jnp.float32) for name, value in steps[2].items()})
    now += 3.0
    (expected, found) = (window.summarise() for window in (whole, second))
    assert found["train/loss"] == expected["train/loss"] != pytest.approx(1.0)
    assert (expected["train/words_per_second"], found["train/words_per_second"]) == (49 / 3, 9 / 3)
    assert second.summarise() == {} and second.rows == []
