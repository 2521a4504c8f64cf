"""The order of rows within one epoch of one stream: offset -> row.

A stream is what is shuffled together: one source, or all sources where they have no weights.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dist_sft.core import seeds

BLOCKS = 64
"""Pieces of an epoch; a pacing function is looked at where each begins."""


class RowOrder(Protocol):
    """A permutation of the stream's N rows for each epoch."""

    def rows(self, epoch: int, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64[K] rows at these offsets (int64[K] in [0, N)) of an epoch."""
        ...

    def offsets(self, epoch: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64[K] offsets of an epoch at which these rows stand: the inverse."""
        ...


@dataclass(frozen=True)
class Shuffled:
    """Uniformly random, another order in each epoch; no table."""

    count: int
    seed: int
    stream: int

    def rows(self, epoch: int, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        return seeds.permute(offsets, self.count, self._key(epoch))

    def offsets(self, epoch: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return seeds.unpermute(rows, self.count, self._key(epoch))

    def _key(self, epoch: int) -> int:
        return seeds.key(self.seed, "order", self.stream, epoch)


@dataclass(frozen=True)
class Sequential:
    """As the rows lie in their files, in every epoch."""

    def rows(self, epoch: int, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        return offsets

    def offsets(self, epoch: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return rows


@dataclass(frozen=True)
class Pacing:
    """How much of the stream may be drawn from, easiest rows first (Hacohen, Weinshall 2019, section 2).

    After the share x of an epoch the easiest `available(x)` of the rows are: `start` at first, all from `full_at` on.
    """

    start: float
    full_at: float
    power: float

    def available(self, x: float) -> float:
        """In [0, 1]; never less than x, for that much has been drawn."""
        return max(x, min(1.0, self.start + (1 - self.start) * (x / self.full_at) ** self.power))


@dataclass(frozen=True, eq=False)
class Curriculum:
    """Easy rows before hard ones.

    difficulty  float64[N], or a stage's number; equal ones are shuffled, anew in each epoch
    domain      int64[N]: every domain is spread over the whole epoch, easy to hard within itself; None: one domain
    pacing      draws at random from the easiest rows instead; None: strictly easy to hard
    """

    difficulty: NDArray[np.float64]
    domain: NDArray[np.int64] | None
    pacing: Pacing | None
    seed: int
    stream: int
    _kept: dict[int, NDArray[np.int64]] = field(default_factory=dict)

    def rows(self, epoch: int, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        if epoch not in self._kept:
            self._kept.clear()  # 8 bytes a row, of one epoch
            self._kept[epoch] = self._order(seeds.hashes(len(self.difficulty), self._key(epoch)))
        return self._kept[epoch][offsets]

    def offsets(self, epoch: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        order = self.rows(epoch, np.arange(len(self.difficulty)))
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        return places[rows]

    def __reduce__(self) -> tuple[object, ...]:
        return Curriculum, (self.difficulty, self.domain, self.pacing, self.seed, self.stream)

    def _key(self, epoch: int) -> int:
        return seeds.key(self.seed, "order", self.stream, epoch)

    def _order(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        order = np.lexsort((hashes, self.difficulty))
        if self.domain is not None:
            order = _interleaved(order, self.domain, hashes)
        return order if self.pacing is None else _paced(order, hashes, self.pacing)


def _no_rows() -> NDArray[np.int64]:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Rows of a stream that no visit comes to. All others come in the order that they would have with these.

    rows  int64[H]
    """

    rows: NDArray[np.int64] = field(default_factory=_no_rows)
    _kept: dict[int, NDArray[np.int64]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def among_all(self, offsets: NDArray[np.int64], order: RowOrder, epoch: int) -> NDArray[np.int64]:
        """int64[K] offsets in the order of all rows, of offsets in that of the rows which are not left out."""
        if not len(self.rows):
            return offsets
        before = self._kept.get(epoch)
        if before is None:
            places = np.sort(order.offsets(epoch, self.rows))
            before = places - np.arange(len(places))  # how many of the others stand before each row that is left out
            self._kept.clear()  # 8 bytes a row, of one epoch
            self._kept[epoch] = before
        return offsets + np.searchsorted(before, offsets, side="right")

    def __reduce__(self) -> tuple[object, ...]:
        return LeftOut, (self.rows,)


def _interleaved(order: NDArray[np.int64], domain: NDArray[np.int64], hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Merge the domains so that each advances through its own rows at the same relative speed."""
    of_domain = domain[order]
    grouped = np.argsort(of_domain, kind="stable")  # by domain, easy to hard within
    counts = np.bincount(of_domain)
    begins = np.repeat(np.cumsum(counts) - counts, counts)
    share = np.empty(len(order))
    share[grouped] = (np.arange(len(order)) - begins + 0.5) / np.repeat(counts, counts)
    return order[np.lexsort((hashes[order], share))]


def _paced(order: NDArray[np.int64], hashes: NDArray[np.uint64], pacing: Pacing) -> NDArray[np.int64]:
    """Each block of the epoch holds the rows with the lowest hashes among those available and not drawn yet."""
    n, open_rows, opened, drawn = len(order), order[:0], 0, []
    ends = [n * (block + 1) // BLOCKS for block in range(BLOCKS)]
    for begin, end in zip([0, *ends], ends, strict=False):
        upto = max(end, opened, math.ceil(pacing.available(begin / n) * n))
        open_rows = np.concatenate([open_rows, order[opened:upto]])
        open_rows, opened = open_rows[np.argsort(hashes[open_rows], kind="stable")], upto
        drawn.append(open_rows[: end - begin])
        open_rows = open_rows[end - begin :]
    return np.concatenate(drawn)
