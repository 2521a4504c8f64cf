"""Rows of one source, whatever it lies in: by number, each with its place, and a fingerprint of them all.

config.Source ─ find ─> files ─ readers ─> RowSource ─ chat/formats ─> Conversation
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dist_sft.config.data import Source
from dist_sft.core.errors import DataError, RowError
from dist_sft.data.readers.arrow import Table
from dist_sft.data.readers.base import File, RawRow, Rows
from dist_sft.data.readers.find import find_files, local_file
from dist_sft.data.readers.saved import HubRows, saved_files
from dist_sft.data.readers.suffixes import read, suffixes
from dist_sft.data.readers.threads import as_threads


class RowSource(Rows, Protocol):
    """Rows with random access.

    name         the source's path, without secrets
    fingerprint  hex digest of the content and of which rows of it are meant; the same wherever the files lie
    """

    name: str
    fingerprint: str


class Files:
    """The rows of several files, one file after the other."""

    def __init__(self, name: str, parts: Sequence[Rows], fingerprint: str) -> None:
        self.name, self.parts, self.fingerprint = name, parts, fingerprint
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, i: int) -> dict[str, Any]:
        part, row = self._locate(i)
        return part[row]

    def read(self, rows: Sequence[int]) -> list[RawRow | RowError]:
        found: list[RawRow | RowError | None] = [None] * len(rows)
        by_part: dict[int, list[int]] = {}
        for place, part in enumerate(np.searchsorted(self.ends, np.asarray(rows), side="right").tolist()):
            by_part.setdefault(part, []).append(place)
        for part, places in by_part.items():
            first = int(self.ends[part]) - len(self.parts[part])
            for place, row in zip(places, self.parts[part].read([rows[p] - first for p in places]), strict=True):
                found[place] = row
        return [row for row in found if row is not None]

    def column(self, name: str) -> list[Any]:
        return [value for part in self.parts for value in part.column(name)]

    def where(self, i: int) -> str:
        part, row = self._locate(i)
        return part.where(row)

    def _locate(self, i: int) -> tuple[Rows, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        part = int(np.searchsorted(self.ends, i, side="right"))
        return self.parts[part], i - (int(self.ends[part - 1]) if part else 0)


class Picked:
    """Some rows of a source, as a source of their own. rows: int64[N], their numbers there."""

    def __init__(self, source: RowSource, rows: NDArray[np.int64]) -> None:
        self.source, self.rows, self.name = source, rows, source.name
        self.fingerprint = hashlib.sha256(source.fingerprint.encode() + rows.astype("<i8").tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.source[int(self.rows[i])]

    def read(self, rows: Sequence[int]) -> list[RawRow | RowError]:
        return self.source.read(self.rows[np.asarray(rows, np.int64)].tolist())

    def column(self, name: str) -> list[Any]:
        return [_value(row, name) for row in self.read(range(len(self)))]

    def where(self, i: int) -> str:
        return self.source.where(int(self.rows[i]))


def _value(row: RawRow | RowError, name: str) -> Any:
    with suppress(RowError):
        return row.parse().get(name) if isinstance(row, RawRow) else None
    return None


def open_source(source: Source, cache: Path | None = None) -> RowSource:
    """Find and index the rows of a source. Broken rows show only when they are read (RowError).

    What is opened pickles small, and opens its files again in another process.

    Args:
        cache: folder for line indexes and the like, so that a file is scanned once; None: nothing is kept.

    A folder is read with all folders in it, hidden files (. or _) left out; a file that holds no row is allowed where
    others do.

    Raises:
        DataError: no such file, a file that cannot be read at all, or no row in any.
        MissingExtra: a URL whose file system is not installed.
    """
    rows = HubRows(source) if source.path.startswith("hub:") else _files(source, cache)
    if len(rows) == 0:
        raise DataError("there is no row in it", where=rows.name, fix="check the path, or remove the source")
    if source.format != "auto" or source.columns:
        return rows
    threads = as_threads(rows, _keys(rows))
    if len(threads) == 0:
        raise DataError("no message in it has an answer", where=rows.name, fix="check the path, or give it a format")
    return threads


def _keys(rows: Files | HubRows) -> list[str] | None:
    """The keys of its rows, where a table says them without a row being read."""
    first = rows.parts[0] if isinstance(rows, Files) else rows
    return first.keys if isinstance(first, Table | HubRows) else None


def _files(source: Source, cache: Path | None) -> Files:
    saved = saved_files(Path(source.path).expanduser(), source.split)
    found = (
        find_files(source.path, source.split, source.subset) if saved is None else [local_file(path) for path in saved]
    )
    parts, digest = [], hashlib.sha256(source.split.encode())  # a file may hold several lists of rows
    for one in found:
        rows, fingerprint = read(File(one.name, one.open(), source.split), one.file_name, cache)
        parts.append(rows)
        digest.update(f"{''.join(suffixes(one.file_name))} {fingerprint}\n".encode())  # another reader finds other rows
    return Files(source.shown, parts, digest.hexdigest())
