"""When to stop because the held-out loss no longer falls."""

from dataclasses import asdict, dataclass
from typing import Any

import torch.distributed as dist

from dist_sft.config.sections import EvalSection


@dataclass
class EarlyStopping:
    """Stop after `patience` evaluations in a row that were not better than the best by at least min_delta.

    best and waited are saved with each checkpoint, so that a resumed run stops where an uninterrupted one would.
    """

    patience: int | None
    min_delta: float
    best: float = float("inf")
    waited: int = 0

    @classmethod
    def of(cls, settings: EvalSection, state: dict[str, Any]) -> "EarlyStopping":
        return cls(settings.patience, settings.min_delta, **state)

    @property
    def state(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key in ("best", "waited")}

    @property
    def exhausted(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    def should_stop(self, loss: float) -> bool:
        """Take note of an evaluation. Rank 0 decides; all ranks get its answer."""
        if loss < self.best - self.min_delta:
            self.best, self.waited = loss, 0
        else:
            self.waited += 1
        verdict = [self.exhausted]
        dist.broadcast_object_list(verdict, src=0)
        return verdict[0]
