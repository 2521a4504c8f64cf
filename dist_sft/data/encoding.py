"""Turn rows into samples, and account for those that cannot become one.

(source, row) ─ token store, or file -> Conversation -> chat/encode ─> EncodedSample | ledger Entry
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
import tokenizers
from numpy.typing import NDArray

from dist_sft import chat
from dist_sft.chat.conversation import Conversation, Document, EncodedSample
from dist_sft.chat.encode import Encoder
from dist_sft.chat.formats import parse_row
from dist_sft.chat.prerendered import CONTROL_TOKENS, Policy
from dist_sft.config.data import DataSection, Source
from dist_sft.core.errors import DataError, RowError
from dist_sft.core.files import stable_hash
from dist_sft.data import readers
from dist_sft.data.ledger import Entry
from dist_sft.data.order import SampleId, Steps, Stream
from dist_sft.data.readers.arrow import trim
from dist_sft.data.readers.jsonl import AT_ONCE
from dist_sft.data.shards import Outcome
from dist_sft.data.sources import RawRow, RowSource, open_source
from dist_sft.data.token_store import TokenStore, digest_of

PROBE = 256
"""Rows that are looked at before a run begins, to refuse one in which nothing can be learned."""
FIRST_ROWS = 8
"""Of each source that has no row among these, for what is a matter of the source."""
MEASURED_ROWS, MEASURED_TOKENS = 2048, 1 << 20
"""Of each source, where shares of tokens are wanted: its first rows in the order of the run, up to so many tokens."""


class Layout(NamedTuple):
    """How the rows of a source are written: Source.format, Source.columns as pairs, Source.control_tokens."""

    format: str
    columns: tuple[tuple[str, str], ...] = ()
    control_tokens: Policy = "refuse"

    @classmethod
    def of(cls, source: Source) -> "Layout":
        return cls(source.format, tuple(sorted(source.columns.items())), source.control_tokens)


@dataclass(frozen=True, slots=True)
class Told:
    """What is told of the first rows of a run, by the number of rows.

    unread   keys that hold something and say nothing here
    spelled  control tokens that their text has, and that are spelled out in letters
    reread   rows that were read out of a text that the template could have written; `thoughts`: to how many of these
             it adds an empty thought
    forgotten  rows that learn answers of earlier turns whose thoughts the template leaves out
    served   what of their answers is not as at inference
    """

    unread: dict[str, int] = field(default_factory=dict)
    spelled: dict[str, int] = field(default_factory=dict)
    reread: int = 0
    thoughts: int = 0
    forgotten: int = 0
    served: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """For a person; nothing where there is nothing to tell."""
        keys = [f"keys of rows that are not read: {', '.join(sorted(self.unread))}"] if self.unread else []
        return keys + self.of_texts()

    def of_texts(self) -> list[str]:
        """What is told of the rows' texts, without the keys that are not read."""
        lines = []
        if self.spelled:
            tokens = ", ".join(f"{token} in {count}" for token, count in sorted(self.spelled.items()))
            lines.append(f"control tokens in the text of rows, spelled out in letters: {tokens} of the first rows")
        if self.reread:
            lines.append(
                f"first rows whose text was read as turns: {self.reread}; to {self.thoughts} of them the template adds "
                "an empty thought, which is not learned"
            )
        if self.forgotten:
            lines.append(
                f"the template leaves out the thoughts of earlier turns, and {self.forgotten} of the first rows learn "
                "such an answer without its thought; data.loss.turns=last learns the last answer alone"
            )
        lines += [f"{said}: {count} of the first rows" for said, count in sorted(self.served.items())]
        return lines


@dataclass(frozen=True, slots=True)
class EncodedStep:
    """The samples of a step that are learned, in order of position, and the entries of those that are not.

    notes  what happened to the token store meanwhile, for a person
    """

    step: int
    ids: tuple[SampleId, ...]
    samples: tuple[EncodedSample, ...]
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()


