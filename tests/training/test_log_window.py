"""What a log line says of the steps since the one before."""

import jax.numpy as jnp
import pytest

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
