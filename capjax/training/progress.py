"""What a run remembers of its validations: which model was best, and for how long none has been better."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

LARGER_IS_BETTER = {"CIDEr-D": True, "accuracy": True, "loss": False}
"""The metrics that may choose the model that is kept."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """Part of every checkpoint.

    Attributes:
        validated_step: step of the latest validation, 0 before the first.
        best_step: step of the best validation so far, whose model is kept.
        best_scores: all scores of that validation, so that another metric may take over in a resumed run.
        validations_since_best: how many were not better.
    """

    validated_step: int = 0
    best_step: int = 0
    best_scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    validations_since_best: int = 0

    def best(self, metric: str) -> float | None:
        """Return the best model's score in a metric; None before the first validation."""
        return self.best_scores.get(f"val/{metric}")

    def after(self, step: int, scores: Mapping[str, float], metric: str) -> "Progress":
        """Take in a validation; `best_step` is `step` if it was better than all before. The loss breaks a tie."""
        sign, best, score = (1 if LARGER_IS_BETTER[metric] else -1), self.best(metric), scores[f"val/{metric}"]
        is_first = best is None or (math.isnan(best) and not math.isnan(score))  # nothing compares with NaN
        wins_tie = score == best and scores.get("val/loss", math.nan) < self.best_scores.get("val/loss", math.nan)
        if is_first or sign * score > sign * best or wins_tie:
            return type(self)(step, step, dict(scores), 0)
        return dataclasses.replace(self, validated_step=step, validations_since_best=self.validations_since_best + 1)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, which `from_dict` restores."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Progress":
        """Restore what `to_dict` returned; fields of other versions are passed over."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})
