"""What the loop works with, and what it asks of others."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from dist_sft.config.sections import RunConfig
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


@dataclass
class Training:
    """One rank of a run.

    engine    the DeepSpeedEngine around model.module
    held_out  this rank's shares of the rows of eval.source; [] if there is none
    heartbeat told of each step that is done; true on all ranks where the cluster wants a checkpoint at once
    """

    config: RunConfig
    engine: Any
    model: TokenScores
    service: StepService
    held_out: list[StepShare]
    checkpoints: Checkpoints
    tracker: Tracker
    clock: StepClock
    heartbeat: Callable[[int], bool] = lambda done: False
