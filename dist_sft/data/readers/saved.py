"""Folders of `datasets.save_to_disk`, and data sets of the hub."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dist_sft.config.data import Source
from dist_sft.core.errors import DataError
from dist_sft.data.readers.base import Values, canonical
from dist_sft.data.readers.typed import as_written


def saved_files(folder: Path, split: str) -> list[Path] | None:
    """The Arrow files of a `save_to_disk` folder in the order of their rows, or None if it is no such folder.

    Raises:
        DataError: a split that it does not hold, or a broken state.json.
    """
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        names = _json(splits, "splits", lambda found: [str(name) for name in found])
        if split not in names:
            raise DataError(f"no split '{split}'", where=str(folder), fix=f"set split to {' or '.join(names)}")
        folder = folder / split
    state = folder / "state.json"
    if not state.is_file() or not (folder / "dataset_info.json").is_file():
        return None
    return [folder / name for name in _json(state, "_data_files", lambda parts: [str(p["filename"]) for p in parts])]


def _json(path: Path, key: str, held: Callable[[Any], list[str]]) -> list[str]:
    try:
        return held(json.loads(path.read_text())[key])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"no whole state of a saved data set: {type(error).__name__}: {error}"
        raise DataError(what, where=str(path), fix="save it again with save_to_disk") from None


class HubRows(Values):
    """Rows of a data set of the hub, as `datasets` caches it: memory-mapped Arrow."""

    def __init__(self, source: Source) -> None:
        self.name = source.shown
        self.data = _load(source, self.name)
        self.fingerprint = _fingerprint(self.data, source)
        self.keys: list[str] = list(self.data.column_names)

    def __len__(self) -> int:
        return len(self.data)

    def where(self, i: int) -> str:
        return f"{self.name} row {i}"

    def __getitem__(self, i: int) -> dict[str, Any]:
        return as_written(self.data[i], self.data.features.arrow_schema)

    def column(self, name: str) -> list[Any]:
        return list(self.data[name]) if name in self.data.column_names else [None] * len(self)


def _load(source: Source, where: str) -> Any:
    import datasets  # takes a second: only who uses the hub pays

    try:
        return datasets.load_dataset(
            source.path.removeprefix("hub:"), source.subset, split=source.split, revision=source.revision
        )
    except Exception as error:  # noqa: BLE001  # `datasets` raises anything from OSError to its own and pyarrow's
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise DataError(
            f"the data set cannot be loaded: {reason}",
            where=where,
            fix="check the name, split and subset, the network, and HF_TOKEN for a private one",
        ) from None


def _fingerprint(data: Any, source: Source) -> str:
    """SHA-256 of the cached Arrow files and of the slice of them that is meant; of each row, if there is no file."""
    digest = hashlib.sha256(f"{source.subset} {source.split} {len(data)}".encode())
    for row in data if not data.cache_files else ():
        digest.update(canonical(row))
    for part in data.cache_files:
        with Path(part["filename"]).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
