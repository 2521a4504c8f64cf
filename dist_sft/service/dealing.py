"""The dealer: which samples every rank computes in a step, and who holds their tokens. Plain Python on one event loop.

Ask ─> chunks of the step ─ encoders ─> lengths ─ Packer.deal ─> Ticket

It holds nothing that is worth saving. All of it can be computed again from an Ask, so a dealer that dies is started
anew and knows nothing, and the next Ask tells it what to do.

Credits. Encoded samples that some rank has still to take are bytes in flight. A chunk is sent to an encoder only while
these, with the most that the chunk can become, stay within the budget; lower steps go first. So a rank that stands
still stops the encoders, however fast they are, and nothing is dropped or reordered.
"""

import asyncio
import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from dist_sft.core.errors import ClusterError, ConfigError
from dist_sft.data.groups import totals_of
from dist_sft.data.ledger import Entry
from dist_sft.data.order import Steps
from dist_sft.data.pack import StepTotals
from dist_sft.data.packing import Packer, StepPlan
from dist_sft.service.messages import Ask, ChunkFacts, Place, Ticket

BYTES_PER_TOKEN = 8
"""An id and a weight."""
BYTES_PER_SAMPLE = 16
"""Where it ends, and its groups of two kinds."""
CHUNK = 64
"""Most samples that are encoded at once."""


class Encoders(Protocol):
    """Who turns positions into chunks.

    capacity  chunks that they can work on at a time
    """

    capacity: int

    async def encode(self, stream: str, begin: int, end: int) -> tuple[ChunkFacts, Any]:
        """What is in the chunk, and a reference to it. Raises SftError; survives the death of an encoder."""
        ...


@dataclass(eq=False)
class _Chunk:
    """Positions [begin, end) of a step. bytes: reserved or held. version: counts how often it was asked for anew."""

    begin: int
    end: int
    version: int = 0
    bytes: int = 0
    running: bool = False
    facts: ChunkFacts | None = None
    reference: Any = None


@dataclass(eq=False)
class _Work:
    """A step that some rank has still to take. dealt is kept even if chunks are encoded again: it cannot change.

    todo: chunks that are neither there nor with an encoder
    """

    chunks: list[_Chunk]
    todo: int
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None
    dealt: "_Dealt | None" = None

    @property
    def bytes(self) -> int:
        return sum(chunk.bytes for chunk in self.chunks)

    @property
    def encoded(self) -> bool:
        return all(chunk.reference is not None for chunk in self.chunks)


@dataclass(frozen=True)
class _Dealt:
    """The deal of a step whose chunks have all been encoded once. places: of its samples, in order of position."""

    plan: StepPlan
    places: tuple[Place, ...]
    totals: StepTotals
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]


@dataclass
class _Delivery:
    """A stream on its way to the ranks of the present session.

    taken     by rank, the first step that it still needs
    standing  how many ranks stand at each of these steps
    """

    world: int
    taken: dict[int, int] = field(default_factory=dict)
    standing: Counter[int] = field(default_factory=Counter)
    steps: dict[int, _Work] = field(default_factory=dict)

    def advance(self, rank: int, upto: int) -> None:
        """A rank needs no step below `upto` any more."""
        before = self.taken.get(rank)
        if before is not None:
            if upto <= before:
                return
            self.standing[before] -= 1
            if not self.standing[before]:
                del self.standing[before]
        self.taken[rank] = upto
        self.standing[upto] += 1


