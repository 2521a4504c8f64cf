"""Parquet, and Arrow IPC files and streams.

Of a file only the footer is read at first, and then the pieces (record batches, row groups) that rows are asked from.
Rows come in any order, and a row group takes long to decode, so each is decoded once and put beside the cache as Arrow,
to be mapped from there. A batch of Arrow on this machine is read from its file again, unless it is long.

A damaged file is an error, and never the end of the process: what Arrow's reader made of it is looked at before a value
is read (sound.py), and pieces are copies, for where a mapped file is cut off, to touch what is gone ends the process.
"""

import contextlib
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from xxhash import xxh3_128_digest

from dist_sft.core.errors import DataError, RowError, SftError
from dist_sft.core.files import atomic, beyond
from dist_sft.data.readers.base import File, RawRow, Values
from dist_sft.data.readers.content import is_local, opened
from dist_sft.data.readers.kept import Kept
from dist_sft.data.readers.sound import most_unpacked, refuse_unsound
from dist_sft.data.readers.typed import as_written

_ARROW_FILE = b"ARROW1"
UNREADABLE = Exception
"""What a value that Python cannot hold raises: Arrow's own errors, those of dates, of time zones, of text."""
KEPT = "row_groups"
"""Folder in the cache for decoded pieces."""
_PIECE = re.compile(r"[0-9a-f]{40}\.arrow")
"""Names of these: nothing else there is removed."""
AT_ONCE = 8192
"""Rows of a row group that are decoded in one go."""
MOST_ROWS = 100_000
"""Rows for each byte of a Parquet file. A run of equal rows takes a few bytes; more than these are a lie."""
MOST_HELD = 256 << 20
"""Bytes of decoded pieces that are held in memory where there is no folder for them."""


LONG = 64 << 20
"""Bytes of a batch of Arrow on this machine that is worth a copy in the cache."""


