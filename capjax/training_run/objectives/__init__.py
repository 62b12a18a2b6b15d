"""What a captioner is trained for. A new objective is a file here and a line in `OBJECTIVES`."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from capjax.errors import CapjaxError
from capjax.training.train_state import TrainState
from capjax.training.update import Batch, Metrics
from capjax.training_run.objectives.cross_entropy import CrossEntropy
from capjax.training_run.objectives.self_critical import SelfCritical
from capjax.training_run.setup import Setup


@runtime_checkable
class Objective(Protocol):
    """Where a state begins, what is drawn, what is done with it."""

    def init(self) -> TrainState:
        """Make the state of a run before its first step, on the devices."""
        ...

    def batches(self, first_batch: int) -> Iterator[Batch]:
        """Go on with the global batches, as device arrays, after `first_batch` of them have been seen."""
        ...

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Do one update; `state` is used up.

        Returns:
            The new state, and scalars, which are logged. The loop needs three of them: `loss` and `gradient_norm` must
            be finite, `num_words` weighs the others when they are averaged.
        """
        ...

    def learning_rate(self, step: int) -> float:
        """Return the learning rate that led to step `step`."""
        ...


OBJECTIVES: dict[str, type[Objective]] = {"cross_entropy": CrossEntropy, "self_critical": SelfCritical}


def make_objective(setup: Setup) -> Objective:
    """Make what `train.objective` names.

    Raises:
        CapjaxError: if there is none of that name, or the configuration does not fit it.
    """
    name = setup.config.train.objective
    if name not in OBJECTIVES:
        raise CapjaxError(f"expected train.objective out of {sorted(OBJECTIVES)}, got {name!r}")
    return OBJECTIVES[name](setup)
