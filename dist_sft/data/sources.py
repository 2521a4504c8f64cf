"""Rows of one source, whatever it lies in: by number, each with its place, and a fingerprint of them all.

config.Source ─ find ─> files ─ readers ─> RowSource ─ chat/formats ─> Conversation
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dist_sft.config.redact import redact_urls
from dist_sft.config.sections import Source
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
        name = one.name.partition("?")[0]
        rows, fingerprint = read(File(one.name, one.open(), source.split), name, cache)
        parts.append(rows)
        digest.update(f"{''.join(suffixes(name))} {fingerprint}\n".encode())  # another reader finds other rows
    return Files(redact_urls(source.path), parts, digest.hexdigest())
