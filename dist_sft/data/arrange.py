"""From settings and sources to the order of a run.

DataSection, rows of each source (how many, their columns, their mean tokens) -> Order
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dist_sft.config.data import DataSection, OrderSection
from dist_sft.core.errors import DataError
from dist_sft.data.curriculum import Curriculum, LeftOut, Pacing, RowOrder, Sequential, Shuffled
from dist_sft.data.mixture import Mixture, WeightChange, sample_weights
from dist_sft.data.order import Order, Stream

SETTLED = 200
"""Steps after which each source has its share of tokens."""
ROUNDS = 12
"""In which weights, and the rows that they take, come to agree."""


class Columns(Protocol):
    """What is asked of a source: see `sources.RowSource`."""

    name: str

    def __len__(self) -> int: ...

    def column(self, name: str) -> list[Any]: ...

    def where(self, i: int) -> str: ...


def mixed(data: DataSection) -> bool:
    """Whether sources have weights or shares; if not, their rows are shuffled together."""
    return any(source.amount is not None for source in data.sources)


def streams_of(
    data: DataSection, sources: Sequence[Columns], seed: int, left_out: Sequence[NDArray[np.int64]] = ()
) -> tuple[Stream, ...]:
    """One stream for each source that has a weight; a single one for all sources where none has.

    Args:
        left_out: int64[H] rows of each source that are not learned; without any: none are.
    Raises:
        DataError: a row without a difficulty, or a stream of which all rows are left out.
    """
    indices = range(len(sources))
    groups = [(index,) for index in indices] if mixed(data) else [tuple(indices)]
    streams = []
    for number, group in enumerate(groups):
        members = [sources[index] for index in group]
        counts = tuple(len(source) for source in members)
        begins = np.cumsum([0, *counts])
        out = [begin + left_out[index] for begin, index in zip(begins, group, strict=False)] if left_out else []
        order = _row_order(data.order, members, seed, number)
        streams.append(Stream(group, counts, order, LeftOut(np.concatenate(out)) if out else LeftOut()))
        if not len(streams[-1]):
            raise DataError(
                f"eval.share holds out all of its {sum(counts)} rows: nothing is left to train on",
                where=members[0].name,
                fix="lower eval.share, or give its held-out rows by eval.sources; rows of one question stay together",
            )
    return tuple(streams)


def order_of(
    data: DataSection,
    streams: tuple[Stream, ...],
    samples_per_step: int,
    first_lengths: Callable[[], Sequence[NDArray[np.int64]]],
) -> Order:
    """The streams, mixed as data.sources and data.schedule say.

    Args:
        first_lengths: tokens of each stream's first rows, see `Rows.first_lengths`; called only where a source has a
            share of tokens.
    """
    if not mixed(data):
        limit = data.sources[0].max_epochs if len(data.sources) == 1 else None
        return Order(streams, Mixture.of([WeightChange(0, (1.0,))], [_visits(streams[0], limit)]))
    shared = [source.token_share is not None for source in data.sources]
    settings = [(0, tuple(source.amount or 0.0 for source in data.sources))]
    settings += [(change.step * samples_per_step, change.weights) for change in data.schedule]
    if any(shared):
        changes = _changes_by_tokens(settings, shared, first_lengths(), SETTLED * samples_per_step)
    else:
        changes = [WeightChange(position, amounts) for position, amounts in settings]
    limits = [_visits(stream, source.max_epochs) for stream, source in zip(streams, data.sources, strict=True)]
    return Order(streams, Mixture.of(changes, limits))


def _changes_by_tokens(
    settings: Sequence[tuple[int, Sequence[float]]],
    shared: list[bool],
    lengths: Sequence[NDArray[np.int64]],
    settled: int,
) -> list[WeightChange]:
    """Shares of tokens as weights of samples, by measured lengths.

    The few rows of a small share may be longer or shorter than most, so until the position `settled` weights are those
    that give the shares for just the rows that come until then; from there on they are those for all measured rows.
    """

    def weights(amounts: Sequence[float], counts: Sequence[int]) -> tuple[float, ...]:
        return sample_weights(amounts, shared, [_mean(part, n) for part, n in zip(lengths, counts, strict=True)])

    all_rows = [len(part) for part in lengths]
    changes = {position: weights(amounts, all_rows) for position, amounts in settings}
    until = min([settled, *(position for position, _ in settings[1:])])
    changes.setdefault(until, changes[0])
    for _ in range(ROUNDS):
        changes[0] = weights(settings[0][1], [round(until * weight / sum(changes[0])) for weight in changes[0]])
    return [WeightChange(position, changes[position]) for position in sorted(changes)]


def _mean(lengths: NDArray[np.int64], count: int) -> float:
    """Of the first `count`, or of all where these say nothing."""
    return float(lengths[: max(count, 1)].mean()) or float(lengths.mean())


def _visits(stream: Stream, epochs: float | None) -> int | None:
    return None if epochs is None else math.ceil(Fraction(str(epochs)) * len(stream))


def _row_order(order: OrderSection, sources: Sequence[Columns], seed: int, stream: int) -> RowOrder:
    if order.kind == "shuffle":
        return Shuffled(sum(map(len, sources)), seed, stream)
    if order.kind == "sequential":
        return Sequential()
    difficulty = np.concatenate([_difficulty(source, order) for source in sources])
    domain = None
    if order.kind == "interleaved":
        names = [
            (index, None) if order.domain is None else value
            for index, source in enumerate(sources)
            for value in (source.column(order.domain) if order.domain is not None else [None] * len(source))
        ]
        if (gone := next((i for i, name in enumerate(names) if name is None), None)) is not None:
            raise _without_domain(sources, gone, str(order.domain))
        numbers = {name: number for number, name in enumerate(dict.fromkeys(map(str, names)))}
        domain = np.array([numbers[str(name)] for name in names], np.int64)
    slow = order.pacing
    pacing = None if slow is None else Pacing(slow.start, slow.full_at, slow.power)
    return Curriculum(difficulty, domain, pacing, seed, stream)


def _without_domain(sources: Sequence[Columns], row: int, column: str) -> DataError:
    source = next(source for source in sources if row < len(source) or (row := row - len(source)) < 0)
    return DataError(
        f"data.order mixes domains by '{column}', and this row says nothing there",
        where=source.where(row),
        fix="give every row a domain, or name another column in data.order.domain",
    )


def _difficulty(source: Columns, order: OrderSection) -> NDArray[np.float64]:
    """float64[N]. Raises DataError at the first row whose column says nothing."""
    stages = {name: float(number) for number, name in enumerate(order.stages)}
    found = np.empty(len(source))
    for i, value in enumerate(source.column(order.by)):
        number = value if not stages else stages.get(value) if isinstance(value, str) else None
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise DataError(
                f"data.order sorts by '{order.by}', and this row has {value!r} there",
                where=source.where(i),
                fix=f"use one of data.order.stages: {', '.join(stages)}"
                if stages
                else "give every row a finite number, or name the values in data.order.stages, easiest first",
            )
        found[i] = number
    return found
