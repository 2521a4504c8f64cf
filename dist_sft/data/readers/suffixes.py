"""Which reader reads a file: told by its name."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from dist_sft.core.errors import DataError
from dist_sft.core.files import stable_hash
from dist_sft.data.readers.arrow import read_arrow, read_parquet
from dist_sft.data.readers.base import PIECE, File, Reader, Rows
from dist_sft.data.readers.content import Buffer, Memory
from dist_sft.data.readers.json_array import read_json
from dist_sft.data.readers.jsonl import JsonLines
from dist_sft.data.readers.kept import Kept
from dist_sft.data.readers.plain_text import read_text
from dist_sft.data.readers.sound import most_unpacked
from dist_sft.data.readers.table_text import read_csv, read_tsv

READERS: dict[str, Reader] = {
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".txt": read_text,
}


def _gzip(packed: Buffer) -> Any:
    return gzip.GzipFile(fileobj=io.BytesIO(packed))


def _bz2(packed: Buffer) -> Any:
    return bz2.BZ2File(io.BytesIO(packed))


def _xz(packed: Buffer) -> Any:
    return lzma.LZMAFile(io.BytesIO(packed))


def _arrows(codec: str) -> Callable[[Buffer], Any]:
    return lambda packed: pa.CompressedInputStream(pa.BufferReader(pa.py_buffer(packed)), codec)


COMPRESSIONS: dict[str, Callable[[Buffer], Any]] = {
    ".gz": _gzip,
    ".gzip": _gzip,
    ".bz2": _bz2,
    ".xz": _xz,
    ".zst": _arrows("zstd"),
    ".zstd": _arrows("zstd"),
    ".lz4": _arrows("lz4"),
}


TARS = {".tar": "", **{f".tar{suffix}": suffix for suffix in COMPRESSIONS}, ".tgz": ".gz", ".tzst": ".zst"}
"""Compression of a tar file, by how its name ends."""
ARCHIVES = (".zip", *TARS)


def readable_names() -> str:
    """How a file may be called to be read, for a message."""
    compressed = ", ".join(COMPRESSIONS)
    return f"{', '.join(READERS)}, or with {compressed} after that, or put such files into a .zip, .tar or .tar.gz"


def is_archive(name: str) -> bool:
    return name.lower().endswith(ARCHIVES)


def suffixes(name: str) -> tuple[str, str]:
    """The suffix of the format and that of the compression, "" for none: "a.jsonl.gz" -> (".jsonl", ".gz")."""
    lower = name.lower()
    compression = next((suffix for suffix in COMPRESSIONS if lower.endswith(suffix)), "")
    stem = lower.removesuffix(compression)
    return next((suffix for suffix in READERS if stem.endswith(suffix)), ""), compression


def read(file: File, file_name: str, cache: Path | None) -> tuple[Rows, str]:
    """Rows of a file, and its fingerprint.

    Args:
        cache: folder for what is worth keeping, or None.
        file_name: what its suffix is taken from; file.name may have more to it.
    Raises:
        DataError: an unknown suffix, a broken compression, or what the reader raises.
    """
    suffix, compression = suffixes(file_name)
    if not suffix:
        raise DataError(
            "a file of unknown format",
            where=file.name,
            fix=f"name it {readable_names()}",
        )
    if not compression:
        return _rows(READERS[suffix], file, cache)
    plain = File(file.name, Memory(decompressed(file, compression)), file.split)
    return READERS[suffix](plain, None), file.fingerprint()


def _rows(reader: Reader, file: File, cache: Path | None) -> tuple[Rows, str]:
    if reader is JsonLines:
        lines = JsonLines(file, cache)
        return lines, lines.fingerprint
    rows, kept = reader(file, cache), Kept(cache, file)
    if file.data.digest is not None and reader in (read_parquet, read_arrow):  # read in pieces, so not hashed whole
        return rows, stable_hash([file.name, file.data.size, file.data.digest])
    if (known := kept.load()) is not None:
        return rows, known[0]
    fingerprint = file.fingerprint()
    kept.save(fingerprint, {})
    return rows, fingerprint


def decompressed(file: File, compression: str) -> bytes:
    """Raises DataError: not whole, or it holds more than memory should be filled with."""
    most, plain = most_unpacked(file.data.size), bytearray()
    try:
        with COMPRESSIONS[compression](file.content) as stream:
            while piece := stream.read(PIECE):
                plain += piece
                if len(plain) > most:
                    break
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, MemoryError) as error:
        what = f"no whole {compression} file: {error}"
        raise DataError(what, where=file.name, fix="write or copy it again; was it cut off?") from None
    if len(plain) > most:
        raise DataError(
            f"it unpacks to more than {most:,} bytes, from {file.data.size:,}", where=file.name,
            fix="unpack it, and name what was in it: that is read from the disk",
        )  # fmt: skip
    return bytes(plain)
