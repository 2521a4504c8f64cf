"""JSON Lines: one JSON object per line, blank lines between them allowed.

One scan, piece by piece, finds where the lines begin; a row is read when it is asked for, so a broken one costs only
itself.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_sft.core.errors import RowError
from dist_sft.data.readers.base import PIECE, File, RawRow, checked_row, refuse_surrogates, text_start
from dist_sft.data.readers.kept import Kept

_SPACES = np.frombuffer(b" \t\r\n\v\f", np.uint8)


class JsonLines:
    """Rows of a JSON Lines file.

    starts, ends  int64[N]  bytes of row i: content[starts[i]:ends[i]]
    lines         int64[N]  1-based line of row i
    fingerprint   SHA-256 of the content
    """

    def __init__(self, file: File, cache: Path | None = None) -> None:
        self.file, kept = file, Kept(cache, file)
        found = kept.load()
        if found is None:
            found = _scan(file)
            kept.save(*found)
        self.fingerprint, index = found
        self.starts, self.ends, self.lines = index["starts"], index["ends"], index["lines"]

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, i: int) -> str:
        return f"{self.file.name}:{self.lines[i]}"

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Row i. Raises RowError, see `_parse`."""
        ((begin, end),) = self._spans([i])
        return self._parse(i, bytes(self.file.data.read(begin, end)))

    def read(self, rows: Sequence[int]) -> list[RawRow | RowError]:
        return [self._row(i, line) for i, line in zip(rows, self.file.data.ranges(self._spans(rows)), strict=True)]

    def _spans(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        return [(int(self.starts[i]), int(self.ends[i])) for i in rows]

    def column(self, name: str) -> list[Any]:
        return [self._value(i, name) for i in range(len(self))]

    def _value(self, i: int, name: str) -> Any:
        try:
            return self[i].get(name)
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
        if self.ends[i] == self.file.data.size:
            return "the last line does not end: was the file cut off?"
        return "one whole JSON object per line"


def _scan(file: File) -> tuple[str, dict[str, NDArray[np.int64]]]:
    """SHA-256, and starts, ends and 1-based lines of all lines that are not blank; one pass over the file."""
    digest, size = hashlib.sha256(), file.data.size
    ends_found, heads_found = [], []
    begin = text_start(file)
    first_of_next = begin  # the byte after a line's end is the head of the next line, and may be in the next piece
    for at in range(0, size, PIECE):
        piece = file.data.read(at, min(at + PIECE, size))
        digest.update(piece)
        data = np.frombuffer(piece, np.uint8)
        ends = np.flatnonzero(data == ord("\n")) + at
        heads = np.concatenate([[first_of_next], ends + 1]) if len(ends) else np.array([first_of_next])
        inside = heads[(heads >= at) & (heads < at + len(data))]
        heads_found.append(inside[np.isin(data[inside - at], _SPACES)])
        first_of_next = int(ends[-1]) + 1 if len(ends) and ends[-1] + 1 == at + len(data) else size
        ends_found.append(ends)
    ends = np.concatenate([*ends_found, [size]]).astype(np.int64)
    starts = np.concatenate([[begin], ends[:-1] + 1]).astype(np.int64)
    full = starts < ends
    blank_heads = np.concatenate([*heads_found, []]).astype(np.int64)
    for i in np.searchsorted(starts, blank_heads).tolist():
        full[i] = full[i] and bool(bytes(file.data.read(int(starts[i]), int(ends[i]))).strip())
    index = {"starts": starts[full], "ends": ends[full], "lines": np.flatnonzero(full) + 1}
    return digest.hexdigest(), index
