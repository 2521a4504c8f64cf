"""What the loop works with, and what it asks of others."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch.distributed as dist

from dist_sft.config.run_config import RunConfig
from dist_sft.core.results import HeldOut, StepResult
from dist_sft.data.groups import Groups
from dist_sft.data.pack import StepShare
from dist_sft.evaluate.held_out import held_out_loss
from dist_sft.model.packed import PackedModel
from dist_sft.train.clock import StepClock


class StepService(Protocol):
    """Where shares come from: see `service`."""

    def __len__(self) -> int: ...

    def shares(self, start: int) -> Iterator[StepShare]: ...


class Checkpoints(Protocol):
    """Where progress is kept: see `checkpoint`."""

    def save(self, engine: Any, step: int, state: dict[str, Any], held_out: float | None = None) -> None: ...

    def finish(self) -> None: ...


class Tracker(Protocol):
    """Where figures go: see `tracking`."""

    def step(self, result: StepResult) -> None: ...

    def evaluation(self, step: int, held_out: HeldOut) -> None: ...


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

    engine           the DeepSpeedEngine around model.module
    groups           that the samples of steps are counted in
    held_out         this rank's shares of the rows that the model is judged by; [] if there are none
    held_out_groups  that these are counted in
    """

    config: RunConfig
    engine: Any
    model: PackedModel
    service: StepService
    groups: Groups
    held_out: list[StepShare]
    held_out_groups: Groups
    checkpoints: Checkpoints
    tracker: Tracker
    clock: StepClock
    heartbeat: Heartbeat = field(default_factory=Heartbeat)

    def evaluate(self) -> HeldOut:
        """A collective: loss of the model as it is now on the held-out rows, the same on every rank."""
        return held_out_loss(
            self.model, self.held_out, self.held_out_groups, self.engine, dist.all_reduce, self.heartbeat.beat
        )
