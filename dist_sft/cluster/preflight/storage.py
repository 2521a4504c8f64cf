"""Is run.dir one file system? Each node writes a file, every other reads it, and removes it again."""

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SIZE = 4 << 20
"""Bytes that a node writes: more than a disk that is as good as full still takes."""


@dataclass(frozen=True, slots=True)
class Written:
    """name, token: of the file, and what it begins with; error: why the node could not write it."""

    name: str
    token: str
    error: str = ""


def write(run_dir: str, name: str) -> Written:
    """Write a file of random bytes, to the disk."""
    token, folder = secrets.token_hex(16), _folder(run_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("wb") as file:
            file.write(token.encode())
            file.write(os.urandom(SIZE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        (folder / name).unlink(missing_ok=True)
        return Written(name, token, error.strerror or str(error))
    return Written(name, token)


def unseen(run_dir: str, files: Sequence[Written]) -> dict[str, str]:
    """By name, what is wrong with the files of other nodes as this node sees them; {} where it sees them all."""
    found = {}
    for written in files:
        path = _folder(run_dir) / written.name
        try:
            with path.open("rb") as file:
                token = file.read(len(written.token)).decode(errors="replace")
            size = path.stat().st_size - len(token)
            if token != written.token or size != SIZE:
                found[written.name] = f"has {size} bytes of other content"
        except FileNotFoundError:
            found[written.name] = "is not there"
        except OSError as error:
            found[written.name] = error.strerror or str(error)
    return found


def remove(run_dir: str, name: str) -> str:
    """Why the file could not be removed, or ''."""
    try:
        (_folder(run_dir) / name).unlink(missing_ok=True)
        _folder(run_dir).rmdir()
    except OSError as error:
        return "" if not (_folder(run_dir) / name).exists() else error.strerror or str(error)
    return ""


def _folder(run_dir: str) -> Path:
    return Path(run_dir) / ".preflight"
