"""What the loop works with, and what it asks of others."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from dist_sft.config.run_config import RunConfig
from dist_sft.core.results import EvalResult, StepResult
from dist_sft.data.pack import Pack, StepShare
from dist_sft.train.clock import StepClock


class StepService(Protocol):
    """Where shares come from: see `service`."""

    def __len__(self) -> int: ...

    def shares(self, start: int) -> Iterator[StepShare]: ...


class TokenScores(Protocol):
    """How packs are computed: see `model.packed`."""

    @property
    def module(self) -> nn.Module: ...

    def token_scores(
        self, call: nn.Module, pack: Pack, step: int | None, mean: bool = False
    ) -> tuple[Tensor, Tensor]: ...


class Checkpoints(Protocol):
    """Where progress is kept: see `checkpoint`."""

    def save(self, engine: Any, step: int, state: dict[str, Any], held_out: float | None = None) -> None: ...

    def finish(self) -> None: ...


class Tracker(Protocol):
    """Where figures go: see `tracking`."""

    def step(self, result: StepResult) -> None: ...

    def evaluation(self, result: EvalResult) -> None: ...


class Heartbeat:
    """Whom a rank tells that it lives: nobody here, a watchdog under Ray (see `cluster.heartbeat`)."""

    def beat(self) -> None:
        """It does: whoever watches may expect the next beat within cluster.hang."""

    def rest(self) -> None:
        """What comes now takes what it takes: nobody watches until the next beat."""

    def step(self, done: int) -> bool:
        """A beat after a step; true on all ranks where the cluster wants a checkpoint at once."""
        return False


@dataclass
class Training:
    """One rank of a run.

    engine    the DeepSpeedEngine around model.module
    held_out  this rank's shares of the rows of eval.source; [] if there is none
    """

    config: RunConfig
    engine: Any
    model: TokenScores
    service: StepService
    held_out: list[StepShare]
    checkpoints: Checkpoints
    tracker: Tracker
    clock: StepClock
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