class StepDealer:
    """Deals the steps of some streams. in_flight, peak: bytes of encoded samples, now and at most."""

    def __init__(
        self,
        streams: Mapping[str, Steps],
        packer: Packer,
        encoders: Encoders,
        context_length: int,
        budget: int,
        alone: bool = False,
    ) -> None:
        """
        Args:
            packer: how packs are made; its world is each Ask's.
            context_length: most tokens of a sample.
            budget: bytes.
            alone: only one rank asks, and it keeps its own ledger; the others have dealers of their own.
        """
        self.streams, self.packer, self.encoders = streams, packer, encoders
        self.context_length, self.budget, self.alone = context_length, budget, alone
        self.in_flight = self.peak = self.encoded_chunks = 0
        self._session = 0
        self._running: set[asyncio.Task[None]] = set()
        self._deliveries: dict[str, _Delivery] = {}
        self._chunk = max(1, min(CHUNK, budget // 8 // (context_length * BYTES_PER_TOKEN)))

    async def share(self, ask: Ask) -> Ticket:
        """A rank's share, once all samples of the step are encoded.

        Raises what encoding raises; ClusterError for a rank of a session that has ended; ConfigError for a step that
        does not fit into the budget.
        """
        delivery = self._delivery(ask)
        delivery.advance(ask.rank, ask.taken)
        work = delivery.steps.get(ask.step)
        if work is None:
            chunks = list(self._chunks(self.streams[ask.stream], ask.step))
            work = delivery.steps[ask.step] = _Work(chunks, len(chunks))
        for number, version in ask.missing:
            if work.chunks[number].version == version:
                self._forget(work, work.chunks[number])
        self._release(delivery)
        self._pump()
        while not (work.error or work.encoded):  # it may have been given up again before this rank's turn came
            await work.ready.wait()
        if work.error:
            raise work.error
        return self._ticket(ask, work)

    async def taken(self, session: int, stream: str, rank: int, upto: int) -> None:
        """A rank needs no step below `upto` any more."""
        delivery = self._deliveries.get(stream)
        if delivery and session == self._session:
            delivery.advance(rank, upto)
            self._release(delivery)
            self._pump()

    async def figures(self) -> dict[str, int]:
        """in_flight, peak and budget in bytes; chunks encoded; steps held. An answer also says: alive."""
        held = sum(len(delivery.steps) for delivery in self._deliveries.values())
        return {
            "in_flight": self.in_flight,
            "peak": self.peak,
            "budget": self.budget,
            "encoded_chunks": self.encoded_chunks,
            "steps": held,
        }

    def _delivery(self, ask: Ask) -> _Delivery:
        """The stream's delivery to the asking session; a newer session ends the older one, and all its streams."""
        if ask.session < self._session:
            raise _stale(ask.session)
        if ask.session > self._session:
            for delivery in self._deliveries.values():
                for work in delivery.steps.values():
                    self._drop(work)
            self._deliveries.clear()
            self._session = ask.session
        return self._deliveries.setdefault(ask.stream, _Delivery(ask.world))

    def _chunks(self, steps: Steps, step: int) -> Iterator[_Chunk]:
        begin, end = steps.positions_of(step)
        size = min(self._chunk, max(1, math.ceil((end - begin) / self.encoders.capacity)))
        return (_Chunk(first, min(first + size, end)) for first in range(begin, end, size))

    def _pump(self) -> None:
        """Send chunks to the encoders, lowest step first, as far as hands and budget reach."""
        waiting = sorted(
            ((step, stream) for stream, delivery in self._deliveries.items() for step in delivery.steps),
            key=lambda s: s[0],
        )
        for step, stream in waiting:
            work = self._deliveries[stream].steps[step]
            for chunk in work.chunks if work.todo and not work.error else ():
                if chunk.running or chunk.reference is not None:
                    continue
                if len(self._running) >= self.encoders.capacity:
                    return
                most = (chunk.end - chunk.begin) * (self.context_length * BYTES_PER_TOKEN + BYTES_PER_SAMPLE) + 8
                if not self._admit(most, step, work):
                    return
                chunk.bytes, chunk.running, work.todo = most, True, work.todo - 1
                self.in_flight += most
                self.peak = max(self.peak, self.in_flight)
                task = asyncio.get_running_loop().create_task(self._encode(stream, work, chunk))
                self._running.add(task)
                task.add_done_callback(self._finished)

    def _admit(self, most: int, step: int, work: _Work) -> bool:
        """Whether so many bytes may be added for a step. Higher steps give way; a step too large by itself fails."""
        if self.in_flight + most <= self.budget:
            return True
        if self._running:
            return False
        held = [
            (number, other)
            for delivery in self._deliveries.values()
            for number, other in delivery.steps.items()
            if other is not work and other.bytes
        ]
        for number, other in sorted(held, key=lambda pair: -pair[0]):
            if number > step:  # left by ranks that were ahead when a dealer died; encoded again when its turn comes
                for chunk in other.chunks:
                    self._forget(other, chunk)
                if self.in_flight + most <= self.budget:
                    return True
        if not self.in_flight or all(other is work or not other.bytes for _, other in held):
            work.error = ConfigError(
                f"step {step + 1} does not fit into service.budget={self.budget} bytes",
                where="service.budget",
                fix=f"set service.budget to {2 * (self.in_flight + most)} or more, or lower train.samples_per_step",
            )
            work.ready.set()
        return False

    async def _encode(self, stream: str, work: _Work, chunk: _Chunk) -> None:
        version = chunk.version
        try:
            facts, reference = await self.encoders.encode(stream, chunk.begin, chunk.end)
        except Exception as error:  # noqa: BLE001  # whoever asks for the step gets it
            work.error = error
            work.ready.set()
            facts, reference = None, None
        chunk.running = False
        self.encoded_chunks += 1
        keep = facts is not None and version == chunk.version
        self.in_flight += (facts.bytes if facts and keep else 0) - chunk.bytes
        chunk.bytes = facts.bytes if facts and keep else 0
        if not keep:
            work.todo += 1
            return
        chunk.facts, chunk.reference = facts, reference
        if work.encoded:
            work.ready.set()

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        if not task.cancelled():
            self._pump()

    def _forget(self, work: _Work, chunk: _Chunk) -> None:
        """Encode a chunk anew when its turn comes."""
        chunk.version += 1
        if not chunk.running:
            self.in_flight -= chunk.bytes
            chunk.bytes = 0
        work.todo += chunk.reference is not None
        chunk.reference = None
        if not work.error:
            work.ready.clear()

    def _drop(self, work: _Work) -> None:
        """Nobody needs a step any more; a rank that waits for it all the same, as it ends, is sent away."""
        for chunk in work.chunks:
            self._forget(work, chunk)
        work.error = _stale(self._session)
        work.ready.set()

    def _release(self, delivery: _Delivery) -> None:
        """Let go of steps that every rank has taken; a rank that has not been heard of yet may need any."""
        if len(delivery.taken) < (1 if self.alone else delivery.world):
            return
        floor = min(delivery.standing)
        for step in [step for step in delivery.steps if step < floor]:
            self._drop(delivery.steps.pop(step))

    def _ticket(self, ask: Ask, work: _Work) -> Ticket:
        steps = self.streams[ask.stream]
        if work.dealt is None:
            dealer = dataclasses.replace(self.packer, world=ask.world)
            work.dealt = _deal([chunk.facts for chunk in work.chunks if chunk.facts], dealer, steps.order.sources)
        dealt = work.dealt
        packs = tuple(
            tuple(dealt.places[i] for i in pack) for pack in dealt.plan.packs[ask.rank // self.packer.ranks_per_pack]
        )
        numbers = sorted({place.chunk for pack in packs for place in pack})
        keeps = self.alone or ask.rank == 0
        return Ticket(
            step=ask.step,
            packs=packs,
            chunks={number: (work.chunks[number].version, work.chunks[number].reference) for number in numbers},
            totals=dealt.totals,
            entries=dealt.entries if keeps else (),
            notes=dealt.notes if keeps else (),
            seen=steps.positions_of(ask.step)[1],
            multiple=self.packer.pad_to_multiple_of,
        )


def _deal(facts: list[ChunkFacts], packer: Packer, sources: int) -> _Dealt:
    lengths = np.concatenate([part.lengths for part in facts])
    source = np.array([id_.source for part in facts for id_ in part.ids], np.int64)
    weights = np.concatenate([part.weights for part in facts])
    supervised = np.concatenate([part.supervised for part in facts])
    groups = np.concatenate([part.groups for part in facts])
    plan = packer.pack(lengths.tolist())
    totals = StepTotals(
        samples=len(lengths),
        weight=float(sum(weights.tolist())),
        tokens=int(lengths.sum()),
        squares=int((lengths**2).sum()),
        supervised=int(supervised.sum()),
        source_tokens=tuple(np.bincount(source, lengths, minlength=sources).astype(int).tolist()),
        balance=plan.balance,
        fill=plan.fill,
        dummies=plan.dummies,
        padding=plan.padding,
        groups=totals_of(groups, weights, supervised),
    )
    places = (Place(id_, number, index) for number, part in enumerate(facts) for index, id_ in enumerate(part.ids))
    entries = tuple(entry for part in facts for entry in part.entries)
    return _Dealt(plan, tuple(places), totals, entries, tuple(note for part in facts for note in part.notes))


def _stale(session: int) -> ClusterError:
    return ClusterError(
        "a rank of an earlier start of the run asks for data; a later start has taken over",
        where=f"session {session}",
        fix="nothing: it ends here, and the later start goes on",
    )
