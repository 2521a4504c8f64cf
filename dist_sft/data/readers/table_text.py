"""CSV and TSV with a header line. All values are text; quoted values may hold line ends."""

import csv
import io
import sys
from pathlib import Path
from typing import Any

from dist_sft.core.errors import DataError, RowError
from dist_sft.data.readers.base import File, Values, decode

_LONGEST_NAME = 200
"""Characters. A header with a longer name is taken for a row of data."""


class Csv(Values):
    """Rows of a CSV file in memory. lines[i]: 1-based line on which row i begins."""

    def __init__(self, name: str, columns: list[str], rows: list[list[str]], lines: list[int]) -> None:
        self.name, self.columns, self.rows, self.lines = name, columns, rows, lines

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, i: int) -> str:
        return f"{self.name}:{self.lines[i]}"

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Row i.

        Raises:
            RowError: bad_row: more or fewer values than the header has names.
        """
        values = self.rows[i]
        if len(values) != len(self.columns):
            raise RowError(
                f"{len(values)} values, but the header names {len(self.columns)} columns",
                reason="bad_row",
                where=self.where(i),
                fix="quote values that hold the separator, a quote or a line end",
            )
        return dict(zip(self.columns, values, strict=True))


def read_csv(file: File, cache: Path | None = None) -> Csv:
    """A comma-separated file."""
    return _read(file, ",")


def read_tsv(file: File, cache: Path | None = None) -> Csv:
    """A tab-separated file."""
    return _read(file, "\t")


def _read(file: File, separator: str) -> Csv:
    """Raises DataError: not UTF-8, broken quotes, no header or a bad one."""
    csv.field_size_limit(sys.maxsize)  # the default of 128 KiB is shorter than many a document
    reader = csv.reader(io.StringIO(decode(file), newline=""), delimiter=separator, strict=True)
    rows, lines, begin = [], [], 1
    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(begin)
            begin = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"broken quotes in the row that begins here: {error}",
            where=f"{file.name}:{begin}",
            fix='double the quotes inside a quoted value: "he said ""yes"""',
        ) from None
    if not rows:
        return Csv(file.name, [], [], [])
    _check_header(rows[0], f"{file.name}:{lines[0]}")
    return Csv(file.name, rows[0], rows[1:], lines[1:])


def _check_header(names: list[str], where: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"two columns are called '{twice[0]}'", where=where, fix="rename one in the header line")
    for name in names:
        if not _is_name(name):
            raise DataError(
                f"the first line is no header: '{name[:40]}' is no name of a column",
                where=where,
                fix="put a line with the columns' names first, e.g. prompt,completion",
            )
    if not any(names):
        raise DataError("the header line names no column", where=where, fix="name the columns, e.g. prompt,completion")


def _is_name(name: str) -> bool:
    """Whether it may name a column. An empty name may: pandas writes its index under one."""
    digits = name.strip().replace(".", "", 1).lstrip("+-")
    return len(name) <= _LONGEST_NAME and "\n" not in name and not digits.isdecimal()
