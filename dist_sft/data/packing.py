"""Deal a step's samples to packs.

EncodedSample lengths -> StepPlan -> (service) StepShare

Axes: N samples of the step, R ranks, M micro-steps, T tokens of one pack.

Dealing changes only speed. The plan takes as few micro-steps as the token limit allows, and then evens out the cost of
the packs that run at the same time, for every rank waits for the slowest of its micro-step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Who computes which samples of a step, and when.

    packs  packs[rank][micro_step] are indices into the step's samples; () where a rank has nothing to do
    cost   cost[rank][micro_step], in tokens: those of the pack plus what attention adds
    """

    packs: tuple[tuple[tuple[int, ...], ...], ...]
    cost: tuple[tuple[float, ...], ...]

    @property
    def micro_steps(self) -> int:
        return len(self.packs[0])

    @property
    def balance(self) -> float:
        """Time of the step over what perfect balance would take; 1 is perfect."""
        cost = np.asarray(self.cost)
        total = cost.sum()
        return float(cost.max(axis=0).sum() * len(self.cost) / total) if total else 1.0


@dataclass(frozen=True, slots=True)
class Dealer:
    """How packs are made.

    world             ranks
    tokens_per_pack   most tokens in a pack; a single longer sample still gets a pack of its own
    packing           False: one sample per pack
    micro_steps       fewest micro-steps
    quadratic         cost of a sample of L tokens is L + quadratic * L**2, see `model.cost`
    """

    world: int
    tokens_per_pack: int
    packing: bool = True
    micro_steps: int = 1
    quadratic: float = 0.0

    def deal(self, lengths: Sequence[int]) -> StepPlan:
        """A plan for N samples of these lengths (tokens). Deterministic."""
        cost = [length + self.quadratic * length * length for length in lengths]
        bins = self._bins(lengths, cost) if self.packing else [[i] for i in range(len(lengths))]
        bins.sort(key=lambda members: (-sum(cost[i] for i in members), members))
        micro_steps = max(self.micro_steps, math.ceil(len(bins) / self.world), 1)
        bins += [[] for _ in range(micro_steps * self.world - len(bins))]
        packs = tuple(
            tuple(tuple(sorted(bins[micro_step * self.world + rank])) for micro_step in range(micro_steps))
            for rank in range(self.world)
        )
        return StepPlan(packs, tuple(tuple(sum(cost[i] for i in pack) for pack in row) for row in packs))

    def _bins(self, lengths: Sequence[int], cost: Sequence[float]) -> list[list[int]]:
        """As few rounds of `world` bins as hold the samples; each round one micro-step."""
        order = sorted(range(len(lengths)), key=lambda i: (-cost[i], i))
        rounds = max(self.micro_steps, math.ceil(sum(lengths) / (self.tokens_per_pack * self.world)), 1)
        while (bins := self._cheapest_first(order, lengths, cost, rounds * self.world)) is None:
            rounds += 1
        return bins

    def _cheapest_first(
        self, order: list[int], lengths: Sequence[int], cost: Sequence[float], count: int
    ) -> list[list[int]] | None:
        """Longest-processing-time rule: each sample to the cheapest bin that has room; None if one has no place."""
        bins: list[list[int]] = [[] for _ in range(count)]
        tokens, load = np.zeros(count, np.int64), np.zeros(count)
        for i in order:
            room = (tokens + lengths[i] <= self.tokens_per_pack) | (tokens == 0)
            if not room.any():
                return None
            best = int(np.argmin(np.where(room, load, np.inf)))
            bins[best].append(i)
            tokens[best] += lengths[i]
            load[best] += cost[i]
        return [members for members in bins if members]
