"""Rows of one source, whatever it lies in: by number, each with its place, and a fingerprint of them all.

config.Source ─ find ─> files ─ readers ─> RowSource ─ chat/formats ─> Conversation
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dist_sft.config.resolve import redact_urls
from dist_sft.config.sections import Source
from dist_sft.core.errors import DataError
from dist_sft.data.readers.base import File, Rows
from dist_sft.data.readers.find import find_files, local_file
from dist_sft.data.readers.saved import HubRows, saved_files
from dist_sft.data.readers.suffixes import read


class RowSource(Rows, Protocol):
    """Rows with random access.

    name         the source's path, without secrets
    fingerprint  hex digest of the content in the order of its rows; the same wherever the files lie
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

    def where(self, i: int) -> str:
        part, row = self._locate(i)
        return part.where(row)

    def _locate(self, i: int) -> tuple[Rows, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        part = int(np.searchsorted(self.ends, i, side="right"))
        return self.parts[part], i - (int(self.ends[part - 1]) if part else 0)


def open_source(source: Source) -> RowSource:
    """Find and index the rows of a source. Broken rows show only when they are read (RowError).

    A folder is read with all folders in it, hidden files (. or _) left out; a file that holds no row is allowed where
    others do.

    Raises:
        DataError: no such file, a file that cannot be read at all, or no row in any.
        MissingExtra: a URL whose file system is not installed.
    """
    rows = HubRows(source) if source.path.startswith("hub:") else _files(source)
    if len(rows) == 0:
        raise DataError("there is no row in it", where=rows.name, fix="check the path, or remove the source")
    return rows


def _files(source: Source) -> Files:
    saved = saved_files(Path(source.path).expanduser(), source.split)
    found = find_files(source.path) if saved is None else [local_file(path) for path in saved]
    parts, digest = [], hashlib.sha256()
    for one in found:
        file = File(one.name, one.read(), source.split)
        parts.append(read(file, one.name.partition("?")[0]))
        digest.update(bytes.fromhex(file.fingerprint()))
    return Files(redact_urls(source.path), parts, digest.hexdigest())
