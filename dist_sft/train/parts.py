"""What the loop asks of others."""

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from dist_sft.core.results import EvalResult, StepResult
from dist_sft.data.pack import Pack, StepShare


class StepService(Protocol):
    """Where shares come from: see `service`."""

    def __len__(self) -> int: ...

    def shares(self, start: int) -> Iterator[StepShare]: ...


class TokenLosses(Protocol):
    """How packs are computed: see `model.packed`."""

    @property
    def module(self) -> nn.Module: ...

    def token_losses(self, call: nn.Module, pack: Pack, step: int | None) -> tuple[Tensor, Tensor]: ...


class Checkpoints(Protocol):
    """Where progress is kept: see `checkpoint`."""

    def save(self, engine: Any, step: int, state: dict[str, Any]) -> None: ...


class Tracker(Protocol):
    """Where figures go: see `tracking`."""

    def step(self, result: StepResult) -> None: ...

    def evaluation(self, result: EvalResult) -> None: ...
