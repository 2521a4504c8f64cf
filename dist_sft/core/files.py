"""Files that are whole or absent: write beside, fsync, rename. Behind a URL: one request."""

import contextlib
import hashlib
import io
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dist_sft.core.errors import StorageError, StorageOutage
from dist_sft.core.storage import IN_THE_WAY, MISTAKES, cure, failures, is_remote, lasts

PARTIAL = r"\.[0-9]+-[0-9a-f]+\.partial"
"""What follows a file's name, as a pattern, until it has its content. Nobody else has a file of such a name."""


@contextlib.contextmanager
def durable(path: Path) -> Iterator[BinaryIO]:
    """A binary file that is on disk when the block ends without an error. For large ones: it has its name at once."""
    if is_remote(path):
        with path.open("wb") as file:
            yield file
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes its name only when the block ends without an error, and is on disk by then."""
    if is_remote(path):
        content = io.BytesIO()
        yield content
        path.write_bytes(content.getvalue())
        return
    partial = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(8)}.partial")  # see PARTIAL
    written = partial.open("xb")
    try:
        with written as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure of storage in the block into a StorageError that names the file and the room that is left."""
    try:
        yield
    except MISTAKES:
        raise
    except failures(path) as error:
        kind = StorageError if lasts(error) else StorageOutage
        raise kind(
            f"cannot be written: {getattr(error, 'strerror', None) or error} ({room(path.parent)})",
            where=str(path),
            fix=f"{cure(path, error)}, and run the same command again: it goes on from the newest whole checkpoint",
        ) from error


@contextlib.contextmanager
def reading(path: Path, who: str = "") -> Iterator[None]:
    """Turn a failure of storage in the block into a StorageError that names the file, and who could not read it."""
    try:
        yield
    except MISTAKES:
        raise
    except failures(path) as error:
        kind = StorageError if lasts(error) or isinstance(error, FileNotFoundError) else StorageOutage
        fix = cure(path, error) if isinstance(error, IN_THE_WAY) else "see that the storage works"
        raise kind(f"{who}cannot be read: {error}", where=str(path), fix=fix) from error


def room(folder: Path) -> str:
    """How much the file system of a folder can still take, for a message."""
    if is_remote(folder):
        return f"at {folder}"
    return f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB free in {folder}"


def beyond(paths: Iterable[Path], limit: int, removable: Callable[[Path], bool] = lambda path: True) -> Iterator[Path]:
    """The files to remove, those used longest ago first, so that the rest has at most `limit` bytes.

    Others may remove files meanwhile. removable: may a file go? One that may not counts all the same.
    """
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            found.append((stat.st_mtime_ns, stat.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            return
        if removable(path):
            total -= size
            yield path


EDGE = 2**20
"""Bytes at either end of a large file that are looked at, where reading all of it would take minutes."""


def digest_of_ends(path: Path) -> bytes:
    """SHA-256 of a file's name, size and both ends."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"{path.name},{size};".encode())
    with path.open("rb") as content:
        digest.update(content.read(EDGE))
        content.seek(max(size - EDGE, 0))
        digest.update(content.read(EDGE))
    return digest.digest()


def json_lines(lines: Iterable[bytes], first: int = 1) -> Iterator[tuple[int, bytes, Any]]:
    """Number, text and value of each line that is JSON; a power cut leaves some of zeros, half ones and blank ones."""
    for number, text in enumerate(lines, first):
        with contextlib.suppress(ValueError, RecursionError):
            yield number, text, json.loads(text)


def missing_lines(path: Path, found: Iterable[int], lines: int) -> str | None:
    """What to tell of a file of whose lines only some could be read; None where all could."""
    lost = sorted(set(range(1, lines + 1)) - set(found))
    if not lost:
        return None
    shown = ", ".join(map(str, lost[:5])) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
    return f"{path.name}: damaged and left out: line{'s' if len(lost) > 1 else ''} {shown} of {lines}"


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write a JSON file atomically; keys stay in order, one per line if indented."""
    with atomic(path) as file:
        file.write(json.dumps(value, indent=indent, ensure_ascii=False).encode() + b"\n")


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    if is_remote(folder):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hex digest of a whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stable_hash(value: Any) -> str:
    """Hex digest of a JSON value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
