"""What was not learned, and why: every row is delivered, cut, or listed here.

The file holds one JSON line per row: {"step", "position", "where", "reason", "what", "lost"}; and one per source of
which rows are held out of training, with their number under "rows". Lines of steps that a resumed run does again are
forgotten first, so that a crash neither loses nor repeats one.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dist_sft.core.errors import DataError
from dist_sft.core.files import atomic, json_lines, missing_lines, reading, writing
from dist_sft.core.redact import scrubbed

HELD_OUT = "held_out"
"""Reason of the rows that eval.share keeps out of training."""
FITTING = ("overlong", "truncated", HELD_OUT)
"""Reasons that say nothing against a row but its length, or that it is wanted elsewhere."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row that was dropped ("overlong", "bad_json", ...) or shortened ("truncated").

    lost  supervised tokens that are not learned; 0 where that cannot be known
    rows  that the entry is about: those of a source that are held out are one entry, at the start of the run
    """

    step: int
    position: int
    where: str
    reason: str
    what: str
    lost: int = 0
    rows: int = 1


@dataclass
class Ledger:
    """The entries so far; `path` is where they are kept, None to keep them in memory only.

    counts  rows by reason
    lost    supervised tokens that are not learned, as far as known
    damaged what to tell of lines of the file that could not be read; None where all could
    """

    path: Path | None = None
    entries: list[Entry] = field(default_factory=list)
    counts: Counter[str] = field(init=False)
    lost: int = field(init=False)
    damaged: str | None = None

    def __post_init__(self) -> None:
        self.counts, self.lost = Counter(), 0
        self._count(self.entries)

    @classmethod
    def resume(cls, path: Path, step: int, write: bool) -> "Ledger":
        """The ledger as it stood when `step` was about to begin. write: this process keeps the file."""
        found, damaged = read(path)
        entries = [entry for entry in found if entry.step < step]
        if write:
            with writing(path), atomic(path) as file:
                file.writelines(_line(entry) for entry in entries)
        return cls(path if write else None, entries, damaged)

    def add(self, entries: list[Entry]) -> None:
        self.entries += entries
        self._count(entries)
        if self.path and entries:
            with writing(self.path), self.path.open("ab") as file:
                file.writelines(_line(entry) for entry in entries)

    def _count(self, entries: list[Entry]) -> None:
        self.lost += sum(entry.lost for entry in entries)
        for entry in entries:
            self.counts[entry.reason] += entry.rows

    def check_share(self, positions: int, limit: float) -> None:
        """Refuse to go on when more than this share of the rows so far was bad (over-long rows are not bad).

        Waits for 100 rows, so that one bad row at the start does not end a run.
        """
        bad = sum(count for reason, count in self.counts.items() if reason not in FITTING)
        if positions >= 100 and bad > limit * positions:
            first = next(entry for entry in self.entries if entry.reason not in FITTING)
            raise DataError(
                f"{bad} of the first {positions} rows are bad, more than data.max_bad_share={limit:g} allows; "
                f"the first: {first.what}",
                where=first.where,
                fix="mend the rows that ledger.jsonl lists, or raise data.max_bad_share",
            )


def read(path: Path) -> tuple[list[Entry], str | None]:
    """The entries of a ledger file, and what to tell of lines that a crash has damaged; none if there is no file.

    Raises DataError at file:line for JSON that is no entry, StorageError where it cannot be read.
    """
    with reading(path):
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    whole = list(json_lines(lines))
    return [_entry(value, path, number) for number, _, value in whole], missing_lines(
        path, (number for number, _, _ in whole), len(lines)
    )


def _entry(value: Any, path: Path, number: int) -> Entry:
    try:
        return Entry(**value)
    except TypeError as error:
        raise DataError(
            f"no entry of a ledger: {error}",
            where=f"{path}:{number}",
            fix="remove the line, or go on with the version of dist-sft that wrote it",
        ) from None


def _line(entry: Entry) -> bytes:
    values = {**asdict(entry), "where": scrubbed(entry.where), "what": scrubbed(entry.what)}
    if entry.reason != HELD_OUT:
        del values["rows"]
    return json.dumps(values, ensure_ascii=False).encode() + b"\n"
