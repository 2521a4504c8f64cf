"""What of a folder is ours: nothing else in it is overwritten, renamed or removed.

A folder that we write fixed names into may be anybody's: `run.dir: .` is a home folder. It is claimed first, which
leaves a mark in it; without a mark it must hold nothing under those names. A folder that is removed with all that is in
it is a `scratch` folder: made by us, under a name that nobody else has, and marked, too.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dist_sft.core.errors import StorageError
from dist_sft.core.files import atomic, reading
from dist_sft.core.storage import is_remote, listed

MARK = ".dist-sft"
"""The file that says that a folder is ours. What it holds is told by whoever marks."""
SHOWN = 3
"""Names of files in a message."""


def is_marked(folder: Path) -> bool:
    """Whether the folder is ours."""
    return (folder / MARK).exists()


def mark(folder: Path, facts: dict[str, Any]) -> None:
    """Make a folder that is there ours, or keep other facts of it."""
    with atomic(folder / MARK) as file:
        file.write(json.dumps({"made by": "dist-sft", **facts}).encode() + b"\n")


def marked_facts(folder: Path) -> dict[str, Any]:
    """What `mark` kept; {} without a mark, and of one that is damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads((folder / MARK).read_bytes())
        if isinstance(found, dict):
            return found
    return {}


def refuse_foreign(folder: Path, wanted: Callable[[str], bool], is_earlier: Callable[[Path], bool], fix: str) -> None:
    """Raise StorageError where a folder that is not ours holds something under a name that we would write.

    wanted: would we? is_earlier: did a version without marks make the folder? An empty folder is nothing. Changes
    nothing.
    """
    with reading(folder):
        if is_marked(folder) or not folder.exists():
            return
        found = sorted(path.name for path in listed(folder, "") if wanted(path.name) and not _is_empty(path))
    if found and not is_earlier(folder):
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        verb = "is" if len(found) == 1 else "are"
        raise StorageError(
            f"{', '.join(found[:SHOWN])}{more} {verb} there already, and not of this run, which would overwrite "
            f"{'it' if len(found) == 1 else 'them'}",
            where=str(folder),
            fix=fix,
        )


def claim(folder: Path, kind: str, wanted: Callable[[str], bool], is_earlier: Callable[[Path], bool], fix: str) -> None:
    """Make a folder, and make it ours. Raises what `refuse_foreign` raises, and what storage raises."""
    refuse_foreign(folder, wanted, is_earlier, fix)
    if not is_remote(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not is_marked(folder):
        mark(folder, {"kind": kind})


def _is_empty(path: Path) -> bool:
    """Whether a path is a folder with nothing in it. Behind a URL there are none."""
    return not is_remote(path) and path.is_dir() and not path.is_symlink() and not any(path.iterdir())


@contextlib.contextmanager
def scratch(parent: Path, name: str) -> Iterator[Path]:
    """A folder for as long as the block lasts; those of this name that killed processes left are removed first.

    A folder whose process lives is known by the lock on its mark. Raises OSError.
    """
    prefix = f".{name}.dist-sft-"
    for left in listed(parent, prefix):
        _remove_if_left(left)
    folder = parent / f"{prefix}{secrets.token_hex(8)}"
    folder.mkdir(parents=True)
    unnamed = folder / f"{MARK}.new"
    try:
        with unnamed.open("xb") as held:
            with contextlib.suppress(OSError):  # a file system without locks: what is left there stays
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unnamed.rename(folder / MARK)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, to: Path) -> None:
    """Give what a scratch folder holds its name, which must be new, or that of an empty folder. Raises OSError."""
    (folder / MARK).unlink()
    folder.rename(to)


def replace_files(made: Path, folder: Path) -> None:
    """Move the files of a scratch folder into a folder of ours, over those of the same names. Raises OSError."""
    for path in made.rglob("*"):
        if path.is_file() and path.name != MARK:
            to = folder / path.relative_to(made)
            to.parent.mkdir(parents=True, exist_ok=True)
            path.replace(to)


def _remove_if_left(folder: Path) -> None:
    """Remove a scratch folder whose process has ended."""
    with contextlib.suppress(OSError):
        if folder.is_symlink():
            return
        with (folder / MARK).open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def remove_ours(folder: Path, is_ours: Callable[[str], bool]) -> None:
    """Remove what is ours in a folder, and folders that are empty then; all else stays, and so does a link.

    is_ours: of a file's path in the folder, e.g. "1-ab/rank00000.json". Raises OSError, among others.
    """
    if is_remote(folder):
        remote: Any = folder
        ours = [name for name in remote.fs.find(remote.path) if is_ours(_inside(name, remote.path))]
        if ours:
            remote.fs.rm(ours)
        if left := [name for name in remote.fs.find(remote.path) if is_ours(_inside(name, remote.path))]:
            raise OSError(f"{len(left)} files could not be removed, the first {left[0]}")
        return
    for root, folders, files in os.walk(folder, topdown=False, onerror=_raise):
        here = Path(root)
        for name in files:
            if is_ours(str((here / name).relative_to(folder))):
                (here / name).unlink(missing_ok=True)
        for name in folders:
            if not (here / name).is_symlink():
                _remove_if_empty(here / name)
    if folder.is_dir() and not folder.is_symlink():
        _remove_if_empty(folder)


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _inside(name: str, folder: str) -> str:
    return name.removeprefix(folder).lstrip("/")


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()
