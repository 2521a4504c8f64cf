"""What a run measures: told by the loop, written by tracking."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepResult:
    """One optimizer update.

    step        updates done, from 1 on: the number that names checkpoints
    loss        nats per unit of weight (per supervised token where all weights are 1), whole step, all ranks;
                None where no row of the step could be learned: nothing was updated
    grad_norm   of the whole gradient before clipping; None likewise
    tokens, supervised   of the whole step
    source_tokens        of the whole step, by source
    seconds, waited      wall-clock of the step, and the part of it spent waiting for data
    micro_steps forward passes of each rank
    balance     estimated time of the step over that of a perfectly balanced one
    fill, dummies, padding  tokens over what all packs could hold; packs without a sample; tokens of padding in others
    flops       forward and backward of the whole step
    """

    step: int
    loss: float | None
    grad_norm: float | None
    learning_rate: float
    tokens: int
    supervised: int
    source_tokens: tuple[int, ...]
    seconds: float
    waited: float
    micro_steps: int
    balance: float
    fill: float
    dummies: int
    padding: int
    flops: float


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Loss on the held-out rows after `step` updates, nats per unit of weight; tokens that were scored."""

    step: int
    loss: float
    tokens: int