class Rows:
    """All sources of a run, and how their rows become samples. Pickles small, and opens its files again elsewhere.

    encoded  samples that this process has encoded, and not found in the token store
    cache    folder for what is worth keeping; None: there is none
    """

    def __init__(
        self, sources: Sequence[Source], data: DataSection, encoder: Encoder, opened: Sequence[RowSource] | None = None
    ) -> None:
        """opened: what `open_sources` gave for the same sources, if it was called before. Raises DataError likewise."""
        self.data, self.encoder, self.encoded = data, encoder, 0
        self.layouts = [Layout.of(source) for source in sources]
        self.cache = cache = data.cache_folder
        self.sources = list(opened or open_sources(sources, data))
        self.stores = {layout: self._store(cache, layout) for layout in set(self.layouts)} if cache else {}
        self._open_maps()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "maps": [], "encoded": 0}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._open_maps()

    def _open_maps(self) -> None:
        self.maps = [
            self.stores[layout].rows(source.fingerprint, len(source)) if self.stores else None
            for layout, source in zip(self.layouts, self.sources, strict=True)
        ]

    def _store(self, cache: Path, layout: Layout) -> TokenStore:
        """Samples by the content of their rows, under all else that decides them."""
        namespace = stable_hash([self.encoder.fingerprint, code_fingerprint(), layout, dict(self.data.role_names)])
        return TokenStore(cache / "tokens", namespace, self.data.cache_size)

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
        (row,) = self.sources[sample.source].read([sample.row])
        parsed = self._parsed(row, sample.source)
        if isinstance(parsed, RowError):
            raise self._at_its_place(parsed, sample)
        return parsed

    def items(self, source: int) -> Iterator[Conversation | Document | RowError]:
        """What each row of a source means, in order."""
        count = len(self.sources[source])
        for begin in range(0, count, AT_ONCE):
            for raw in self.sources[source].read(range(begin, min(begin + AT_ONCE, count))):
                yield self._parsed(raw, source)

    def encode(self, step: int, ids: Sequence[SampleId]) -> EncodedStep:
        """Samples of one step, or of a part of it. Raises RowError for a row that bad_rows or overlong forbids."""
        learned: list[tuple[SampleId, EncodedSample]] = []
        entries: list[Entry] = []
        for id_, result in zip(ids, self.outcomes(ids), strict=True):
            if isinstance(result, RowError):
                if self._forbidden(result):
                    raise result
                entries.append(Entry(step, id_.position, self.where(id_), result.reason, result.what, result.lost))
                continue
            learned.append((id_, result))
            if result.cut:
                cut = f"{result.cut} tokens cut off"
                entries.append(Entry(step, id_.position, self.where(id_), "truncated", cut, result.lost))
        ids, samples = tuple(id_ for id_, _ in learned), tuple(sample for _, sample in learned)
        return EncodedStep(step, ids, samples, tuple(entries), self._notes())

    def _notes(self) -> tuple[str, ...]:
        """What is new of the token stores' troubles."""
        notes = tuple(note for store in self.stores.values() for note in store.damaged)
        for store in self.stores.values() if notes else ():
            store.damaged.clear()
        return notes

    def outcomes(self, ids: Sequence[SampleId]) -> list[Outcome]:
        """What each row becomes; errors name the row's place. A row that the token store has is not read."""
        places: dict[int, list[int]] = {}
        for place, id_ in enumerate(ids):
            places.setdefault(id_.source, []).append(place)
        found: dict[int, Outcome] = {}
        for source, here in places.items():
            found.update(zip(here, self._of_source(source, [ids[place].row for place in here]), strict=True))
        return [
            self._at_its_place(result, id_) if isinstance(result := found[place], RowError) else result
            for place, id_ in enumerate(ids)
        ]

    def _of_source(self, source: int, rows: list[int]) -> list[Outcome]:
        known = self.maps[source]
        results: list[Outcome | None] = list(known.read(rows)) if known else [None] * len(rows)
        missing = [i for i, result in enumerate(results) if result is None]
        if missing:
            raw = self.sources[source].read([rows[i] for i in missing])
            for i, result in zip(missing, self._looked_up(source, [rows[i] for i in missing], raw), strict=True):
                results[i] = result
        return [result for result in results if result is not None]

    def _looked_up(self, source: int, numbers: list[int], raw: Sequence[RawRow | RowError]) -> list[Outcome]:
        """Rows that are known only by their content, if at all."""
        known, results = self.maps[source], list[RawRow | Outcome](raw)
        digests = {i: digest_of(row.content) for i, row in enumerate(raw) if isinstance(row, RawRow)}
        if known:
            for i, result in zip(digests, known.find([numbers[i] for i in digests], [*digests.values()]), strict=True):
                results[i] = result if result is not None else raw[i]
        fresh = [i for i in digests if isinstance(results[i], RawRow)]
        encoded = self._encoded(source, [numbers[i] for i in fresh], [raw[i] for i in fresh])
        self.encoded += len(fresh)
        if known:
            known.add([numbers[i] for i in fresh], [digests[i] for i in fresh], encoded)
        for i, result in zip(fresh, encoded, strict=True):
            results[i] = result
        return [result for result in results if not isinstance(result, RawRow)]

    def _encoded(self, source: int, numbers: Sequence[int], raw: Sequence[RawRow | RowError]) -> list[Outcome]:
        """Samples or errors, none of which depends on where the row lies: the token store gives them to equal rows."""
        parsed = [
            found.inside(self.sources[source].where(number)) if isinstance(found, RowError) else found
            for number, found in zip(numbers, (self._parsed(row, source) for row in raw), strict=True)
        ]
        encoded = iter(self.encoder.encode_batch([item for item in parsed if not isinstance(item, RowError)]))
        return [item if isinstance(item, RowError) else next(encoded) for item in parsed]

    def _parsed(self, raw: RawRow | RowError, source: int) -> Conversation | Document | RowError:
        if isinstance(raw, RowError):
            return raw
        try:
            layout = self.layouts[source]
            native = self.encoder.native(layout.control_tokens)
            return parse_row(raw.parse(), layout.format, self.data.role_names, dict(layout.columns), native)
        except RowError as error:
            return error

    def _at_its_place(self, error: RowError, id_: SampleId) -> RowError:
        where = self.where(id_)
        return error if error.where.startswith(where) else error.at(where)

    def _forbidden(self, error: RowError) -> bool:
        policy = self.data.overlong if error.reason == "overlong" else self.data.bad_rows
        return policy == "error"

    def probe(self, steps: Steps, count: int = PROBE) -> EncodedStep:
        """The first rows of a run as samples. Raises DataError where they hold nothing to learn."""
        count = min(count, steps.positions)
        ids = steps.order.samples(0, count)
        looked = self.encode(0, ids)
        self._refuse_written(looked, ids)
        for store in [*self.stores.values()][:1]:
            store.damaged += looked.notes  # the first step tells them
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

    def _refuse_written(self, looked: EncodedStep, ids: Sequence[SampleId]) -> None:
        """Raise RowError where the first rows, of the run or of a source, hold turns as the template writes them: that
        is no matter of one row, which data.bad_rows may drop, but of how to read them all."""
        refused = {entry.position for entry in looked.entries if entry.reason == CONTROL_TOKENS}
        for id_ in ids:
            if id_.position in refused:
                self.parse(id_)
        for number in sorted(set(range(len(self.sources))) - {id_.source for id_ in ids}):
            source = self.sources[number]
            for row, raw in enumerate(source.read(range(min(FIRST_ROWS, len(source))))):
                parsed = self._parsed(raw, number)
                if isinstance(parsed, RowError) and parsed.reason == CONTROL_TOKENS:
                    raise self._at_its_place(parsed, SampleId(0, number, row))

    def told(self, steps: Steps, count: int = PROBE) -> Told:
        """What is to be told of the first rows of a run."""
        unread: Counter[str] = Counter()
        spelled: Counter[str] = Counter()
        reread: Counter[bool] = Counter()
        forgotten = 0
        served: Counter[str] = Counter()
        rows: dict[int, list[int]] = {}
        for sample in steps.order.samples(0, min(count, steps.positions)):
            rows.setdefault(sample.source, []).append(sample.row)
        for source, numbers in rows.items():
            for row in self.sources[source].read(numbers):
                parsed = self._parsed(row, source)
                if isinstance(parsed, RowError):
                    continue
                unread.update(parsed.unread)
                spelled.update(self.encoder.spelled(parsed))
                forgotten += self.encoder.forgets(parsed)
                served.update(self.encoder.unlike_inference(parsed))
                if isinstance(parsed, Conversation) and parsed.reread is not None:
                    reread[parsed.reread > 0] += 1
        return Told(dict(unread), dict(spelled), reread.total(), reread[True], forgotten, dict(served))

    def first_lengths(self, streams: Sequence[Stream]) -> list[NDArray[np.int64]]:
        """Tokens of the first rows that a run takes from each stream; 0 for rows that are dropped.

        Raises DataError for a stream of which no row can be learned.
        """
        return [self._first_lengths(stream) for stream in streams]

    def _first_lengths(self, stream: Stream) -> NDArray[np.int64]:
        lengths: list[int] = []
        ids = stream.samples(0, min(MEASURED_ROWS, len(stream)))
        while len(lengths) < len(ids) and sum(lengths) < MEASURED_TOKENS:
            batch = self.outcomes(ids[len(lengths) : len(lengths) + 64])
            lengths += [len(result) if isinstance(result, EncodedSample) else 0 for result in batch]
        if not any(lengths):
            raise DataError(
                f"none of its first {len(lengths)} rows can be learned, so its share of tokens cannot be kept",
                where=self.sources[stream.sources[0]].name,
                fix="look at one with: dist-sft preview RUN.yaml --row 0",
            )
        return np.array(lengths, np.int64)


def open_sources(sources: Sequence[Source], data: DataSection) -> list[RowSource]:
    """Raises DataError: see `open_source`."""
    cache = data.cache_folder
    if cache:
        trim(cache, data.cache_size)
    return [open_source(source, cache) for source in sources]


@functools.cache
def code_fingerprint() -> str:
    """Of the code that makes samples of rows: what an older or newer one has stored is never used."""
    digest = hashlib.sha256(f"{tokenizers.__version__} {jinja2.__version__}".encode())
    for package in (chat, readers):
        for path in sorted(Path(package.__path__[0]).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def step_hash(encoded: EncodedStep) -> str:
    """Hex digest of what a step teaches: positions, tokens and weights of its samples; nothing of how it is run."""
    digest = hashlib.sha256()
    for id_, sample in zip(encoded.ids, encoded.samples, strict=True):
        digest.update(f"{id_.position},{id_.source},{id_.row},{len(sample)};".encode())
        digest.update(sample.tokens.astype("<i4").tobytes())
        digest.update(sample.weights.astype("<f4").tobytes())
    return digest.hexdigest()
