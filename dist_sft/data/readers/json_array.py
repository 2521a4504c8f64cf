"""A JSON file: an array of rows, an object that holds one under its split's name or under "data", or one row.

A .json file that holds an object on each line is read as JSON Lines, as many published ones are.
"""

import json
from pathlib import Path, PurePath
from typing import Any

from dist_sft.chat.recognise import is_row
from dist_sft.core.errors import DataError
from dist_sft.data.readers.base import File, Rows, Values, checked_row, decode, refuse_surrogates
from dist_sft.data.readers.jsonl import JsonLines
from dist_sft.data.readers.splits import split_of


class JsonArray(Values):
    """Rows of an array in memory. key: where the array stands in the file, "" at the top."""

    def __init__(self, name: str, key: str, values: list[Any], surrogates: bool) -> None:
        self.name, self.key, self.values, self.surrogates = name, key, values, surrogates

    def __len__(self) -> int:
        return len(self.values)

    def where(self, i: int) -> str:
        return f"{self.name}{'.' if self.key else ''}{self.key}[{i}]"

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Row i.

        Raises:
            RowError: bad_row (not an object), bad_unicode (half a character).
        """
        if self.surrogates:
            refuse_surrogates(self.values[i], self.where(i))
        return checked_row(self.values[i], self.where(i))


def read_json(file: File, cache: Path | None = None) -> Rows:
    """Rows of a .json file.

    Raises:
        DataError: not JSON, not UTF-8, or no array of rows in it.
    """
    text = decode(file)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return JsonLines(file, cache)
        raise _broken(file, error, text) from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"not JSON: {error}", where=file.name) from None
    key, rows = _array(value, file)
    return JsonArray(file.name, key, rows, surrogates="\\ud" in text.lower())


def _array(value: Any, file: File) -> tuple[str, list[Any]]:
    if isinstance(value, list) and file.split in ("train", split_of(PurePath(file.name).name)):
        return "", value
    if isinstance(value, list):
        what = f"no split '{file.split}': the file is one array of rows"
        raise DataError(what, where=file.name, fix="remove split: path says which file")
    for key in (file.split, "data") if file.split == "train" else (file.split,):
        if isinstance(value, dict) and isinstance(value.get(key), list):
            return key, value[key]
    if isinstance(value, dict) and is_row(value):
        return "", [value]
    if isinstance(value, dict):
        lists = [key for key, inner in value.items() if isinstance(inner, list)]
        raise DataError(
            f"an object without a list under '{file.split}' or 'data'",
            where=file.name,
            fix=f"set split to one of {', '.join(lists)}, if it holds rows" if lists else "write an array of rows",
        )
    raise DataError(
        "neither an array of rows nor an object that holds one", where=file.name, fix="write [{...}, {...}]"
    )


def _broken(file: File, error: json.JSONDecodeError, text: str) -> DataError:
    ended = error.pos >= len(text.rstrip())
    return DataError(
        f"not JSON: {error.msg} (column {error.colno})",
        where=f"{file.name}:{error.lineno}",
        fix="the file ends too early: was it cut off?" if ended else "mend the file, or one object per line as .jsonl",
    )
