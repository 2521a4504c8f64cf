"""Turn the rows of a step into samples, and account for those that cannot become one.

position -> (source, row) -> Conversation -> EncodedSample | ledger Entry
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from dist_sft.chat.conversation import Conversation, Document, EncodedSample
from dist_sft.chat.encode import Encoder
from dist_sft.chat.formats import parse_row
from dist_sft.config.sections import DataSection, Source
from dist_sft.core.errors import DataError, RowError
from dist_sft.data.ledger import Entry
from dist_sft.data.order import SampleId, Steps
from dist_sft.data.sources import RowSource, open_source

PROBE = 256
"""Rows that are looked at before a run begins, to refuse one in which nothing can be learned."""


@dataclass(frozen=True, slots=True)
class EncodedStep:
    """The samples of a step that are learned, in order of position, and the entries of those that are not."""

    step: int
    ids: tuple[SampleId, ...]
    samples: tuple[EncodedSample, ...]
    entries: tuple[Entry, ...]


class Rows:
    """All sources of a run, and how their rows become samples."""

    def __init__(self, sources: Sequence[Source], data: DataSection, encoder: Encoder) -> None:
        self.data, self.encoder = data, encoder
        self.formats = [source.format for source in sources]
        self.sources: list[RowSource] = [open_source(source) for source in sources]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Rows of each source."""
        return tuple(len(source) for source in self.sources)

    @property
    def fingerprints(self) -> list[str]:
        """What identifies the content of each source, in order."""
        return [source.fingerprint for source in self.sources]

    def where(self, sample: SampleId) -> str:
        """The file and line of a sample, for a person."""
        return self.sources[sample.source].where(sample.row)

    def parse(self, sample: SampleId) -> Conversation | Document:
        """The conversation of a row. Raises RowError that names the row's place."""
        try:
            row = self.sources[sample.source][sample.row]
            return parse_row(row, self.formats[sample.source], self.data.role_names)
        except RowError as error:
            raise error if error.where.startswith(self.where(sample)) else error.at(self.where(sample)) from None

    def encode(self, step: int, ids: Sequence[SampleId]) -> EncodedStep:
        """Samples of one step. Raises RowError for a row that data.bad_rows or data.overlong forbids."""
        outcome: dict[SampleId, EncodedSample | RowError] = {}
        parsed: dict[SampleId, Conversation | Document] = {}
        for sample in ids:
            try:
                parsed[sample] = self.parse(sample)
            except RowError as error:
                outcome[sample] = error
        for sample, result in zip(parsed, self.encoder.encode_batch(list(parsed.values())), strict=True):
            outcome[sample] = result.at(self.where(sample)) if isinstance(result, RowError) else result
        return self._sort_out(step, [(sample, outcome[sample]) for sample in ids])

    def _sort_out(self, step: int, outcome: list[tuple[SampleId, EncodedSample | RowError]]) -> EncodedStep:
        learned: list[tuple[SampleId, EncodedSample]] = []
        entries: list[Entry] = []
        for sample, result in outcome:
            where = self.where(sample)
            if isinstance(result, RowError):
                if self._forbidden(result):
                    raise result
                entries.append(Entry(step, sample.position, where, result.reason, result.what))
                continue
            learned.append((sample, result))
            if result.cut:
                entries.append(Entry(step, sample.position, where, "truncated", f"{result.cut} tokens cut off"))
        return EncodedStep(
            step, tuple(id_ for id_, _ in learned), tuple(sample for _, sample in learned), tuple(entries)
        )

    def _forbidden(self, error: RowError) -> bool:
        policy = self.data.overlong if error.reason == "overlong" else self.data.bad_rows
        return policy == "error"

    def probe(self, steps: Steps) -> EncodedStep:
        """The first PROBE rows of a run as samples. Raises DataError where they hold nothing to learn."""
        count = min(PROBE, steps.positions)
        looked = self.encode(0, [steps.order.sample(position) for position in range(count)])
        if not looked.ids:
            first = looked.entries[0]
            reasons = ", ".join(sorted({entry.reason for entry in looked.entries}))
            raise DataError(
                f"none of the first {count} rows can be learned ({reasons}); the first: {first.what}",
                where=first.where,
                fix=f"raise data.context_length (now {self.data.context_length})"
                if reasons == "overlong"
                else "mend the rows, or look at one with: dist-sft preview RUN.yaml --row 0",
            )
        return looked


def step_hash(encoded: EncodedStep) -> str:
    """Hex digest of what a step teaches: positions, tokens and weights of its samples; nothing of how it is run."""
    digest = hashlib.sha256()
    for id_, sample in zip(encoded.ids, encoded.samples, strict=True):
        digest.update(f"{id_.position},{id_.source},{id_.row},{len(sample)};".encode())
        digest.update(sample.tokens.astype("<i4").tobytes())
        digest.update(sample.weights.astype("<f4").tobytes())
    return digest.hexdigest()
