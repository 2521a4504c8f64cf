"""Is a folder one and the same on all nodes? Each writes a file, every other reads it, and removes it again.

where: run.dir, or the URL of checkpoint.url.
"""

import contextlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_sft.core.errors import SftError
from dist_sft.core.files import durable
from dist_sft.core.storage import is_remote, remove_file, storage_path

SIZE = 4 << 20
"""Bytes that a node writes: more than a disk that is as good as full still takes."""


@dataclass(frozen=True, slots=True)
class Written:
    """name, token: of the file, and what it begins with; error: why the node could not write it."""

    name: str
    token: str
    error: str = ""


def write(where: str, name: str) -> Written:
    """Write a file of random bytes, to the disk."""
    token = secrets.token_hex(16)
    try:
        path = _folder(where) / name
        with durable(path) as file:
            file.write(token.encode())
            file.write(os.urandom(SIZE))
    except Exception as error:  # noqa: BLE001  # the libraries behind URLs have errors of their own
        with contextlib.suppress(Exception):
            path.unlink(missing_ok=True)
        return Written(name, token, _said(error))
    return Written(name, token)


def unseen(where: str, files: Sequence[Written]) -> dict[str, str]:
    """By name, what is wrong with the files of other nodes as this node sees them; {} where it sees them all."""
    found = {}
    for written in files:
        try:
            path = _folder(where) / written.name
            with path.open("rb") as file:
                token = file.read(len(written.token)).decode(errors="replace")
            size = path.stat().st_size - len(token)
            if token != written.token or size != SIZE:
                found[written.name] = f"has {size} bytes of other content"
        except FileNotFoundError:
            found[written.name] = "is not there"
        except Exception as error:  # noqa: BLE001  # see write
            found[written.name] = _said(error)
    return found


def remove(where: str, name: str) -> str:
    """Why the file could not be removed, or ''."""
    try:
        folder = _folder(where)
        remove_file(folder / name)
        if (folder / name).exists():
            return "it is still there"
    except Exception as error:  # noqa: BLE001  # see write
        return _said(error)
    if not is_remote(folder):
        with contextlib.suppress(OSError):  # others' files may be there yet
            folder.rmdir()
    return ""


def _folder(where: str) -> Path:
    return storage_path(where) / ".preflight"


def _said(error: Exception) -> str:
    if isinstance(error, SftError):
        return error.what
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
