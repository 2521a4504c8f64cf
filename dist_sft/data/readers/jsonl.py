"""JSON Lines: one JSON object per line, blank lines between them allowed.

One scan, piece by piece, finds where the lines begin; a row is read when it is asked for, so a broken one costs only
itself.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_digest

from dist_sft.core.errors import RowError
from dist_sft.data.readers.base import (
    PIECE,
    File,
    RawRow,
    checked_row,
    in_pieces,
    joined,
    refuse_surrogates,
    text_start,
)
from dist_sft.data.readers.content import Buffer
from dist_sft.data.readers.kept import Kept

AT_ONCE = 1024
"""Rows of a column that are fetched in one go."""
_SPACES = np.frombuffer(b" \t\r\n\v\f", np.uint8)


class JsonLines:
    """Rows of a JSON Lines file.

    begin        byte at which the first line begins
    ends         int64[L]  byte after each line, without its line break
    rows         int64[N]  the lines that are not blank; empty: all of them
    fingerprint  see File.fingerprint
    """

    def __init__(self, file: File, cache: Path | None = None) -> None:
        self.file, kept = file, Kept(cache, file)
        found = kept.load()
        if found is None:
            found = _scan(file)
            kept.save(*found)
        self.fingerprint, index = found
        self.begin, self.ends, self.rows = int(index["begin"][0]), index["ends"], index["rows"]

    def __len__(self) -> int:
        return len(self.rows) or len(self.ends)

    def where(self, i: int) -> str:
        return f"{self.file.name}:{self._line(i) + 1}"

    def _line(self, i: int) -> int:
        return int(self.rows[i]) if len(self.rows) else i

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Row i. Raises RowError, see `_parse`."""
        return self._parse(i, *self._texts([i]))

    def read(self, rows: Sequence[int]) -> list[RawRow | RowError]:
        return [self._row(i, line) for i, line in zip(rows, self._texts(rows), strict=True)]

    def column(self, name: str) -> list[Any]:
        parts = (range(at, min(at + AT_ONCE, len(self))) for at in range(0, len(self), AT_ONCE))
        return [self._value(i, line, name) for part in parts for i, line in zip(part, self._texts(part), strict=True)]

    def _texts(self, rows: Sequence[int]) -> list[bytes]:
        lines = [self._line(i) for i in rows]
        return self.file.data.ranges(
            [(int(self.ends[n - 1]) + 1 if n else self.begin, int(self.ends[n])) for n in lines]
        )

    def _value(self, i: int, line: bytes, name: str) -> Any:
        try:
            return self._parse(i, line).get(name)
        except RowError:
            return None

    def _row(self, i: int, line: bytes) -> RawRow:
        return RawRow(line, lambda: self._parse(i, line))

    def _parse(self, i: int, raw: bytes) -> dict[str, Any]:
        """Raises RowError: bad_unicode (invalid UTF-8, half a character), bad_json, bad_row (not an object)."""
        where = self.where(i)
        try:
            value = json.loads(raw.decode())
        except UnicodeDecodeError as error:
            what = f"invalid UTF-8: byte 0x{raw[error.start]:02x} at column {error.start + 1}"
            raise RowError(what, reason="bad_unicode", where=where, fix="save the file as UTF-8") from None
        except RecursionError:
            raise RowError("nested too deeply to read", reason="bad_json", where=where, fix="remove the row") from None
        except ValueError as error:
            raise RowError(f"not JSON: {error}", reason="bad_json", where=where, fix=self._fix(i)) from None
        if b"\\ud" in raw or b"\\uD" in raw:
            refuse_surrogates(value, where)
        return checked_row(value, where)

    def _fix(self, i: int) -> str:
        if self.ends[self._line(i)] == self.file.data.size:
            return "the last line does not end: was the file cut off?"
        return "one whole JSON object per line"


def _scan(file: File) -> tuple[str, dict[str, NDArray[np.int64]]]:
    """Fingerprint, and begin, ends and rows of `JsonLines`; one pass over the file."""
    size, begin = file.data.size, text_start(file)
    looks = in_pieces(file, PIECE, _look)
    ends = np.concatenate([*(look.ends for look in looks), [size]]).astype(np.int64)
    starts = np.concatenate([[begin], ends[:-1] + 1]).astype(np.int64)
    full = starts < ends
    cuts = np.arange(0, size, PIECE)  # a line that begins where a piece does was not looked at
    suspects = np.concatenate([[begin], cuts[np.isin(cuts, starts)], *(look.blank for look in looks)]).astype(np.int64)
    unsure = np.unique(np.searchsorted(starts, suspects))
    unsure = unsure[full[unsure]]
    spans = list(zip(starts[unsure].tolist(), ends[unsure].tolist(), strict=True))
    full[unsure] = [bool(text.strip()) for text in (file.data.ranges(spans) if spans else ())]
    last = len(full) - (not full[-1])  # nothing follows the last line break
    ends, full = ends[:last], full[:last]
    rows = np.zeros(0, np.int64) if full.all() else np.flatnonzero(full)
    index = {"begin": np.array([begin], np.int64), "ends": ends if full.any() else ends[:0], "rows": rows}
    return joined(look.digest for look in looks), index


@dataclass(frozen=True, slots=True)
class _Look:
    """What a piece holds. ends: of lines. blank: heads of lines that begin with a blank, and may be nothing else."""

    digest: bytes
    ends: NDArray[np.int64]
    blank: NDArray[np.int64]


def _look(at: int, piece: Buffer) -> _Look:
    data = np.frombuffer(piece, np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    heads = ends[ends + 1 < len(data)] + 1
    return _Look(xxh3_128_digest(piece), ends + at, heads[np.isin(data[heads], _SPACES)] + at)
