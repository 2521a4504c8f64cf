"""What every reader gets and gives."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from dist_sft.core.errors import DataError, RowError

Buffer = memoryview
"""uint8[bytes of the file]; memory-mapped where the file is local and not compressed."""


class Rows(Protocol):
    """Rows of one file: `rows[i]` reads row i, and raises RowError if it is no row."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> dict[str, Any]: ...

    def where(self, i: int) -> str:
        """The place of row i, as a person finds it: "train.jsonl:41207"."""
        ...


@dataclass(frozen=True)
class File:
    """A file's content under the name that errors say.

    split    which of several lists is meant, where a file holds several
    """

    name: str
    content: Buffer
    split: str = "train"

    def fingerprint(self) -> str:
        """SHA-256 of the content: the same wherever the file lies."""
        return hashlib.sha256(self.content).hexdigest()


Reader = Callable[[File], Rows]

BOM = b"\xef\xbb\xbf"


def text_start(file: File) -> int:
    """Bytes of a UTF-8 byte order mark at the start of a text file: 0 or 3.

    Raises:
        DataError: UTF-16, which begins with another mark.
    """
    head = bytes(file.content[:3])
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError("the file is UTF-16", where=file.name, fix="convert it: iconv -f UTF-16 -t UTF-8")
    return len(BOM) if head == BOM else 0


def decode(file: File) -> str:
    """The whole file as text, without a byte order mark.

    Raises:
        DataError: not UTF-8, at the line of the first bad byte.
    """
    raw = bytes(file.content[text_start(file) :])
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"invalid UTF-8: byte 0x{raw[error.start]:02x}", where=f"{file.name}:{line}", fix="save the file as UTF-8"
        ) from None


def checked_row(value: Any, where: str) -> dict[str, Any]:
    """A JSON value that must be an object.

    Raises:
        RowError: bad_row: something else.
    """
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
        RowError: bad_unicode.
    """
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
            refuse_surrogates(key, where)
            refuse_surrogates(inner, where)
    elif isinstance(value, list):
        for inner in value:
            refuse_surrogates(inner, where)
