"""What a person reads while a run trains: a line an epoch, made of the scalars that the log holds."""

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

_NEEDED = ("train/loss", "train/words_per_second", "train/seconds")


class _Mean:
    """The mean of log lines, weighted by their words."""

    def __init__(self) -> None:
        self.words = self.seconds = self._sum = 0.0

    def add(self, value: float, words: float, seconds: float) -> None:
        self.words, self.seconds, self._sum = self.words + words, self.seconds + seconds, self._sum + words * value

    @property
    def value(self) -> float:
        return self._sum / max(self.words, 1.0)


class EpochLines:
    """Takes in what is logged and says what there is to tell of it.

    An epoch goes over every image once. It is told at the first log line after its end, with those that ended since the
    line before and with the mean over their log lines: no step waits for that. What was validated meanwhile stands in
    the same line; where validations are nearer to each other than the ends of epochs, each has a line of its own.
    """

    def __init__(
        self,
        num_steps: int,
        images_per_step: int,
        num_images: int,
        eval_every: int,
        first_step: int = 0,
        logged: Sequence[Mapping[str, Any]] = (),
        is_smoothed: bool = False,
    ) -> None:
        """Begin, or go on where the log ends.

        Args:
            num_steps: of the run.
            images_per_step: images that a step sees.
            num_images: that the run draws from, which make an epoch.
            eval_every: steps between two validations.
            first_step: that the run goes on from.
            logged: rows of the log until then; what they told is not told again. Of an epoch whose rows are lost, the
                mean is that of the rest.
            is_smoothed: whether the loss of training is that of smoothed labels, and so higher than a validation's.
        """
        self._num_steps, self._epochs_of_step = num_steps, images_per_step / num_images
        self._tells_each_validation = eval_every * images_per_step < num_images
        self._logged_step, self._is_news, self._began = 0, False, None
        self._of_epoch, self._since_line = _Mean(), _Mean()
        self._loss = "smoothed loss" if is_smoothed else "loss"
        self._what, self._scores, self._scored_step = self._loss, None, 0
        can_go_on = any("train/loss" in row for row in logged)
        self._epochs_told = 0 if can_go_on else self._epochs_ended(first_step)
        for step, rows in itertools.groupby(logged, key=lambda row: row["step"]):
            for row in rows:
                self._take(step, row)
            self.line(step)
        self._is_news = False

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take in what was logged of training until a step, or of the validation there."""
        self._take(step, scalars)
        self._is_news = True
        if self._began is None and "train/loss" in scalars:  # all is compiled
            self._began = (step, time.perf_counter())

    def line(self, step: int, last: bool = False) -> str | None:
        """Say what there is to tell after a step; None if nothing is.

        Args:
            step: that the run has come to.
            last: whether the run ends here, so that the rest is told.
        """
        before, ended = self._epochs_told, self._epochs_ended(self._logged_step)
        is_epoch = ended > before
        tells_validation = self._scores is not None and (self._tells_each_validation or step == 0)
        if not (is_epoch or tells_validation or (last and self._is_news)):
            return None
        mean = self._of_epoch if is_epoch else self._since_line
        told = [f"{self._what} {mean.value:.3f}"] if mean.words else []
        if self._scores is not None:
            where = "" if self._scored_step == step else f" at step {self._scored_step:,}"
            told += [f"validation loss {self._scores[0]:.3f}", f"CIDEr-D {self._scores[1]:.3f}{where}"]
        if self._since_line.words:
            told.append(f"{self._since_line.words / max(self._since_line.seconds, 1e-9):,.0f} words/s")
        if self._began and self._began[0] < step < self._num_steps and not last:
            pace = (time.perf_counter() - self._began[1]) / (step - self._began[0])
            told.append(f"{_duration(pace * (self._num_steps - step))} left")
        if is_epoch:
            self._epochs_told, self._of_epoch = ended, _Mean()
            epochs = f"epoch {ended:,}" if ended == before + 1 else f"epochs {before + 1:,} to {ended:,}"
        else:
            epochs = f"epoch {_short(step * self._epochs_of_step)}"
        self._since_line, self._scores, self._is_news = _Mean(), None, False
        of = f"of {_short(self._num_steps * self._epochs_of_step)} (step {step:,} of {self._num_steps:,})"
        return f"{epochs} {of}: {', '.join(told)}"

    def _take(self, step: int, row: Mapping[str, Any]) -> None:
        if all(row.get(name) is not None for name in _NEEDED):
            name, self._what = "train/loss", self._loss
            if row.get("train/reward") is not None:
                name, self._what = "train/reward", "reward"
            value, speed, seconds = row[name], row["train/words_per_second"], row["train/seconds"]
            for mean in (self._of_epoch, self._since_line):
                mean.add(value, speed * seconds, seconds)
            self._logged_step = step
        if "val/loss" in row:
            scores = (row["val/loss"], row.get("val/CIDEr-D"))
            self._scores = tuple(math.nan if score is None else score for score in scores)
            self._scored_step = step

    def _epochs_ended(self, step: int) -> int:
        return math.floor(step * self._epochs_of_step + 1e-9)


def _short(number: float) -> str:
    """Print a number of epochs with the decimals that it needs, at most two."""
    return f"{number:,.{1 if number >= 10 else 2}f}".rstrip("0").removesuffix(".")


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{0 if unit == 'min' else 1}f} {unit}"
    return f"{seconds:.0f} s"
