"""Parquet, and Arrow IPC files and streams.

Arrow is read in place from the (memory-mapped) file; Parquet is decoded into memory once. A column type fills keys that
a row does not have with None: a message without tool calls comes back with `tool_calls: None`.
"""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dist_sft.core.errors import DataError, RowError
from dist_sft.data.readers.base import File

_ARROW_FILE = b"ARROW1"


class Table:
    """Rows of an Arrow table."""

    def __init__(self, name: str, table: pa.Table) -> None:
        self.name, self.table = name, table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def where(self, i: int) -> str:
        return f"{self.name} row {i}"

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Row i.

        Raises:
            RowError: bad_unicode (a text column that is not UTF-8), bad_row (a value that Python cannot hold).
        """
        try:
            row: dict[str, Any] = self.table.slice(i, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            what = f"invalid UTF-8 in a text column: {error.reason}"
            raise RowError(what, reason="bad_unicode", where=self.where(i), fix="write the column again") from None
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise RowError(f"a value cannot be read: {error}", reason="bad_row", where=self.where(i)) from None
        return row


def read_parquet(file: File) -> Table:
    """A Parquet file.

    Raises:
        DataError: broken or cut off, or two columns of one name.
    """
    return _table(file, "Parquet", lambda buffer: pq.ParquetFile(buffer).read())


def read_arrow(file: File) -> Table:
    """An Arrow IPC file, or a stream as `datasets` writes them.

    Raises:
        DataError: broken or cut off, or two columns of one name.
    """
    opened = pa.ipc.open_file if bytes(file.content[: len(_ARROW_FILE)]) == _ARROW_FILE else pa.ipc.open_stream
    return _table(file, "Arrow", lambda buffer: opened(buffer).read_all())


def _table(file: File, kind: str, read: Any) -> Table:
    try:
        table: pa.Table = read(pa.BufferReader(pa.py_buffer(file.content)))
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"no whole {kind} file: {error}", where=file.name, fix="write or copy it again; was it cut off?"
        ) from None
    names = table.column_names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"two columns are called '{twice[0]}'", where=file.name, fix="rename one of them")
    return Table(file.name, table)
