"""What a run measures: told by the loop, written by tracking."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GroupLoss:
    """Loss of one group of samples, in a step or among held-out rows.

    by      what samples are grouped by: "source", or the column that tracking.group_by names
    name    of the group: a source, or a value of the column
    loss    nats per unit of weight
    weight  sum of loss weights, > 0; weighted by it, the mean of all losses with the same `by` is the loss of the whole
    tokens  supervised tokens
    """

    by: str
    name: str
    loss: float
    weight: float
    tokens: int


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
    groups      those with a loss weight in this step
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
    groups: tuple[GroupLoss, ...] = ()


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Loss of a model on held-out rows.

    loss    nats per unit of weight, of all sources
    tokens  that were scored
    groups  those with a loss weight among the rows; by "source": what each source is called
    """

    loss: float
    tokens: int
    groups: tuple[GroupLoss, ...] = ()

    def loss_of(self, source: str | None) -> float:
        """Of the source of this name; None: of all."""
        if source is None:
            return self.loss
        return next(group.loss for group in self.groups if (group.by, group.name) == ("source", source))
