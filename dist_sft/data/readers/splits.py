"""Which files of a folder are rows, and of which split: as the folder's dataset card says, or as the files are called.

names of all files, README.md ─ files_of_split ─> names of those that are read
"""

import fnmatch
import re
from collections.abc import Sequence
from pathlib import PurePath, PurePosixPath
from typing import Any

import yaml

from dist_sft.core.errors import DataError

WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""What splits are called in paths, as `datasets` knows them (datasets.data_files)."""
_SHARD = re.compile(r"(?:^|/)data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}")
"""How `datasets` uploads a split of any name."""
ABOUT = frozenset({"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "croissant.json"})
"""Files that say something about the rows, and hold none."""


def files_of_split(
    names: Sequence[str], folder: str, split: str = "train", subset: str | None = None, card: str = ""
) -> list[str]:
    """The files of a folder that a source means.

    Args:
        names: of all that a reader takes, relative to the folder, with "/" between parts.
        folder: named in errors.
        split: that the run file asks for.
        subset: configuration of the card; None: the default one.
        card: content of the folder's README.md.
    Raises:
        DataError: there is no such split or subset, or files belong to no split where others do.
    """
    names = [name for name in names if PurePosixPath(name).name not in ABOUT]
    by_split = _of_card(names, folder, subset, card)
    if by_split is None:
        if subset is not None:
            raise DataError(
                f"no subset '{subset}': the folder has no dataset card with configs", where=folder,
                fix="name the files of it: path: FOLDER/SUBSET/*.parquet",
            )  # fmt: skip
        by_split = _by_name(names)
        if None in by_split and len(by_split) > 1:
            raise DataError(
                f"{by_split[None][0]} belongs to no split, and others do: {', '.join(_splits(by_split))}",
                where=folder,
                fix="name the files that are meant with a pattern, e.g. path: FOLDER/train*",
            )
    if set(by_split) == {None}:
        if split != "train":
            raise DataError(
                f"no split '{split}': no name of a file says which split it is", where=folder,
                fix="remove split, or name the files that are meant",
            )  # fmt: skip
        return by_split[None]
    if split not in by_split:
        raise DataError(
            f"no split '{split}'", where=folder, fix=f"set split to {' or '.join(_splits(by_split)) or 'nothing'}"
        )
    return by_split[split]


def names_files(card: str) -> bool:
    """Whether a dataset card says which files are what."""
    return bool(_configs(card))


def files_of_card(names: Sequence[str], folder: str, subset: str | None, card: str) -> list[str]:
    """The files of all splits of the configuration that is meant; none where the card names none. Raises DataError."""
    by_split = _of_card(names, folder, subset, card) or {}
    return list(dict.fromkeys(name for found in by_split.values() for name in found))


def refuse_other_split(names: Sequence[str], split: str, subset: str | None) -> None:
    """Raise DataError where a file that was named is not of the split or subset that was asked for as well."""
    for name in names if split != "train" else ():
        if (_of_shard(name) or _of_words(PurePath(name).name)) != split and not name.lower().endswith(
            ".json"
        ):  # which may hold several
            raise DataError(
                f"nothing says that this is the split '{split}'", where=name, fix="remove split: path says which file"
            )
    if subset is not None and names:
        raise DataError(
            f"a file has no subset '{subset}'", where=str(names[0]), fix="remove subset: path says which file"
        )


def split_of(name: str) -> str | None:
    """The split that a path is of, told by its words: "data/test-00000-of-00001.parquet" -> "test"."""
    return _of_shard(name) or _of_words(name)


def _of_shard(name: str) -> str | None:
    shard = _SHARD.search(name)
    return next((split for split, words in WORDS.items() if shard[1].lower() in words), shard[1]) if shard else None


def _of_words(name: str) -> str | None:
    words = {word for part in PurePosixPath(name.lower()).parts for word in re.split(r"[^a-z]+", part)}
    found = [split for split, aliases in WORDS.items() if words & set(aliases)]
    return found[0] if len(found) == 1 else None


def _by_name(names: Sequence[str]) -> dict[str | None, list[str]]:
    by_split: dict[str | None, list[str]] = {}
    for name in names:
        by_split.setdefault(split_of(name), []).append(name)
    return by_split


def _splits(by_split: dict[str | None, list[str]]) -> list[str]:
    return sorted(split for split in by_split if split is not None)


def _of_card(names: Sequence[str], folder: str, subset: str | None, card: str) -> dict[str | None, list[str]] | None:
    """What `configs:` of a dataset card says; None where it says nothing."""
    configs = _configs(card)
    if not configs:
        return None
    by_name = {str(config.get("config_name", "default")): config for config in configs}
    default = next((name for name, config in by_name.items() if config.get("default") or name == "default"), None)
    chosen = subset if subset is not None else default or (next(iter(by_name)) if len(by_name) == 1 else None)
    if chosen not in by_name:
        what = f"no subset '{chosen}'" if chosen else "the folder has several subsets, and none is the default"
        raise DataError(what, where=folder, fix=f"set subset to {' or '.join(by_name)}")
    by_split: dict[str | None, list[str]] = {}
    for split, patterns in _data_files(by_name[chosen]["data_files"]):
        found = [name for name in names for pattern in patterns if _matches(name, pattern)]
        if not found:
            raise DataError(
                f"the dataset card names {', '.join(patterns)}, and no such file is there",
                where=f"{folder}/README.md", fix="mend the card, copy the files, or name the files in path",
            )  # fmt: skip
        by_split[split] = list(dict.fromkeys(found))
    return by_split


def _configs(card: str) -> list[dict[str, Any]]:
    configs = [config for config in _front(card).get("configs") or () if isinstance(config, dict)]
    return [config for config in configs if config.get("data_files")]


def _data_files(value: Any) -> list[tuple[str, list[str]]]:
    """Split and patterns of data_files: a pattern, a list of them, or a list of {split, path}."""
    if isinstance(value, str):
        return [("train", [value])]
    listed = [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
    if not listed:
        return [("train", [str(one) for one in value])]
    return [
        (str(one.get("split", "train")), [one["path"]] if isinstance(one.get("path"), str) else [*one.get("path", ())])
        for one in listed
    ]


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or (
        "**/" in pattern and fnmatch.fnmatchcase(name, pattern.replace("**/", ""))
    )


def _front(card: str) -> dict[str, Any]:
    """The YAML between the lines of dashes that a card begins with; nothing where there is none, or it is broken."""
    found = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", card, re.DOTALL)
    try:
        front = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return {}
    return front if isinstance(front, dict) else {}
