"""Loss on held-out rows, and when to stop because it no longer falls."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist

from dist_sft.config.sections import EvalSection
from dist_sft.core.results import EvalResult
from dist_sft.data.pack import StepShare
from dist_sft.train.parts import TokenLosses


@torch.no_grad()
def evaluate(engine: Any, model: TokenLosses, shares: Sequence[StepShare], step: int) -> EvalResult:
    """Weighted mean of the token losses over all held-out rows: no noise, no dropout. Same on every rank."""
    training = model.module.training
    model.module.eval()
    total = torch.zeros((), dtype=torch.float64, device=engine.device)
    for share in shares:
        for pack in share.packs:
            nll, weights = model.token_losses(engine, pack, None)
            total += (nll * weights).sum(dtype=torch.float64)
    dist.all_reduce(total)
    model.module.train(training)
    return EvalResult(step, float(total) / sum(s.weight for s in shares), sum(s.supervised for s in shares))


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

    def should_stop(self, loss: float) -> bool:
        """Take note of an evaluation. Rank 0 decides; all ranks get its answer."""
        if loss < self.best - self.min_delta:
            self.best, self.waited = loss, 0
        else:
            self.waited += 1
        verdict = [self.patience is not None and self.waited >= self.patience]
        dist.broadcast_object_list(verdict, src=0)
        return verdict[0]
