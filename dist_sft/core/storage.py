"""Folders on a disk or behind a URL, and what the two do otherwise.

One behind a URL, in an object store, is used as a path is, but is no `pathlib.Path`. A file there is whole when it is
closed, and not there before; it cannot be renamed, only copied. The libraries behind URLs raise errors of their own.
What they do not raise is asked for here: s3fs's removal of many files is silent about those that stayed.
"""

import contextlib
import errno
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from dist_sft.core.errors import ConfigError, SftError

PAUSES = (1, 4, 16)
"""Seconds before storage behind a URL is tried again; its library has tried some times by then."""

MISTAKES = (SftError, AssertionError, AttributeError, KeyError, TypeError)
"""What storage does not raise, of what an action on it may."""

FULL = (errno.ENOSPC, errno.EDQUOT)
LASTING = (*FULL, errno.EROFS)
"""What somebody must mend, of what storage raises; so is a PermissionError."""

IN_THE_WAY = (IsADirectoryError, NotADirectoryError, FileExistsError)
"""What storage raises where a folder stands in the place of a file, or the other way round."""

Returned = TypeVar("Returned")


def storage_path(name: str) -> Path:
    """The folder of a path, or of a URL that fsspec knows, e.g. s3://bucket/runs. Raises ConfigError.

    Listings are never cached: others write there.
    """
    scheme, colon, rest = name.partition("://")
    if not colon or scheme in ("file", "local"):
        return Path(rest if colon else name)
    from upath import UPath

    try:
        found = UPath(name, use_listings_cache=False)
        assert found.fs  # imports the library that speaks to it
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"{scheme}:// cannot be reached: {error}",
            where=name,
            fix="install fsspec's library for it on every node, e.g. s3fs for s3://, gcsfs for gs://, adlfs for az://",
        ) from error
    return cast(Path, found)


def is_remote(path: Path) -> bool:
    """Whether a path is behind a URL."""
    return not isinstance(path, Path)


def failures(path: Path) -> type[Exception]:
    """What storage raises when it fails; behind a URL also what programs raise, see MISTAKES."""
    return Exception if is_remote(path) else OSError


def lasts(error: BaseException) -> bool:
    """Whether a failure of storage comes again until somebody mends it; another may pass."""
    if isinstance(error, (PermissionError, *IN_THE_WAY, *MISTAKES)) or getattr(error, "errno", None) in LASTING:
        return True
    return error.__cause__ is not None and lasts(error.__cause__)


def cure(path: Path, error: Exception) -> str:
    """What to do where storage cannot be written, for a message."""
    if is_remote(path):
        return "see that the storage works, and what the credentials may do"
    if isinstance(error, IN_THE_WAY):
        return f"move {error.filename2 or error.filename or path} away: something else is wanted there"
    full = getattr(error, "errno", None) in FULL
    return "make room" if full else "see that the storage works, and that you may write there"


def retried(path: Path, action: Callable[[], Returned]) -> Returned:
    """What an action on storage returns. Behind a URL it is tried again after a failure: networks have bad moments."""
    for pause in PAUSES if is_remote(path) else ():
        with contextlib.suppress(Exception):
            return action()
        time.sleep(pause)
    return action()


def read_range(path: Path, start: int, stop: int) -> bytes:
    """Bytes of a file, behind a URL by one request. It is not left open. Raises OSError."""
    if not is_remote(path):
        with path.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)
    remote: Any = path
    try:
        content: bytes = retried(path, lambda: remote.fs.cat_file(remote.path, start=start, end=stop))
    except Exception as error:
        raise OSError(f"{path} cannot be read: {error}") from error
    return content


def listed(folder: Path, beginning: str) -> list[Path]:
    """What is in a folder with names that begin so; [] if it is not there.

    Raises what its storage raises, of which `Path.glob` hides some.
    """
    if is_remote(folder):
        return list(folder.glob(f"{beginning}*"))
    with contextlib.suppress(FileNotFoundError):
        return [path for path in folder.iterdir() if path.name.startswith(beginning)]
    return []


def remove_file(path: Path) -> None:
    """Remove a file, if it is there."""
    if is_remote(path):
        remote: Any = path
        with contextlib.suppress(FileNotFoundError):
            remote.fs.rm_file(remote.path)
    else:
        path.unlink(missing_ok=True)


def remove_tree(folder: Path) -> None:
    """Remove a folder, if it is there, with all that is in it. Raises OSError, among others, where something stayed."""
    if is_remote(folder):
        remote: Any = folder
        if remote.exists():
            remote.fs.rm(remote.path, recursive=True)
            if left := remote.fs.find(remote.path):
                raise OSError(f"{len(left)} files could not be removed, the first {left[0]}")
    elif folder.exists():
        shutil.rmtree(folder)


def move_tree(folder: Path, to: Path) -> None:
    """Give a folder another name. Behind a URL it is moved file by file, those at its top before those in folders."""
    if not is_remote(folder):
        folder.rename(to)
        return
    old: Any = folder
    new: Any = to
    for name in sorted(old.fs.find(old.path), key=lambda name: name.count("/")):
        old.fs.cp_file(name, f"{new.path}{name.removeprefix(old.path)}")
        old.fs.rm_file(name)
