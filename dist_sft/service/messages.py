"""What the members of the service say to one another.

client ─ Ask ─> dealer ─ (stream, begin, end) ─> encoder ─ ChunkFacts, Chunk ─> dealer ─ Ticket ─> client

Axes: n samples and T tokens of a chunk, D kinds of groups.

Chunks hold the tokens. They go from encoders to clients through the object store; the dealer passes on references.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_sft.chat.conversation import EncodedSample
from dist_sft.data.encoding import EncodedStep, Rows
from dist_sft.data.groups import RowGroups
from dist_sft.data.ledger import Entry
from dist_sft.data.order import SampleId, Steps
from dist_sft.data.pack import StepTotals


@dataclass(frozen=True)
class Feed:
    """A sequence of steps, and the rows that they are made of; groups: that these are counted in."""

    rows: Rows
    steps: Steps
    groups: RowGroups = field(default_factory=RowGroups)

    def encode(self, begin: int, end: int) -> EncodedStep:
        """The samples at positions [begin, end) of one step. Raises RowError."""
        step = begin // self.steps.samples_per_step
        return self.rows.encode(step, self.steps.order.samples(begin, end))

    def chunk(self, begin: int, end: int) -> "tuple[ChunkFacts, Chunk]":
        """The same, ready to travel."""
        encoded = self.encode(begin, end)
        return as_chunk(encoded, self.groups.ids(encoded.ids))


@dataclass(frozen=True, slots=True)
class Ask:
    """A rank's wish for its share of a step.

    session  number of this start of the ranks; a higher one ends those below it
    stream   name of a feed
    taken    steps below this one are not needed any more by this rank
    missing  (chunk, version) that could not be fetched and must be encoded again
    """

    session: int
    stream: str
    world: int
    rank: int
    step: int
    taken: int
    missing: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class ChunkFacts:
    """What the dealer knows of a chunk's n samples: no tokens.

    ids         SampleId[n]
    lengths     int64[n], tokens
    weights     float64[n], sum of the loss weights of each sample
    supervised  int64[n], tokens of each with a weight above 0
    groups      int32[n, D], see `data.groups`
    entries     rows that were dropped or cut
    notes       see EncodedStep
    bytes       size of the chunk
    """

    ids: tuple[SampleId, ...]
    lengths: NDArray[np.int64]
    weights: NDArray[np.float64]
    supervised: NDArray[np.int64]
    groups: NDArray[np.int32]
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Samples one after the other.

    tokens   int32[T]
    weights  float32[T]
    ends     int64[n+1], where samples begin and end
    groups   int32[n, D], see `data.groups`
    """

    tokens: NDArray[np.int32]
    weights: NDArray[np.float32]
    ends: NDArray[np.int64]
    groups: NDArray[np.int32]

    def sample(self, index: int) -> EncodedSample:
        """A view, no copy."""
        part = slice(self.ends[index], self.ends[index + 1])
        return EncodedSample(self.tokens[part], self.weights[part])


def as_chunk(encoded: EncodedStep, groups: NDArray[np.int32]) -> tuple[ChunkFacts, Chunk]:
    """A part of a step, ready to travel. groups: int32[n, D]."""
    samples = encoded.samples
    lengths = np.array([len(sample) for sample in samples], np.int64)
    chunk = Chunk(
        np.concatenate([sample.tokens for sample in samples] or [np.zeros(0, np.int32)]),
        np.concatenate([sample.weights for sample in samples] or [np.zeros(0, np.float32)]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        groups,
    )
    facts = ChunkFacts(
        encoded.ids,
        lengths,
        np.array([sample.total_weight for sample in samples], np.float64),
        np.array([sample.supervised for sample in samples], np.int64),
        groups,
        encoded.entries,
        encoded.notes,
        sum(part.nbytes for part in (chunk.tokens, chunk.weights, chunk.ends, chunk.groups)),
    )
    return facts, chunk


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sample of a pack is found: its index in a chunk."""

    id: SampleId
    chunk: int
    index: int


@dataclass(frozen=True, slots=True)
class Ticket:
    """With this a rank gathers its share of a step.

    packs    Place of each sample, by micro-step
    chunks   (version, reference) of the chunks that they lie in, by number
    entries  of the whole step, and notes: () for all ranks but the one that keeps the ledger
    seen     samples of the run up to the end of this step, for the share of bad rows
    multiple of tokens that the length of each pack shall be
    """

    step: int
    packs: tuple[tuple[Place, ...], ...]
    chunks: Mapping[int, tuple[int, Any]]
    totals: StepTotals
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]
    seen: int
    multiple: int
