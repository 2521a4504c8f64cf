"""How many samples of each stream stand before a position, and which stream stands at it: closed-form.

position -> (stream, visit): the visit-th sample of that stream, both from 0

Within a phase the streams follow a table that repeats. The table is a fair schedule: after n positions a stream of
weight w has had floor(n w) or ceil(n w) samples (earliest deadline first among the jobs that are released: Baruah,
Cohen, Plaxton, Varvel: "Proportionate progress", Algorithmica 1996). A new phase begins where weights change or a
stream ends.
"""

import functools
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from dist_sft.core.errors import ConfigError

RESOLUTION = 1 << 20
"""Longest table. Weights whose ratios need a longer one are rounded to this fraction of their sum."""


@dataclass(frozen=True)
class WeightChange:
    """From this position on the streams have these weights."""

    position: int
    weights: tuple[float, ...]


@dataclass(frozen=True)
class _Phase:
    """begin: its first position. before: visits of each stream until then. quotas: of each stream in one table."""

    begin: int
    before: tuple[int, ...]
    quotas: tuple[int, ...]

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        turns, slots = np.divmod(positions - self.begin, sum(self.quotas))
        table = _table(self.quotas)
        streams = table.streams[slots]
        visits = np.array(self.before)[streams] + turns * np.array(self.quotas)[streams] + table.visits[slots]
        return streams, visits

    def visits_before(self, position: int) -> tuple[int, ...]:
        """Of each stream, this phase lasting until `position`."""
        turns, slots = divmod(position - self.begin, sum(self.quotas))
        counts = np.bincount(_table(self.quotas).streams[:slots], minlength=len(self.quotas))
        return tuple(b + turns * q + int(c) for b, q, c in zip(self.before, self.quotas, counts, strict=True))

    def end_of(self, stream: int, visits: int) -> int | None:
        """The position after the one at which a stream has had so many visits; None if it never has."""
        quota, more = self.quotas[stream], visits - self.before[stream]
        if more <= 0:
            return self.begin
        if not quota:
            return None
        turns, within = divmod(more - 1, quota)
        slot = int(np.flatnonzero(_table(self.quotas).streams == stream)[within])
        return self.begin + turns * sum(self.quotas) + slot + 1


@dataclass(frozen=True)
class Mixture:
    """Phases in order. end: positions after which every stream has ended; None: never."""

    phases: tuple[_Phase, ...]
    end: int | None

    @classmethod
    def of(cls, changes: Sequence[WeightChange], limits: Sequence[int | None]) -> "Mixture":
        """
        Args:
            changes: in order of position; the first at 0. Weights are >= 0, one at least above 0.
            limits: most visits of each stream; None: without end. The others share the place of one that has ended.
        """
        phases: list[_Phase] = []
        begin, before, weights = 0, (0,) * len(limits), changes[0].weights
        ahead = list(changes[1:])
        while True:
            open_weights = [
                w if limit is None or visits < limit else 0.0
                for w, visits, limit in zip(weights, before, limits, strict=True)
            ]
            if not any(open_weights):
                _refuse_gap(begin, ahead, before, limits)
                return cls(tuple(phases), begin)
            phase = _Phase(begin, before, quotas(open_weights))
            phases.append(phase)
            ends = [
                phase.end_of(stream, limit)
                for stream, limit in enumerate(limits)
                if limit is not None and open_weights[stream]
            ]
            upcoming = [end for end in ends if end is not None] + [change.position for change in ahead[:1]]
            if not upcoming:
                return cls(tuple(phases), None)
            begin = min(upcoming)
            before = phase.visits_before(begin)
            if ahead and ahead[0].position == begin:
                weights = ahead.pop(0).weights

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """int64[K] streams and visits at these positions, int64[K]."""
        number = np.searchsorted([phase.begin for phase in self.phases], positions, side="right") - 1
        streams, visits = np.empty_like(positions), np.empty_like(positions)
        for index in np.unique(number):
            here = number == index
            streams[here], visits[here] = self.phases[index].locate(positions[here])
        return streams, visits

    def visits_before(self, position: int) -> tuple[int, ...]:
        """Samples of each stream at positions below this one."""
        return next(phase for phase in reversed(self.phases) if phase.begin <= position).visits_before(position)


