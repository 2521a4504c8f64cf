"""Which row stands at which position: closed-form, random-access, the same for ever.

position ─ mixture ─> (stream, visit) ─ curriculum ─> row of the stream ─> SampleId (source, row)

Axes: positions count samples from the start of the run; visits count the samples of a stream; its N rows, but for those
that are left out, make one of its epochs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from dist_sft.data.curriculum import LeftOut, RowOrder, Shuffled
from dist_sft.data.mixture import Mixture, WeightChange


@dataclass(frozen=True, slots=True)
class SampleId:
    """One sample of the run: its position (unique within the run), and the row that stands there (both from 0)."""

    position: int
    source: int
    row: int


@dataclass(frozen=True)
class Stream:
    """Sources that are shuffled together: their rows one after the other.

    sources  index of each source
    counts   number of rows of each
    order    of all these rows
    left_out of them; an epoch has the others
    """

    sources: tuple[int, ...]
    counts: tuple[int, ...]
    order: RowOrder
    left_out: LeftOut = field(default_factory=LeftOut)

    def __len__(self) -> int:
        return sum(self.counts) - len(self.left_out)

    def rows(self, visits: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """int64[K] sources and rows of these visits."""
        epochs, offsets = np.divmod(visits, len(self))
        rows = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            among_all = self.left_out.among_all(offsets[here], self.order, int(epoch))
            rows[here] = self.order.rows(int(epoch), among_all)
        ends = np.cumsum(self.counts, dtype=np.int64)
        which = np.searchsorted(ends, rows, side="right")
        return np.array(self.sources, np.int64)[which], rows - (ends - self.counts)[which]

    def samples(self, begin: int, end: int) -> tuple[SampleId, ...]:
        """The samples of visits [begin, end), as if the stream were alone: a position is a visit."""
        visits = np.arange(begin, end, dtype=np.int64)
        return tuple(map(SampleId, visits.tolist(), *(part.tolist() for part in self.rows(visits))))


@dataclass(frozen=True)
class Order:
    """The streams of a run, and how they are mixed."""

    streams: tuple[Stream, ...]
    mixture: Mixture

    @classmethod
    def shuffled(cls, counts: Sequence[int], seed: int) -> "Order":
        """Every row of every source once per epoch, shuffled together, anew in each epoch."""
        stream = Stream(tuple(range(len(counts))), tuple(counts), Shuffled(sum(counts), seed, 0))
        return cls((stream,), Mixture.of([WeightChange(0, (1.0,))], [None]))

    @property
    def sources(self) -> int:
        """Number of sources."""
        return sum(len(stream.sources) for stream in self.streams)

    @property
    def epoch_length(self) -> int:
        """Rows of all sources that are not left out."""
        return sum(len(stream) for stream in self.streams)

    def samples(self, begin: int, end: int) -> tuple[SampleId, ...]:
        """The samples at positions [begin, end)."""
        positions = np.arange(begin, end, dtype=np.int64)
        sources, rows = np.empty_like(positions), np.empty_like(positions)
        streams, visits = self.mixture.locate(positions)
        for index, stream in enumerate(self.streams):
            here = streams == index
            sources[here], rows[here] = stream.rows(visits[here])
        return tuple(map(SampleId, positions.tolist(), sources.tolist(), rows.tolist()))

    def epochs(self, position: int) -> dict[int, float]:
        """How often the rows of each source have been passed by the samples before a position."""
        visits = self.mixture.visits_before(position)
        return {
            source: count / len(stream)
            for stream, count in zip(self.streams, visits, strict=True)
            for source in stream.sources
        }


@dataclass(frozen=True)
class Steps:
    """Positions cut into steps: step s holds positions s * samples_per_step and on.

    The last step of a run by epochs may be shorter.
    """

    order: Order
    samples_per_step: int
    positions: int

    @classmethod
    def of(cls, order: Order, samples_per_step: int, steps: int | None, epochs: float | None) -> "Steps":
        """Exactly one of steps (optimizer updates) and epochs (passes over as many samples as there are rows).

        A run by epochs ends earlier where every source ends earlier.
        """
        if steps is not None:
            return cls(order, samples_per_step, steps * samples_per_step)
        assert epochs is not None
        asked = math.ceil(Fraction(str(epochs)) * order.epoch_length)  # as it reads: 0.07 of 100 rows are 7
        end = order.mixture.end
        return cls(order, samples_per_step, asked if end is None else min(asked, end))

    def __len__(self) -> int:
        return math.ceil(self.positions / self.samples_per_step)

    def samples(self, step: int) -> tuple[SampleId, ...]:
        """The samples of a step, in order of position. Steps count from 0."""
        return self.order.samples(*self.positions_of(step))

    def positions_of(self, step: int) -> tuple[int, int]:
        """Positions [begin, end) of a step."""
        begin = step * self.samples_per_step
        return begin, min(begin + self.samples_per_step, self.positions)
