"""The metrics of the steps since the last log line."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping

import jax
import numpy as np

from capjax.errors import CapjaxError
from capjax.host.waiting import DEVICES, waiting_for
from capjax.training.update import Metrics


class LogWindow:
    """Collects metrics on the devices, so that the loop need not wait for them, and averages them when asked."""

    def __init__(self, rows: Iterable[Mapping[str, float]] = ()) -> None:
        """Start the clock, with the `rows` of a window that was begun in a run that stopped."""
        self._waiting: list[tuple[int, Metrics]] = []
        self._rows = [{name: float(value) for name, value in row.items()} for row in rows]
        self._num_earlier = len(self._rows)
        self._start = time.perf_counter()

    def add(self, step: int, metrics: Metrics) -> None:
        """Take in the metrics of a step."""
        self._waiting.append((step, metrics))

    def check(self) -> None:
        """Wait for the steps so far and look at their losses; called before anything that is made of them is kept.

        Raises:
            CapjaxError: naming the first step whose loss, gradient or update was not finite.
        """
        with waiting_for(DEVICES):
            waited = jax.device_get(self._waiting)
        for step, metrics in waited:
            norms = metrics["gradient_norm"], metrics.get("update_norm", 0.0)
            if not np.isfinite([metrics["loss"], *norms]).all():
                told = f"loss {metrics['loss']}, norm of the gradient {norms[0]}, of the update {norms[1]}"
                raise CapjaxError(
                    f"the training was not finite at step {step} ({told}); the checkpoints are from before: lower the "
                    "learning rate or set optimizer.clip_norm, and begin another run"
                )
            self._rows.append({name: float(value) for name, value in metrics.items()})
        self._waiting.clear()

    @property
    def rows(self) -> list[dict[str, float]]:
        """The metrics of the steps that `check` looked at since the last line, JSON-ready."""
        return [dict(row) for row in self._rows]

    def summarise(self) -> dict[str, float]:
        """Average the metrics, weighted by words, and start anew.

        Returns:
            Scalars by name, `train/loss` and so on, `train/words_per_second`, and `train/seconds`, the time that the
            steps took, both of this run alone; empty after no step.

        Raises:
            CapjaxError: as `check`.
        """
        self.check()
        rows, self._rows = self._rows, []
        num_earlier, self._num_earlier = self._num_earlier, 0
        seconds, self._start = time.perf_counter() - self._start, time.perf_counter()
        if not rows:
            return {}
        words = np.asarray([row.pop("num_words") for row in rows], np.float64)
        weights = words / max(words.sum(), 1.0)
        mean = {f"train/{name}": float(np.dot(weights, [row[name] for row in rows])) for name in rows[0]}
        speed = float(words[num_earlier:].sum()) / seconds
        return mean | {"train/words_per_second": speed, "train/seconds": seconds}

    @contextlib.contextmanager
    def stopped_clock(self) -> Iterator[None]:
        """Leave the time of the block out of the speed; the steps so far are waited for, and checked, before.

        Raises:
            CapjaxError: as `check`.
        """
        self.check()
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start
