"""A source's path -> the files it names, and how to reach their content.

Anything with a scheme (`s3://`, `https://`, `memory://`) is fsspec's.
"""

import difflib
import glob
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath

import fsspec

from dist_sft.core.errors import DataError
from dist_sft.core.redact import redact_urls, redact_value
from dist_sft.data.readers.archives import members
from dist_sft.data.readers.content import Content, Local, Remote, reached
from dist_sft.data.readers.splits import ABOUT, files_of_split, names_files, refuse_other_split, split_of
from dist_sft.data.readers.suffixes import is_archive, readable_names, suffixes

CARD = "README.md"
"""Of a data set, as the hub calls it."""
_SCHEME = re.compile(r"^[A-Za-z][\w+.-]*(://|::)")


@dataclass(frozen=True)
class Found:
    """A file that a source names.

    name   as errors say it, without secrets
    open   reaches for its bytes
    inner  its name in the archive that it lies in; "" where it lies in none
    """

    name: str
    open: Callable[[], Content]
    inner: str = ""

    @property
    def file_name(self) -> str:
        """What its suffix is taken from."""
        return self.inner or self.name.partition("?")[0]


def find_files(path: str, split: str = "train", subset: str | None = None) -> list[Found]:
    """The files of a path, folder, glob or URL, in natural order (part-2 before part-10); of an archive, those in it.

    split, subset: of the rows of a folder that has several, see `splits.files_of_split`. A file, or what a pattern
    matches, is what was named: only another split than its name says is refused.

    Raises:
        DataError: nothing there, or nothing readable in it, or no such split.
        MissingExtra: a URL whose file system is not installed.
    """
    return _find_remote(path, split, subset) if _SCHEME.match(path) else _find_local(path, split, subset)


def named_files(path: str) -> list[Path]:
    """The files on this machine that a path or glob names: archives as they are. Raises DataError: nothing there."""
    place = Path(path).expanduser()
    if place.exists() or not glob.has_magic(path):
        return [place]
    matches = glob.glob(str(place), recursive=True)  # noqa: PTH207  # Path.glob takes no absolute pattern
    names = [name for name in matches if Path(name).is_file()]
    if not names:
        raise DataError("no file matches", where=path, fix=_neighbours(place.parent, place.name))
    return [Path(name) for name in sorted(names, key=_natural)]


def _find_local(path: str, split: str, subset: str | None) -> list[Found]:
    place = Path(path).expanduser()
    if not place.is_dir():
        return _of_named([local_file(file) for file in named_files(path)], split, subset)
    inside = (inner.relative_to(place) for inner in place.rglob("*") if inner.is_file())
    files = {inner.as_posix(): local_file(place / inner) for inner in inside if not _hidden(inner)}
    return _of_folder(files, path, split, subset)


def _of_named(files: list[Found], split: str, subset: str | None) -> list[Found]:
    """Files that a path names, and what the archives among them hold of the split."""
    refuse_other_split([file.name for file in files if not is_archive(file.file_name)], split, subset)
    found: list[Found] = []
    for file in files:
        found += _in_archive(file, files, split, subset) if is_archive(file.file_name) else [file]
    return found


def _in_archive(archive: Found, beside: Iterable[Found], split: str, subset: str | None) -> list[Found]:
    """The files in it that are of the split, by their own names; all where these say nothing, and its own says it."""
    inside = _members(archive, beside)
    silent = not any(map(split_of, inside)) and not names_files(_card(inside))
    named = silent and split == split_of(PurePath(archive.file_name).name)
    return _of_folder(inside, archive.name, "train" if named else split, subset, "an archive")


def _members(archive: Found, beside: Iterable[Found]) -> dict[str, Found]:
    """The files in an archive, by their names in it. beside: files that are read besides.

    Raises DataError: see `archives.members`; or some of these were unpacked from it, and would be read twice.
    """
    inside = members(archive.name, archive.file_name, archive.open())
    folder, stem = archive.name.rpartition("/")[0], re.sub(r"(\.tar)?\.\w+$", "", archive.name)
    places = {f"{place}/{name}" for place in (folder, stem) for name in inside if suffixes(name)[0]}
    if unpacked := sorted(places & {file.name for file in beside}):
        raise DataError(
            f"{archive.name} holds it, too: its rows would be read twice", where=unpacked[0],
            fix="remove the archive, or name the files in path",
        )  # fmt: skip
    return {name: Found(f"{archive.name}/{name}", reach, name) for name, reach in inside.items()}