def _refuse_gap(begin: int, ahead: Sequence[WeightChange], before: Sequence[int], limits: Sequence[int | None]) -> None:
    """Where every source has ended, the run ends; unless a change still ahead would go on with some source."""
    for change in ahead:
        if any(w and (limit is None or n < limit) for w, n, limit in zip(change.weights, before, limits, strict=True)):
            raise ConfigError(
                f"every source with a weight has ended after {begin} samples, and data.schedule goes on with others "
                f"only at sample {change.position}",
                where="data.schedule",
                fix="bring them in earlier, or raise max_epochs of a source",
            )


def sample_weights(amounts: Sequence[float], shared: Sequence[bool], tokens: Sequence[float]) -> tuple[float, ...]:
    """Samples per sample of the run for each source, so that token shares come out as asked.

    Args:
        amounts: of each source, its share of all tokens where `shared`, else its weight. Sources with weights have the
            rest of the tokens, in proportion to their weights (samples).
        tokens: mean tokens of a source's samples, > 0.
    Returns:
        weights that sum to about 1, to five decimals: finer than any measured mean, and a short table.
    """
    sources = list(zip(amounts, shared, tokens, strict=True))
    rest = 1 - sum(amount for amount, share, _ in sources if share)
    weighted = sum(amount * mean for amount, share, mean in sources if not share) or 1.0
    raw = [amount / mean if share else rest * amount / weighted for amount, share, mean in sources]
    return tuple(max(round(value / sum(raw), 5), 1e-5) if value else 0.0 for value in raw)


def quotas(weights: Sequence[float]) -> tuple[int, ...]:
    """Smallest whole numbers in the ratio of the weights, as they read in decimals; see RESOLUTION."""
    exact = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(value.denominator for value in exact))
    whole = [int(value * scale) for value in exact]
    divisor = math.gcd(*whole)
    if sum(whole) // divisor <= RESOLUTION:
        return tuple(value // divisor for value in whole)
    ideal = [value * RESOLUTION / sum(exact) for value in exact]
    rounded = [max(int(value), 1 if value else 0) for value in ideal]
    largest = max(range(len(ideal)), key=lambda i: ideal[i])
    by_rest = sorted(range(len(ideal)), key=lambda i: (int(ideal[i]) - ideal[i], i))
    for i in by_rest[: max(0, RESOLUTION - sum(rounded))]:
        rounded[i] += 1
    rounded[largest] -= sum(rounded) - RESOLUTION
    return quotas([float(value) for value in rounded])


@dataclass(frozen=True, eq=False)
class _Table:
    """streams: int64[D] in order of slot. visits: int64[D], how many slots before have the same stream."""

    streams: NDArray[np.int64]
    visits: NDArray[np.int64]


@functools.lru_cache(maxsize=8)
def _table(quotas_: tuple[int, ...]) -> _Table:
    length, done = sum(quotas_), [0] * len(quotas_)
    released = [(-(-length // quota), stream) for stream, quota in enumerate(quotas_) if quota]  # (deadline, stream)
    waiting: list[tuple[int, int]] = []  # (release, stream)
    heapq.heapify(released)
    streams, visits = np.empty(length, np.int64), np.empty(length, np.int64)
    for slot in range(length):
        while waiting and waiting[0][0] <= slot:
            _, stream = heapq.heappop(waiting)
            heapq.heappush(released, (-(-(done[stream] + 1) * length // quotas_[stream]), stream))
        _, stream = heapq.heappop(released)
        streams[slot], visits[slot] = stream, done[stream]
        done[stream] += 1
        if done[stream] < quotas_[stream]:
            heapq.heappush(waiting, (done[stream] * length // quotas_[stream], stream))
    return _Table(streams, visits)
