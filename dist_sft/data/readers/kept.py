"""What a scan of a file has found, kept in the cache folder so that it need not be scanned again."""

import contextlib
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dist_sft.core.files import atomic
from dist_sft.data.readers.base import File
from dist_sft.data.readers.content import Part

VERSION = "6"
SMALL = 1 << 16
"""Bytes. A smaller file in an archive is scanned anew at once: there may be one for each row."""

Arrays = dict[str, NDArray[np.int64]]


def load(path: Path) -> Arrays | None:
    """Arrays that `save` wrote; None where nothing whole is kept."""
    try:
        with np.load(path) as kept:  # a zip file: it has checksums
            return {name: kept[name] for name in kept.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile):
        return None


def save(path: Path, arrays: Arrays) -> None:
    with contextlib.suppress(OSError):  # a cache may be full or read-only
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]


class Kept:
    """The index of one file. Nothing is kept without a folder, or of a file that cannot be told from a changed one."""

    def __init__(self, cache: Path | None, file: File, *what: str) -> None:
        """what: was found in the file, besides where its rows begin."""
        worth = not isinstance(file.data, Part) or file.data.size >= SMALL
        key = file.key(VERSION, *what) if worth else None
        self.path = cache / "index" / f"{key}.npz" if cache and key else None

    def load(self) -> tuple[str, Arrays] | None:
        """Fingerprint and arrays; None where nothing whole is kept."""
        arrays = load(self.path) if self.path else None
        return (bytes(arrays.pop("fingerprint")).hex(), arrays) if arrays and "fingerprint" in arrays else None

    def save(self, fingerprint: str, arrays: Arrays) -> None:
        if self.path:
            save(self.path, arrays | {"fingerprint": np.frombuffer(bytes.fromhex(fingerprint), np.uint8)})