def _of_folder(
    files: dict[str, Found], folder: str, split: str, subset: str | None, kind: str = "a folder"
) -> list[Found]:
    """The files of the split, of all that a folder holds; archives in it count as folders."""
    card = _card(files)
    listed = files if names_files(card) else dict(_unpacked(files))
    chosen = files_of_split(readable(list(listed), folder, kind), folder, split, subset, card)
    return [one for name in sorted(chosen, key=_natural) for one in _all_of(listed[name], files.values())]


def _card(files: dict[str, Found]) -> str:
    return bytes(files[CARD].open().whole()).decode(errors="replace") if CARD in files else ""


def _unpacked(files: dict[str, Found]) -> Iterator[tuple[str, Found]]:
    """Files by their names, with those in archives whose own names do not say what split they are of."""
    for name, file in files.items():
        if is_archive(name) and split_of(name) is None:
            yield from ((f"{name}/{inner}", found) for inner, found in _members(file, files.values()).items())
        else:
            yield name, file


def _all_of(file: Found, beside: Iterable[Found]) -> list[Found]:
    """A file; of an archive that is of one split as a whole, all files of rows."""
    if not is_archive(file.file_name):
        return [file]
    inside = _members(file, beside)
    names = [name for name in readable(list(inside), file.name, "an archive") if PurePath(name).name not in ABOUT]
    return [inside[name] for name in sorted(names, key=_natural)]


def local_file(path: Path) -> Found:
    """A file on this machine."""
    return Found(str(path), lambda: _local(path))


def readable(names: list[str], folder: str, kind: str = "a folder") -> list[str]:
    """The files of a folder that a reader takes. Text files only where nothing else is: a README.txt is no document.

    Raises:
        DataError: there are none.
    """
    known = [name for name in names if _names_file(name)]
    rows = [name for name in known if suffixes(name)[0] != ".txt"]
    if not known:
        held = ", ".join(sorted(Path(name).name for name in names)[:5]) or "nothing"
        raise DataError(f"{kind} without data files; it holds {held}", where=folder, fix=f"use {readable_names()}")
    return rows or known


def _local(path: Path) -> Content:
    try:
        with path.open("rb"):
            return Local.of(path)
    except FileNotFoundError:
        if path.is_symlink():
            what = f"a link to {path.readlink()}, which does not exist"
            raise DataError(what, where=str(path), fix="mend the link") from None
        raise DataError("no such file", where=str(path), fix=_neighbours(path.parent, path.name)) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=str(path), fix="check its rights") from None


def _neighbours(folder: Path, name: str) -> str:
    if not folder.is_dir():
        return f"the folder {folder} does not exist (paths are relative to {Path.cwd()})"
    names = sorted(inner.name for inner in folder.iterdir() if not inner.name.startswith("."))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"{folder.resolve()} holds {', '.join(names[:5]) or 'nothing'}{', ...' if len(names) > 5 else ''}"


def _find_remote(url: str, split: str, subset: str | None) -> list[Found]:
    fs, path = reached(url, lambda: fsspec.core.url_to_fs(url))
    shown = redact_value(url)
    prefix = shown[: len(shown) - len(redact_urls(path))] if shown.endswith(redact_urls(path)) else ""

    def remote(name: str) -> Found:
        at = prefix + redact_urls(name)
        return Found(at, partial(Remote, url, name, at))

    if glob.has_magic(path) and not url.startswith(("http://", "https://")):  # where ? begins a query
        names = [str(name) for name in reached(url, lambda: fs.glob(path))]
        if not names:
            raise DataError("no file matches", where=shown, fix="check the pattern")
    elif not _names_file(path.partition("?")[0]) and reached(url, lambda: fs.isdir(path)):
        root = path.rstrip("/") + "/"
        inside = [str(name).removeprefix(root) for name in reached(url, lambda: fs.find(path))]
        return _of_folder({name: remote(root + name) for name in inside}, shown, split, subset)
    else:
        names = [path]
    return _of_named([remote(name) for name in sorted(names, key=_natural)], split, subset)


def _names_file(name: str) -> bool:
    return bool(suffixes(name)[0]) or is_archive(name)


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts part-2 before part-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
