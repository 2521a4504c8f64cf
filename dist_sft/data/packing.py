"""Deal a step's samples to packs.

EncodedSample lengths -> StepPlan -> (service) StepShare

Axes: N samples of the step, R ranks, M micro-steps, T tokens of one pack.

Dealing changes only speed. The plan takes as few micro-steps as the token limit allows, and then evens out the cost of
the packs that run at the same time, for every rank waits for the slowest of its micro-step.
"""

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

TRIES = 32
"""Bins that are looked at for a sample, cheapest first, before another way to fill them is taken."""


@dataclass(frozen=True)
class StepPlan:
    """Who computes which samples of a step, and when.

    packs    packs[rank][micro_step] are indices into the step's samples; () where a rank has nothing to do
    cost     cost[rank][micro_step], in tokens: those of the pack with its padding, plus what attention adds
    tokens   tokens[rank][micro_step] without padding
    padding  tokens of padding, all packs together
    limit    most tokens of a pack
    """

    packs: tuple[tuple[tuple[int, ...], ...], ...]
    cost: tuple[tuple[float, ...], ...]
    tokens: tuple[tuple[int, ...], ...]
    padding: int
    limit: int

    @property
    def micro_steps(self) -> int:
        return len(self.packs[0])

    @cached_property
    def balance(self) -> float:
        """Time of the step over what perfect balance would take; 1 is perfect. Dummy packs count as idle ranks."""
        cost = np.asarray(self.cost)
        total = cost.sum()
        return float(cost.max(axis=0).sum() * len(self.cost) / total) if total else 1.0

    @cached_property
    def dummies(self) -> int:
        """Packs without a sample."""
        return sum(not pack for packs in self.packs for pack in packs)

    @cached_property
    def fill(self) -> float:
        """Tokens over what packs of the limit would hold, dummy packs included."""
        return sum(map(sum, self.tokens)) / (self.limit * len(self.packs) * self.micro_steps)

    def advice(self) -> str | None:
        """What to change where a step is too small for its ranks; None where it is not."""
        if self.fill >= 0.5 or not any(map(any, self.packs)):
            return None
        samples, places = sum(len(pack) for packs in self.packs for pack in packs), len(self.packs) * self.micro_steps
        what = f"{self.dummies} of {places} packs are empty" if self.dummies else f"packs are {self.fill:.0%} full"
        mean = sum(map(sum, self.tokens)) / places
        return (
            f"the step is small for {len(self.packs)} ranks: {what} ({mean:.0f} tokens of {self.limit} each). "
            f"Set train.samples_per_step to about {math.ceil(0.9 * samples / self.fill)}, "
            "or take fewer workers, or lower train.tokens_per_pack"
        )


