"""A source's path -> the files it names, and how to reach their content.

Anything with a scheme (`s3://`, `https://`, `memory://`) is fsspec's.
"""

import difflib
import glob
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import fsspec

from dist_sft.config.redact import redact_urls
from dist_sft.core.errors import DataError
from dist_sft.data.readers.content import Content, Local, Remote, reached
from dist_sft.data.readers.splits import files_of_split, refuse_other_split
from dist_sft.data.readers.suffixes import READERS, suffixes

CARD = "README.md"
"""Of a data set, as the hub calls it."""
_SCHEME = re.compile(r"^[A-Za-z][\w+.-]*(://|::)")


@dataclass(frozen=True)
class Found:
    """A file that a source names. name: as errors say it, without secrets.  open: reaches for its bytes."""

    name: str
    open: Callable[[], Content]


def find_files(path: str, split: str = "train", subset: str | None = None) -> list[Found]:
    """The files of a path, folder, glob or URL, in natural order (part-2 before part-10).

    split, subset: of the rows of a folder that has several, see `splits.files_of_split`. A file, or what a pattern
    matches, is what was named: only another split than its name says is refused.

    Raises:
        DataError: nothing there, or nothing readable in it, or no such split.
        MissingExtra: a URL whose file system is not installed.
    """
    return _find_remote(path, split, subset) if _SCHEME.match(path) else _find_local(path, split, subset)


def _find_local(path: str, split: str, subset: str | None) -> list[Found]:
    place = Path(path).expanduser()
    if place.is_dir():
        inside = (inner.relative_to(place) for inner in place.rglob("*") if inner.is_file())
        names = readable([inner.as_posix() for inner in inside if not _hidden(inner)], path)
        names = [str(place / name) for name in files_of_split(names, path, split, subset, _card(place))]
        return [local_file(Path(name)) for name in sorted(names, key=_natural)]
    if place.exists() or not glob.has_magic(path):
        names = [str(place)]
    else:
        matches = glob.glob(str(place), recursive=True)  # noqa: PTH207  # Path.glob takes no absolute pattern
        names = [name for name in matches if Path(name).is_file()]
        if not names:
            raise DataError("no file matches", where=path, fix=_neighbours(place.parent, place.name))
    refuse_other_split(names, split, subset)
    return [local_file(Path(name)) for name in sorted(names, key=_natural)]


def _card(folder: Path) -> str:
    card = folder / CARD
    return card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""


def local_file(path: Path) -> Found:
    """A file on this machine."""
    return Found(str(path), lambda: _local(path))


def readable(names: list[str], folder: str) -> list[str]:
    """The files of a folder that a reader takes. Text files only where nothing else is: a README.txt is no document.

    Raises:
        DataError: there are none.
    """
    known = [name for name in names if suffixes(name)[0]]
    rows = [name for name in known if suffixes(name)[0] != ".txt"]
    if not known:
        held = ", ".join(sorted(Path(name).name for name in names)[:5]) or "nothing"
        raise DataError(f"a folder without data files; it holds {held}", where=folder, fix=f"use {', '.join(READERS)}")
    return rows or known


def _local(path: Path) -> Content:
    try:
        content = Local.of(path)
        content.whole()
        return content
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
    shown = redact_urls(url)
    prefix = shown[: len(shown) - len(redact_urls(path))] if shown.endswith(redact_urls(path)) else ""
    if glob.has_magic(path) and not url.startswith(("http://", "https://")):  # where ? begins a query
        names = [str(name) for name in reached(url, lambda: fs.glob(path))]
        if not names:
            raise DataError("no file matches", where=shown, fix="check the pattern")
    elif not suffixes(path.partition("?")[0])[0] and reached(url, lambda: fs.isdir(path)):
        root = path.rstrip("/") + "/"
        inside = [str(name).removeprefix(root) for name in reached(url, lambda: fs.find(path))]
        card = reached(url, lambda: fs.cat_file(root + CARD)).decode(errors="replace") if CARD in inside else ""
        names = [root + name for name in files_of_split(readable(inside, shown), shown, split, subset, card)]
    else:
        names = [path]
        refuse_other_split(names, split, subset)
    names.sort(key=_natural)
    shown_names = [prefix + redact_urls(name) for name in names]
    return [Found(at, partial(Remote, url, name, at)) for name, at in zip(names, shown_names, strict=True)]


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts part-2 before part-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
