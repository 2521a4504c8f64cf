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
from dist_sft.data.readers.suffixes import READERS, suffixes

_SCHEME = re.compile(r"^[A-Za-z][\w+.-]*(://|::)")


@dataclass(frozen=True)
class Found:
    """A file that a source names. name: as errors say it, without secrets.  open: reaches for its bytes."""

    name: str
    open: Callable[[], Content]


def find_files(path: str) -> list[Found]:
    """The files of a path, folder, glob or URL, in natural order (part-2 before part-10).

    Raises:
        DataError: nothing there, or nothing readable in it.
        MissingExtra: a URL whose file system is not installed.
    """
    return _find_remote(path) if _SCHEME.match(path) else _find_local(path)


def _find_local(path: str) -> list[Found]:
    place = Path(path).expanduser()
    if place.is_dir():
        names = [str(inner) for inner in place.rglob("*") if inner.is_file() and not _hidden(inner.relative_to(place))]
        names = readable(names, path)
    elif place.exists() or not glob.has_magic(path):
        names = [str(place)]
    else:
        matches = glob.glob(str(place), recursive=True)  # noqa: PTH207  # Path.glob takes no absolute pattern
        names = [name for name in matches if Path(name).is_file()]
        if not names:
            raise DataError("no file matches", where=path, fix=_neighbours(place.parent, place.name))
    return [local_file(Path(name)) for name in sorted(names, key=_natural)]


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


def _find_remote(url: str) -> list[Found]:
    fs, path = reached(url, lambda: fsspec.core.url_to_fs(url))
    shown = redact_urls(url)
    prefix = shown[: len(shown) - len(redact_urls(path))] if shown.endswith(redact_urls(path)) else ""
    if glob.has_magic(path) and not url.startswith(("http://", "https://")):  # where ? begins a query
        names = [str(name) for name in reached(url, lambda: fs.glob(path))]
        if not names:
            raise DataError("no file matches", where=shown, fix="check the pattern")
    elif not suffixes(path.partition("?")[0])[0] and reached(url, lambda: fs.isdir(path)):
        names = readable([str(name) for name in reached(url, lambda: fs.find(path))], shown)
    else:
        names = [path]
    names.sort(key=_natural)
    shown_names = [prefix + redact_urls(name) for name in names]
    return [Found(at, partial(Remote, url, name, at)) for name, at in zip(names, shown_names, strict=True)]


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts part-2 before part-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
