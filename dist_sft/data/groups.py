"""Groups of samples whose losses and tokens are counted apart: sources, and the values of a column.

tracking.group_by, columns of the sources ─> RowGroups ─ SampleId ─> ids, with the sample to its rank
                                                └─ Groups, on every rank from the start

The values are found in one pass over the column before the first step. So every rank knows before the first step how
many groups there are, and the sums by group, of one size, travel with the loss in its all-reduce. An id depends on the
rows alone: not on the world, on who encodes, or on a resume, on all of which ids that grow with the rows would depend.
The token store knows nothing of groups: equal rows of all runs share its records, and what it has is not read again.
The pass parses each row of a text file once, as a curriculum's does; of Parquet and Arrow it reads one column. It
leaves a byte per row.

Of more than MOST values the rarest are counted together as "other". A row without a value (null, "" or no such key) is
counted as "none", as every row of a source without the column is. Rows that say "other" or "none" themselves are
counted with these. Values of which the same text is written are one: 3 and "3".

Axes: n samples, D kinds of groups (1, or 2 with a column), N rows of a source.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dist_sft.core.errors import DataError, RowError
from dist_sft.core.results import GroupLoss
from dist_sft.data.order import SampleId
from dist_sft.data.readers.base import RawRow

SOURCE, NONE, OTHER = "source", "none", "other"
MOST = 64
"""Values of a column, "none" and "other" among them."""
LONGEST = 64
"""Characters of a group's name; a longer one ends with a hash of it."""
LOOKED_AT = 256
"""First rows of a source, to say which columns there are."""


class Columns(Protocol):
    """What is asked of a source: see `sources.RowSource`."""

    name: str

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int]) -> list[RawRow | RowError]: ...

    def column(self, name: str) -> list[Any]: ...


@dataclass(frozen=True, slots=True)
class GroupTotals:
    """Of one group in a step: its id, sum of loss weights, and supervised tokens."""

    id: int
    weight: float
    supervised: int


@dataclass(frozen=True)
class Groups:
    """The groups that samples may be in, for all of a run. keys: (by, name) of each; its place is its id."""

    keys: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def losses(self, sums: Sequence[float], totals: Iterable[GroupTotals]) -> tuple[GroupLoss, ...]:
        """The groups that have a weight. sums: of weight x loss in nats, by id."""
        return tuple(
            GroupLoss(*self.keys[total.id], sums[total.id] / total.weight, total.weight, total.supervised)
            for total in totals
            if total.weight
        )


@dataclass(frozen=True)
class RowGroups:
    """Which groups each row is in, found when it is first asked for.

    column  None to group by source alone
    names   what each source is called; sources of one name are one group. None: its own name, told apart from others
    """

    sources: Sequence[Columns] = ()
    column: str | None = None
    names: Sequence[str] | None = None

    @cached_property
    def groups(self) -> Groups:
        """Sources, whose ids are the first, then values of the column."""
        by = self.column if self.column != SOURCE else f"column {SOURCE}"
        by_source = ((SOURCE, name) for name in self._sources[0])
        return Groups((*by_source, *((by or "", name) for name in self._values[0])))

    def ids(self, samples: Sequence[SampleId]) -> NDArray[np.int32]:
        """int32[n, D]: the groups that each sample is in, one of each kind."""
        if not self.sources:
            return np.zeros((len(samples), 0), np.int32)
        names, of_source = self._sources
        kinds = [[of_source[sample.source] for sample in samples]]
        if self.column is not None:
            first, values = len(names), self._values[1]
            kinds.append([first + int(values[sample.source][sample.row]) for sample in samples])
        return np.array(kinds, np.int32).T

    @cached_property
    def _sources(self) -> tuple[list[str], list[int]]:
        """The names of the sources, and the place of each source's."""
        names = _told_apart([source.name for source in self.sources]) if self.names is None else self.names
        different = list(dict.fromkeys(names))
        return different, [different.index(name) for name in names]

    @cached_property
    def _values(self) -> tuple[list[str], tuple[NDArray[np.uint8], ...]]:
        """The names of the column's values; and uint8[N] of each source, the place of each row's."""
        return ([], ()) if self.column is None else _values(self.sources, self.column)


def refuse_unknown(column: str, sources: Sequence[Columns]) -> None:
    """Raise DataError where no source has the column, not even with null in it: it is misspelt."""
    there: dict[str, None] = {}
    for source in sources:
        for row in source.read(range(min(LOOKED_AT, len(source)))):
            if isinstance(row, RawRow):
                with suppress(RowError):
                    there.update(dict.fromkeys(row.parse()))
    if column not in there and all(value is None for source in sources for value in source.column(column)):
        raise DataError(
            f"no row has the column '{column}'; columns: {', '.join(there) or 'none'}",
            where="tracking.group_by",
            fix=f"name one of these, add '{column}' to the rows, or leave out tracking.group_by",
        )


def totals_of(
    ids: NDArray[np.int32], weights: NDArray[np.float64], supervised: NDArray[np.int64]
) -> tuple[GroupTotals, ...]:
    """What each group has of n samples, int32[n, D], by id; with these sums of loss weights and supervised tokens."""
    found, places = np.unique(ids.T, return_inverse=True)
    kinds, places = ids.shape[1], places.ravel()
    weight = np.bincount(places, np.tile(weights, kinds), len(found))
    tokens = np.bincount(places, np.tile(supervised, kinds), len(found))
    return tuple(map(GroupTotals, found.tolist(), weight.tolist(), tokens.astype(int).tolist()))


def added(parts: Iterable[GroupTotals]) -> tuple[GroupTotals, ...]:
    """What each group has of several steps, by id."""
    totals: dict[int, GroupTotals] = {}
    for more in parts:
        before = totals.get(more.id, GroupTotals(more.id, 0.0, 0))
        totals[more.id] = GroupTotals(more.id, before.weight + more.weight, before.supervised + more.supervised)
    return tuple(totals[id_] for id_ in sorted(totals))


def _told_apart(names: Sequence[str]) -> list[str]:
    """With the index of a source in front of a name that another has, too."""
    times = Counter(names)
    return [name if times[name] == 1 else f"{index} {name}" for index, name in enumerate(names)]


def _values(sources: Sequence[Columns], column: str) -> tuple[list[str], tuple[NDArray[np.uint8], ...]]:
    """The names of a column's values, most frequent first; and uint8[N] of each source, the place of each row's."""
    codes: dict[str, int] = {}  # in order of appearance
    of_rows = []
    for source in sources:
        found = source.column(column)
        of_rows.append(
            np.fromiter((codes.setdefault(_name(value), len(codes)) for value in found), np.int64, len(found))
        )
    counts = sum((np.bincount(rows, minlength=len(codes)) for rows in of_rows), np.zeros(len(codes), np.int64))
    ranked = sorted(codes, key=lambda name: (name != NONE, -counts[codes[name]], name))
    names = ranked if len(ranked) <= MOST else list(dict.fromkeys([*ranked[: MOST - 1], OTHER]))
    places = {name: place for place, name in enumerate(names)}
    table = np.array([places.get(name, places.get(OTHER)) for name in codes], np.uint8)
    return names, tuple(table[rows] for rows in of_rows)


def _name(value: Any) -> str:
    """What the group of a value is called."""
    if value is None:
        return NONE
    text = value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)
    name = "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
    if len(name) > LONGEST:  # which may begin as another does
        name = f"{name[: LONGEST - 9]}…{blake2b(name.encode(), digest_size=4).hexdigest()}"
    return name or NONE
