"""A recipe on more devices than it was written for: `capjax train --scale_batch`, and the rule that it follows.

With batches k times as large, a run sees as many examples and is treated alike per example:

| field | becomes | because |
| --- | --- | --- |
| train.batch_size | × k | each device has as much to do as the one of the recipe |
| learning_rate of sgd | × k | Goyal et al. 2017, section 2.1 |
| learning_rate of the others, which divide by the gradient's size | × √k | Krizhevsky 2014; Malladi et al. 2022 |
| weight_decay | × k / factor of the learning rate | an epoch shrinks the weights as much |
| ema_decay | to the power of k | Busbridge et al. 2023 |
| all counts of steps: num_steps, warmup_steps, decay_steps, every, … | ÷ k, rounded | they count examples |
"""

import json
import math
import pathlib

from ml_collections import ConfigDict

from capjax import config as configuration
from capjax.errors import CapjaxError

_COUNTS_OF_STEPS = {
    "train": ("num_steps", "checkpoint_every", "log_every"),
    "optimizer": ("warmup_steps", "decay_steps"),
    "eval": ("every",),
}


def scale_batch(config: ConfigDict, k: int) -> ConfigDict:
    """Return the configuration of a run with batches k times as large.

    Raises:
        CapjaxError: if k is below 1, or the rule does not cover something in the configuration.
    """
    if k < 1:
        raise CapjaxError(f"expected --scale_batch of at least 1, got {k}")
    if config.scheduled_sampling.schedule and k > 1:
        raise CapjaxError(
            "--scale_batch knows no rule for scheduled_sampling, whose schedule counts steps; set the fields by hand"
        )
    scaled = config.copy_and_resolve_references()
    scaled.unlock()
    rate_factor = k if config.optimizer.name == "sgd" else math.sqrt(k)
    scaled.train.batch_size *= k
    scaled.optimizer.learning_rate *= rate_factor
    scaled.optimizer.weight_decay *= k / rate_factor
    scaled.train.ema_decay **= k
    for section, names in _COUNTS_OF_STEPS.items():
        for name in names:
            if steps := scaled[section][name]:
                scaled[section][name] = max(1, round(steps / k))
    return scaled.lock()


def scale_of(workdir: pathlib.Path, config: ConfigDict) -> int | None:
    """Return how many times as large as the configuration's a run's batches were when it was begun; None for a new run.

    Raises:
        CapjaxError: if its batches are no multiple.
    """
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        if not isinstance(values := json.loads(path.read_text()), dict):
            raise ValueError(f"{type(values).__name__} instead of an object")
        begun = configuration.from_dict(values, str(path)).train.batch_size
    except (OSError, ValueError, RecursionError) as error:
        raise CapjaxError(f"expected the configuration of a run in {path}, got {error}; delete that file") from None
    if begun % config.train.batch_size:
        raise CapjaxError(
            f"expected a multiple of train.batch_size = {config.train.batch_size} in {workdir}, which was begun with "
            f"{begun}; choose another workdir to start anew"
        )
    return begun // config.train.batch_size
