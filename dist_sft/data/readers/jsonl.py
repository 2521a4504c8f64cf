"""JSON Lines: one JSON object per line, blank lines between them allowed.

One scan finds where the lines begin; a row is parsed when it is asked for, so a broken one costs only itself.
"""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_sft.core.errors import RowError
from dist_sft.data.readers.base import Buffer, File, checked_row, refuse_surrogates, text_start

_CHUNK = 1 << 24
"""Bytes that are scanned at once."""
_SPACES = np.frombuffer(b" \t\r\n\v\f", np.uint8)


class JsonLines:
    """Rows of a JSON Lines file.

    starts, ends  int64[N]  bytes of row i: content[starts[i]:ends[i]]
    lines         int64[N]  1-based line of row i
    """

    def __init__(self, file: File) -> None:
        self.name, self.content = file.name, file.content
        self.starts, self.ends, self.lines = _index(file.content, text_start(file))

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, i: int) -> str:
        return f"{self.name}:{self.lines[i]}"

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Row i.

        Raises:
            RowError: bad_unicode (invalid UTF-8, half a character), bad_json, bad_row (not an object).
        """
        raw, where = bytes(self.content[self.starts[i] : self.ends[i]]), self.where(i)
        try:
            value = json.loads(raw.decode())
        except UnicodeDecodeError as error:
            what = f"invalid UTF-8: byte 0x{raw[error.start]:02x} at column {error.start + 1}"
            raise RowError(what, reason="bad_unicode", where=where, fix="save the file as UTF-8") from None
        except RecursionError:
            raise RowError("nested too deeply to read", reason="bad_json", where=where, fix="remove the row") from None
        except ValueError as error:
            raise RowError(f"not JSON: {error}", reason="bad_json", where=where, fix=self._fix(i)) from None
        if b"\\ud" in raw or b"\\uD" in raw:
            refuse_surrogates(value, where)
        return checked_row(value, where)

    def _fix(self, i: int) -> str:
        if self.ends[i] == len(self.content):
            return "the last line does not end: was the file cut off?"
        return "one whole JSON object per line"


def _index(content: Buffer, begin: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """starts, ends and 1-based lines of all lines that are not blank."""
    data = np.frombuffer(content, np.uint8)
    chunks = (np.flatnonzero(data[at : at + _CHUNK] == ord("\n")) + at for at in range(0, len(data), _CHUNK))
    ends = np.concatenate([*chunks, np.array([len(data)])]).astype(np.int64)
    starts = np.concatenate([np.array([begin]), ends[:-1] + 1]).astype(np.int64)
    full = starts < ends
    suspects = np.flatnonzero(full)[np.isin(data[starts[full]], _SPACES)]
    for i in suspects:
        full[i] = bool(bytes(content[starts[i] : ends[i]]).strip())
    return starts[full], ends[full], np.flatnonzero(full) + 1
