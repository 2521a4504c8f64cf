"""A source's path -> the files it names, and their content.

Local paths are memory-mapped; anything with a scheme (`s3://`, `https://`, `memory://`) is fetched whole by fsspec.
"""

import difflib
import glob
import mmap
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from dist_sft.config.resolve import redact_urls
from dist_sft.core.errors import DataError, MissingExtra
from dist_sft.data.readers.suffixes import READERS, suffixes

_SCHEME = re.compile(r"^[A-Za-z][\w+.-]*(://|::)")


@dataclass(frozen=True)
class Found:
    """A file that a source names. name: as errors say it, without secrets.  read: fetches or maps its bytes."""

    name: str
    read: Callable[[], memoryview]


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
    return Found(str(path), lambda: _map(path))


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


def _map(path: Path) -> memoryview:
    """uint8[bytes of the file], memory-mapped."""
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
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
    fs, path = _remote(url, lambda: fsspec.core.url_to_fs(url))
    shown = redact_urls(url)
    prefix = shown[: len(shown) - len(redact_urls(path))] if shown.endswith(redact_urls(path)) else ""
    if glob.has_magic(path) and not url.startswith(("http://", "https://")):  # where ? begins a query
        names = [str(name) for name in _remote(url, lambda: fs.glob(path))]
        if not names:
            raise DataError("no file matches", where=shown, fix="check the pattern")
    elif not suffixes(path.partition("?")[0])[0] and _remote(url, lambda: fs.isdir(path)):
        names = readable([str(name) for name in _remote(url, lambda: fs.find(path))], shown)
    else:
        names = [path]
    names.sort(key=_natural)
    return [Found(prefix + redact_urls(name), _fetcher(url, fs, name)) for name in names]


def _fetcher(url: str, fs: Any, name: str) -> Callable[[], memoryview]:
    return lambda: memoryview(_remote(url, lambda: fs.cat_file(name)))


def _remote(url: str, call: Callable[[], Any]) -> Any:
    """What a file system answers. Its faults are of any type: each store has its own."""
    shown = redact_urls(url)
    try:
        return call()
    except FileNotFoundError:
        raise DataError("no such file", where=shown, fix="check the URL") from None
    except ImportError as error:
        raise MissingExtra(f"no file system for this URL: {error}", where=shown, fix="install what it names") from None
    except Exception as error:  # noqa: BLE001  # whatever it is, it must name the URL
        what = f"cannot be read: {type(error).__name__}: {redact_urls(str(error))}"
        raise DataError(what, where=shown, fix="check the URL, the network and the credentials") from None


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts part-2 before part-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
