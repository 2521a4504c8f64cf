"""Which row stands at which position: closed-form, random-access, the same for ever.

position ─ order ─> SampleId (source, row)

Axes: positions count samples from the start of the run; N rows in all sources together make one epoch.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dist_sft.core import seeds


@dataclass(frozen=True, slots=True)
class SampleId:
    """One sample of the run: its position (unique within the run), and the row that stands there (both from 0)."""

    position: int
    source: int
    row: int


@dataclass(frozen=True)
class Order:
    """Every row of every source once per epoch, shuffled anew in each.

    rows  number of rows of each source
    seed  of the run
    """

    rows: tuple[int, ...]
    seed: int

    @property
    def epoch_length(self) -> int:
        """Positions per epoch."""
        return sum(self.rows)

    def sample(self, position: int) -> SampleId:
        """The sample at a position, from 0 on without end."""
        epoch, offset = divmod(position, self.epoch_length)
        row = int(_epoch_order(self.epoch_length, self.seed, epoch)[offset])
        source = 0
        while row >= self.rows[source]:
            row -= self.rows[source]
            source += 1
        return SampleId(position, source, row)


@functools.lru_cache(maxsize=4)
def _epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return seeds.permutation(n, seeds.key(seed, "order", epoch))


@dataclass(frozen=True)
class Steps:
    """Positions cut into steps: step s holds positions s * samples_per_step and on.

    The last step of a run by epochs may be shorter.
    """

    order: Order
    samples_per_step: int
    positions: int

    @classmethod
    def of(
        cls, rows: Sequence[int], seed: int, samples_per_step: int, steps: int | None, epochs: float | None
    ) -> "Steps":
        """Exactly one of steps (optimizer updates) and epochs (passes over the rows) is given."""
        order = Order(tuple(rows), seed)
        if steps is not None:
            return cls(order, samples_per_step, steps * samples_per_step)
        assert epochs is not None
        return cls(order, samples_per_step, math.ceil(epochs * order.epoch_length))

    def __len__(self) -> int:
        return math.ceil(self.positions / self.samples_per_step)

    def samples(self, step: int) -> tuple[SampleId, ...]:
        """The samples of a step, in order of position. Steps count from 0."""
        first = step * self.samples_per_step
        last = min(first + self.samples_per_step, self.positions)
        return tuple(self.order.sample(position) for position in range(first, last))
