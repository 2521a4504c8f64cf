"""What every reader gets and gives."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from xxhash import xxh3_128_digest, xxh3_128_hexdigest

from dist_sft.core.errors import DataError, RowError
from dist_sft.core.files import stable_hash
from dist_sft.data.readers.content import Buffer, Content

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it lies in its file.

    content  bytes that decide all that it says; rows with equal bytes are equal
    parse    gives the row, or raises RowError
    """

    content: bytes
    parse: Callable[[], dict[str, Any]]


class Rows(Protocol):
    """Rows of one file: `rows[i]` reads row i, and raises RowError if it is no row."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> dict[str, Any]: ...

    def read(self, rows: Sequence[int]) -> list[RawRow | RowError]:
        """Rows in the order asked, from a store in as few requests as can be."""
        ...

    def column(self, name: str) -> list[Any]:
        """What every row has under a key, in order; None where that is not there or the row is broken."""
        ...

    def where(self, i: int) -> str:
        """The place of row i, as a person finds it: "train.jsonl:41207"."""
        ...


class Values:
    """What `read` and `column` are for rows that are at hand as values."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, i: int) -> dict[str, Any]:
        raise NotImplementedError

    def where(self, i: int) -> str:
        raise NotImplementedError

    def read(self, rows: Sequence[int]) -> list[RawRow | RowError]:
        return [self._raw(i) for i in rows]

    def column(self, name: str) -> list[Any]:
        return [raw.parse().get(name) if isinstance(raw := self._raw(i), RawRow) else None for i in range(len(self))]

    def _raw(self, i: int) -> RawRow | RowError:
        try:
            row = self[i]
            return RawRow(canonical(row), lambda: row)
        except RowError as error:
            return error
        except (RecursionError, TypeError, ValueError) as error:
            what = (
                "nested too deeply to read" if isinstance(error, RecursionError) else f"no JSON could hold it: {error}"
            )
            return RowError(what, reason="bad_row", where=self.where(i), fix="remove the row")


def canonical(row: dict[str, Any]) -> bytes:
    """Bytes that are the same for equal rows, and others for others."""
    return json.dumps(row, ensure_ascii=True, default=_described, separators=(",", ":")).encode()


def _described(value: Any) -> dict[str, str]:
    return {f"\0{type(value).__module__}.{type(value).__qualname__}": repr(value)}


@dataclass(frozen=True)
class File:
    """A file's content under the name that errors say.

    split    which of several lists is meant, where a file holds several
    """

    name: str
    data: Content
    split: str = "train"

    @property
    def content(self) -> Buffer:
        """A copy of all of it."""
        return self.data.whole()

    def key(self, *more: Any) -> str | None:
        """Under which to keep what was found in the file as it is, on this machine; None where a change of it might not
        be noticed."""
        data = self.data
        if data.identity is None or not data.settled:
            return None
        return stable_hash([str(Path(self.name).absolute()), data.size, data.identity, *more])[:40]

    def fingerprint(self) -> str:
        """Of the content, the same wherever the file lies: XXH3 of the XXH3 of its pieces."""
        return joined(in_pieces(self, PIECE, lambda _, piece: xxh3_128_digest(piece)))


def in_pieces(file: File, size: int, look: Callable[[int, Buffer], T]) -> list[T]:
    """look(offset, bytes) of each piece of so many bytes, in order; several at a time."""

    def of(at: int) -> T:
        return look(at, file.data.read(at, min(at + size, file.data.size)))

    pieces = range(0, file.data.size, size)
    if len(pieces) < 2:
        return [of(at) for at in pieces]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(of, pieces))


def joined(digests: Iterable[bytes]) -> str:
    """Hex digest of a file by those of its pieces."""
    return xxh3_128_hexdigest(b"".join(digests))


Reader = Callable[[File, Path | None], Rows]
"""Rows of a file. The folder is for what is worth keeping; None: there is none."""

BOM = b"\xef\xbb\xbf"
PIECE = 1 << 24
"""Bytes that are read at once."""


def text_start(file: File) -> int:
    """Bytes of a UTF-8 byte order mark at the start of a text file: 0 or 3.

    Raises:
        DataError: UTF-16, which begins with another mark.
    """
    head = bytes(file.data.read(0, min(3, file.data.size)))
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError("the file is UTF-16", where=file.name, fix="convert it: iconv -f UTF-16 -t UTF-8")
    return len(BOM) if head == BOM else 0


def decode(file: File) -> str:
    """The whole file as text, without a byte order mark.

    Raises:
        DataError: not UTF-8, at the line of the first bad byte.
    """
    raw = file.content[text_start(file) :]
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError as error:
        line = bytes(raw[: error.start]).count(b"\n") + 1
        raise DataError(
            f"invalid UTF-8: byte 0x{raw[error.start]:02x}", where=f"{file.name}:{line}", fix="save the file as UTF-8"
        ) from None


def checked_row(value: Any, where: str) -> dict[str, Any]:
    """A JSON value that must be an object; or a list of messages, which is a row of nothing else.

    Raises:
        RowError: bad_row: something else.
    """
    turns = value if isinstance(value, list) else []
    if turns and all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in turns):
        return {"messages": value}
    if not isinstance(value, dict):
        kind = {list: "a list", str: "text", int: "a number", float: "a number", bool: "true or false"}
        raise RowError(
            f"the row is {kind.get(type(value), 'null')}, not an object",
            reason="bad_row",
            where=where,
            fix='a row looks like {"messages": [...]}; a JSON array of rows belongs into a .json file',
        )
    return value


def refuse_surrogates(value: Any, where: str) -> None:
    r"""JSON may hold half a character (an unpaired \ud800), which no tokenizer takes.

    Raises:
        RowError: bad_unicode; bad_row: nested too deeply.
    """
    try:
        _refuse_surrogates(value, where)
    except RecursionError:
        raise RowError("nested too deeply to read", reason="bad_row", where=where, fix="remove the row") from None


def _refuse_surrogates(value: Any, where: str) -> None:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RowError(
                rf"half a character: \u{ord(value[error.start]):04x} without its other half",
                reason="bad_unicode",
                where=where,
                fix="remove it from the row",
            ) from None
    elif isinstance(value, dict):
        for key, inner in value.items():
            _refuse_surrogates(key, where)
            _refuse_surrogates(inner, where)
    elif isinstance(value, list):
        for inner in value:
            _refuse_surrogates(inner, where)