class Table(Values):
    """Rows of a file that is made of pieces. Opens it again wherever it is unpickled. keys: of its rows."""

    def __init__(
        self, file: File, kind: str, opened: Callable[[File, Path | None], "Pieces"], cache: Path | None
    ) -> None:
        self.file, self.kind, self.cache, self._opened = file, kind, cache, opened
        self._pieces: Pieces | None = None
        self._held: OrderedDict[int, pa.Table] = OrderedDict()
        pieces = self._open()
        self.keys = pieces.names
        twice = sorted({name for name in self.keys if self.keys.count(name) > 1})
        if twice:
            raise DataError(f"two columns are called '{twice[0]}'", where=file.name, fix="rename one of them")
        self.ends = np.cumsum(pieces.counts, dtype=np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pieces": None, "_held": OrderedDict()}

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def where(self, i: int) -> str:
        return f"{self.file.name} row {i}"

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Row i.

        Raises:
            RowError: bad_unicode (a text column that is not UTF-8), bad_row (a value that Python cannot hold).
            DataError: a piece that is broken.
        """
        piece = int(np.searchsorted(self.ends, i, side="right"))
        first = int(self.ends[piece - 1]) if piece else 0
        table = self._piece(piece)
        if self._open().here:
            self.file.data.check()
        try:
            found = table.slice(i - first, 1)
            return as_written(found.to_pylist()[0], found.schema)
        except UnicodeDecodeError as error:
            what = f"invalid UTF-8 in a text column: {error.reason}"
            raise RowError(what, reason="bad_unicode", where=self.where(i), fix="write the column again") from None
        except UNREADABLE as error:
            raise RowError(f"a value cannot be read: {error}", reason="bad_row", where=self.where(i)) from None

    def read(self, rows: Sequence[int]) -> list[RawRow | RowError]:
        """Piece by piece, so that each is fetched once."""
        found: dict[int, RawRow | RowError] = {}
        for i in sorted(set(rows)):
            found[i] = self._raw(i)
        return [found[i] for i in rows]

    def column(self, name: str) -> list[Any]:
        pieces = self._open()
        if name not in pieces.names:
            return [None] * len(self)
        return [value for piece in range(len(pieces.counts)) for value in _values(self._read(piece, [name])[name])]

    def _piece(self, number: int) -> pa.Table:
        if number in self._held:
            self._held.move_to_end(number)
            return self._held[number]
        here = self._open().here
        key = self.file.key(self.kind, number) if self.cache and not (here and here[number] < LONG) else None
        table = (
            self._kept(number, self.cache / KEPT / f"{key}.arrow") if self.cache and key else self._read(number, None)
        )
        most = 0 if here else MOST_HELD
        self._held[number] = table
        while sum(held.nbytes for held in self._held.values()) > most and len(self._held) > 1:
            self._held.popitem(last=False)
        return table

    def _kept(self, number: int, path: Path) -> pa.Table:
        """A piece as it lies in the cache; put there if it does not, or not whole."""
        if (kept := _checked(path)) is not None:
            return kept
        table = self._read(number, None)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        content = sink.getvalue()
        with contextlib.suppress(OSError):  # a cache may be full or read-only
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic(path) as file:
                file.write(xxh3_128_digest(content))
                file.write(content)
        return _checked(path) or table

    def _read(self, number: int, columns: list[str] | None) -> pa.Table:
        pieces = self._open()
        with self._readable(f"part {number} of the {self.kind} file cannot be read"):
            table = pieces.read(number, columns)
            if table.num_rows != pieces.counts[number]:
                raise ValueError(f"it has {table.num_rows} rows, and {pieces.counts[number]} by the index")
            if not pieces.here:
                refuse_unsound(table)
            self.file.data.check()
            return table

    def _open(self) -> "Pieces":
        if self._pieces is None:
            with self._readable(f"no whole {self.kind} file"):
                self._pieces = self._opened(self.file, self.cache)
        return self._pieces

    @contextlib.contextmanager
    def _readable(self, what: str) -> Iterator[None]:
        """What Arrow says of a broken file is of any type. Raises DataError."""
        try:
            yield
        except SftError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, it must name the file
            fix = "write or copy it again; was it cut off or damaged?"
            raise DataError(f"{what}: {error}", where=self.file.name, fix=fix) from None


def trim(cache: Path, limit: int) -> None:
    """Remove the decoded pieces that were used longest ago, until the rest has at most `limit` bytes."""
    for path in beyond((path for path in (cache / KEPT).glob("*.arrow") if _PIECE.fullmatch(path.name)), limit):
        with contextlib.suppress(OSError):
            path.unlink()


def _values(column: pa.ChunkedArray) -> list[Any]:
    """None for a value that cannot be read."""
    try:
        return list(column.to_pylist())
    except UNREADABLE:
        return [_value(scalar) for scalar in column]


def _value(scalar: pa.Scalar) -> Any:
    with contextlib.suppress(UNREADABLE):
        return scalar.as_py()
    return None


def _checked(path: Path) -> pa.Table | None:
    """What `_kept` wrote, mapped; None if it is not there or a byte of it has changed."""
    try:
        content = pa.memory_map(str(path)).read_buffer()
        if content.size < 16 or xxh3_128_digest(content[16:]) != bytes(content[:16]):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return pa.ipc.open_file(content[16:]).read_all()
    except (OSError, pa.ArrowException):
        return None


class Pieces:
    """An open file. counts: rows of each piece.

    here: bytes of each piece, where the file is Arrow on this machine, which was looked at; else it is empty.
    """

    def __init__(
        self,
        names: list[str],
        counts: list[int],
        read: Callable[[int, list[str] | None], pa.Table],
        here: Sequence[int] = (),
    ) -> None:
        self.names, self.counts, self.read, self.here = names, counts, read, here


def read_parquet(file: File, cache: Path | None = None) -> Table:
    """A Parquet file.

    Raises:
        DataError: broken or cut off, or two columns of one name.
    """
    return Table(file, "Parquet", _open_parquet, cache)


def read_arrow(file: File, cache: Path | None = None) -> Table:
    """An Arrow IPC file, or a stream as `datasets` writes them.

    Raises:
        DataError: broken or cut off, or two columns of one name.
    """
    return Table(file, "Arrow", _open_arrow, cache)


def _open_parquet(file: File, _: Path | None) -> Pieces:
    parquet = pq.ParquetFile(file.data.open())
    groups = range(parquet.metadata.num_row_groups)
    counts = [parquet.metadata.row_group(group).num_rows for group in groups]  # more of it may end the process
    most = MOST_ROWS * file.data.size
    if not all(0 <= count <= most for count in counts) or sum(counts) != parquet.metadata.num_rows:
        raise ValueError(f"its index counts {parquet.metadata.num_rows:,} rows, and {sum(counts):,} in its row groups")
    return Pieces(
        parquet.schema_arrow.names,
        counts,
        lambda group, columns: _decoded(parquet, group, columns, most_unpacked(file.data.size)),
    )


def _decoded(parquet: pq.ParquetFile, group: int, columns: list[str] | None, most: int) -> pa.Table:
    """A row group, read bit by bit, so that no more is unpacked than fits. Raises ValueError: it does not."""
    batches, size = [], 0
    for batch in parquet.iter_batches(AT_ONCE, row_groups=[group], columns=columns):
        batches.append(batch)
        size += batch.nbytes
        if size > most:
            raise ValueError(f"more than {most:,} bytes in one row group; write the file with smaller ones")
    return pa.Table.from_batches(batches, None if batches else parquet.schema_arrow)


def _open_arrow(file: File, cache: Path | None) -> Pieces:
    is_file = bytes(file.data.read(0, min(6, file.data.size))) == _ARROW_FILE
    if is_local(file.data):
        return _Batches(file, is_file).pieces(cache)
    if not is_file:
        table = pa.ipc.open_stream(pa.BufferReader(pa.py_buffer(file.data.whole()))).read_all()
        return Pieces(table.column_names, [table.num_rows], lambda _, columns: _columns(table, columns))
    opened_file = pa.ipc.open_file(pa.PythonFile(file.data.open(), "r"))
    counts = [opened_file.get_batch(batch).num_rows for batch in range(opened_file.num_record_batches)]
    return Pieces(
        opened_file.schema.names,
        counts,
        lambda batch, columns: _columns(pa.Table.from_batches([opened_file.get_batch(batch)]), columns),
    )


class _Batches:
    """The record batches of an Arrow file or stream on this machine, each read by calls when it is asked for.

    The batches of a stream whose columns have dictionaries cannot be read one by one: they are one piece.
    """

    def __init__(self, file: File, is_file: bool) -> None:
        self.file = file
        self._source = opened(file.data)
        source = pa.PythonFile(self._source, "r")
        self._is_file = is_file
        self._reader: Any = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        self.schema: pa.Schema = self._reader.schema
        self.begin = self._source.tell()  # of the first batch of a stream
        self.joined = not is_file and any(map(_has_dictionary, self.schema.types))
        self._ends: list[int] = []

    def pieces(self, cache: Path | None) -> Pieces:
        """All of the file is looked at, once where that can be kept. Raises ValueError: a column is unsound."""
        kept = Kept(cache, self.file, "batches", pa.__version__)
        index = (kept.load() or ("", {}))[1]
        if not {"counts", "ends", "sizes"} <= index.keys():
            found = np.array([(table.num_rows, end, table.nbytes) for table, end in self._scan()], np.int64).reshape(
                -1, 3
            )
            self.file.data.check()
            index = {"counts": found[:, 0], "ends": found[:, 1], "sizes": found[:, 2]}
            kept.save("", index)
        self._ends = index["ends"].tolist()
        return Pieces(self.schema.names, index["counts"].tolist(), self.read, index["sizes"].tolist())

    def _scan(self) -> Iterator[tuple[pa.Table, int]]:
        """Each piece, sound, and where it ends in the file."""
        tables: Iterable[pa.Table]
        if self._is_file:
            tables = (self._table(number) for number in range(self._reader.num_record_batches))
        elif self.joined:
            tables = [self._reader.read_all()]
        else:
            tables = (pa.Table.from_batches([batch]) for batch in self._reader)
        for table in tables:
            refuse_unsound(table)
            yield table, self._source.tell()

    def read(self, number: int, columns: list[str] | None) -> pa.Table:
        return _columns(self._table(number), columns)

    def _table(self, number: int) -> pa.Table:
        if self._is_file:
            return pa.Table.from_batches([self._reader.get_batch(number)])
        data = self.file.data
        if self.joined:
            return pa.ipc.open_stream(pa.BufferReader(pa.py_buffer(data.whole()))).read_all()
        first, last = self._ends[number - 1] if number else self.begin, self._ends[number]
        content = b"".join([data.read(0, self.begin), data.read(first, last)])
        return pa.ipc.open_stream(pa.BufferReader(content)).read_all()


def _has_dictionary(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _has_dictionary(kind.storage_type)
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return pa.types.is_dictionary(kind) or any(map(_has_dictionary, inner))


def _columns(table: pa.Table, columns: list[str] | None) -> pa.Table:
    return table if columns is None else table.select(columns)