@dataclass(frozen=True, slots=True)
class Packer:
    """How packs are made.

    world               ranks; groups of `ranks_per_pack` of them get the same packs
    tokens_per_pack     most tokens in a pack; a single longer sample still gets a pack of its own
    packing             False: one sample per pack
    micro_steps         fewest micro-steps
    quadratic           cost of a sample of L tokens is L + quadratic * L**2, see `estimate.cost`
    pad_to_multiple_of  packs are filled up to a multiple of so many tokens, within the limit
    ranks_per_pack          ranks that work on one pack together; they divide the world
    """

    world: int
    tokens_per_pack: int
    packing: bool = True
    micro_steps: int = 1
    quadratic: float = 0.0
    pad_to_multiple_of: int = 1
    ranks_per_pack: int = 1

    @property
    def groups(self) -> int:
        """How many packs are computed at a time."""
        return self.world // self.ranks_per_pack

    def pack(self, lengths: Sequence[int]) -> StepPlan:
        """A plan for N samples of these lengths (tokens), for each group of ranks_per_pack. Deterministic."""
        length = np.asarray(lengths, np.int64)
        cost = length + self.quadratic * length * length
        bins = self._bins(length, cost) if self.packing else [[i] for i in range(len(length))]
        tokens = [int(length[members].sum()) for members in bins]
        padding = [-count % self.pad_to_multiple_of for count in tokens]
        total = [float(cost[members].sum()) + pad for members, pad in zip(bins, padding, strict=True)]
        order = sorted(range(len(bins)), key=lambda i: (-total[i], bins[i]))
        groups = self.groups
        micro_steps = max(self.micro_steps, math.ceil(len(bins) / groups), 1)
        slots = [order[m * groups : (m + 1) * groups] for m in range(micro_steps)]
        slots = [[*slot, *[-1] * (groups - len(slot))] for slot in slots]  # -1: the dummy at the end
        bins, total, tokens = [*bins, []], [*total, 0.0], [*tokens, 0]
        ranks = list(zip(*slots, strict=True))
        return StepPlan(
            tuple(tuple(tuple(sorted(bins[i])) for i in rank) for rank in ranks),
            tuple(tuple(total[i] for i in rank) for rank in ranks),
            tuple(tuple(tokens[i] for i in rank) for rank in ranks),
            sum(padding),
            self.tokens_per_pack,
        )

    def _bins(self, lengths: NDArray[np.int64], cost: NDArray[np.float64]) -> list[list[int]]:
        """As few rounds of `groups` bins as hold the samples; each round one micro-step."""
        limit = max(self.tokens_per_pack // self.pad_to_multiple_of, 1) * self.pad_to_multiple_of
        order = np.lexsort((np.arange(len(cost)), -cost)).tolist()
        alone = int(np.count_nonzero(2 * lengths > limit))  # no two of them share a pack
        rounds = max(self.micro_steps, math.ceil(max(int(lengths.sum()) / limit, alone) / self.groups), 1)
        tokens, costs = lengths.tolist(), cost.tolist()
        tight: list[list[int]] | None = None
        while (bins := _cheapest(order, tokens, costs, limit, rounds * self.groups)) is None:
            tight = tight or _tightest(order, tokens, limit)
            if len(tight) <= rounds * self.groups:
                return _evened(tight, tokens, costs, limit, self.groups)
            rounds += 1
        return bins


def _cheapest(order: list[int], tokens: list[int], cost: list[float], limit: int, count: int) -> list[list[int]] | None:
    """Longest-processing-time rule (Graham 1969): each sample to the cheapest bin with room; None if it finds none."""
    bins: list[list[int]] = [[] for _ in range(count)]
    held, heap = [0] * count, [(0.0, bin_) for bin_ in range(count)]
    for i in order:
        passed: list[tuple[float, int]] = []
        while heap and len(passed) < TRIES:
            load, bin_ = heapq.heappop(heap)
            if not bins[bin_] or held[bin_] + tokens[i] <= limit:
                break
            passed.append((load, bin_))
        else:
            return None
        bins[bin_].append(i)
        held[bin_] += tokens[i]
        heapq.heappush(heap, (load + cost[i], bin_))
        for entry in passed:
            heapq.heappush(heap, entry)
    return [members for members in bins if members]


def _tightest(order: list[int], tokens: list[int], limit: int) -> list[list[int]]:
    """Best-fit decreasing: each sample to the fullest bin with room."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens that still fit, bin), sorted
    for i in order:
        place = bisect_left(room, (tokens[i], -1))
        left, bin_ = room.pop(place) if place < len(room) else (limit, len(bins))
        if bin_ == len(bins):
            bins.append([])
        bins[bin_].append(i)
        if left > tokens[i]:
            insort(room, (left - tokens[i], bin_))
    return bins


def _evened(bins: list[list[int]], tokens: list[int], cost: list[float], limit: int, world: int) -> list[list[int]]:
    """The same rounds of bins, dearest first, with the samples of each dealt anew where that evens it out."""

    def total(members: list[int]) -> float:
        return sum(cost[i] for i in members)

    bins, even = sorted(bins, key=total, reverse=True), []
    for begin in range(0, len(bins), world):
        round_ = bins[begin : begin + world]
        order = sorted((i for members in round_ for i in members), key=lambda i: (-cost[i], i))
        again = _cheapest(order, tokens, cost, limit, world)
        even += again if again is not None and max(map(total, again)) < max(map(total, round_)) else round_
    return even
