"""The files of this machine that a source is read from, and no others: what another machine needs of it.

Source ─ the readers' own search ─> paths.   No row is read; of an archive in a folder only the list of its files is.
"""

from pathlib import Path

from dist_sft.config.data import Source
from dist_sft.data.readers.find import CARD, Found, find_files, local_file, named_files
from dist_sft.data.readers.saved import saved_files
from dist_sft.data.readers.splits import files_of_card

_SAVED = ("state.json", "dataset_info.json")


def needed_files(source: Source) -> list[Path]:
    """Rows, and what says which files are rows: a dataset card, the state of a saved data set.

    Raises:
        DataError: nothing is there, or nothing that is read.
    """
    place = Path(source.path).expanduser()
    if not place.is_dir():
        files = named_files(source.path)
        for file in files:
            if not file.exists():
                local_file(file).open()  # says why not
        return files
    if (saved := saved_files(place, source.split)) is not None:
        inside = [folder / name for folder in {file.parent for file in saved} for name in _SAVED]
        return [*saved, *filter(Path.is_file, [*inside, place / "dataset_dict.json"])]
    rows = [_path(found) for found in find_files(source.path, source.split, source.subset)]
    return list(dict.fromkeys([*rows, *_by_card(place, source.subset)]))


def _path(found: Found) -> Path:
    """Where a file lies, or the archive that it lies in."""
    return Path(found.name.removesuffix(f"/{found.inner}") if found.inner else found.name)


def _by_card(folder: Path, subset: str | None) -> list[Path]:
    """The card of a folder and the files of all its splits, without which it would be refused elsewhere."""
    if not (folder / CARD).is_file():
        return []
    inside = [name.relative_to(folder).as_posix() for name in folder.rglob("*") if name.is_file()]
    card = (folder / CARD).read_text(errors="replace")
    if not (names := files_of_card(inside, str(folder), subset, card)):
        return []
    return [folder / CARD, *(folder / name for name in names)]
