"""Learning-rate schedules by name."""

import optax

from capjax.errors import CapjaxError


def make_schedule(
    name: str,
    learning_rate: float,
    num_steps: int,
    warmup_steps: int = 0,
    decay_steps: int = 0,
    decay_rate: float = 0.5,
) -> optax.Schedule:
    """Make a schedule, after a linear warm-up from 0.

    Args:
        name: `constant`; `cosine`, to 0 behind the last step; `exponential`, a staircase as of im2txt.
        learning_rate: the peak.
        num_steps: of the run.
        warmup_steps: steps until the peak.
        decay_steps: of `exponential`: steps between two decays.
        decay_rate: of `exponential`: factor of each decay.

    Raises:
        CapjaxError: if the name is unknown or the numbers make no schedule.
    """
    if warmup_steps >= num_steps:
        raise CapjaxError(f"expected optimizer.warmup_steps below train.num_steps = {num_steps}, got {warmup_steps}")
    if name == "constant":
        main = optax.constant_schedule(learning_rate)
    elif name == "cosine":
        main = optax.cosine_decay_schedule(learning_rate, num_steps - warmup_steps)
    elif name == "exponential":
        if decay_steps < 1:
            raise CapjaxError("expected optimizer.decay_steps of 1 or more for the exponential schedule, got 0")
        if not 0 < decay_rate <= 1:
            raise CapjaxError(f"expected optimizer.decay_rate in (0, 1] for the exponential schedule, got {decay_rate}")
        main = optax.exponential_decay(learning_rate, decay_steps, decay_rate, staircase=True)
    else:
        raise CapjaxError(f"expected optimizer.schedule out of ['constant', 'cosine', 'exponential'], got {name!r}")
    if not warmup_steps:
        return main
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, main], [warmup_steps])
