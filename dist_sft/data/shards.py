"""Files of encoded samples: append-only, memory-mapped, each record with a checksum.

A shard is <id>.tokens, written by one process, and <id>.index once that process is done with it.

A record is 48 bytes of header, then its payload in units of 8 bytes: int32 tokens and float32 weights of a sample, or
the text of an error. The checksum is looked at whenever a record is read, so that a byte which has changed on the disk
is never learned. Nobody changes a shard after it is written; eviction removes it whole, and who has it mapped keeps it.
"""

import contextlib
import fcntl
import json
import mmap
import os
import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_digest, xxh3_64_intdigest

from dist_sft.chat.conversation import EncodedSample
from dist_sft.core.errors import RowError

Outcome = EncodedSample | RowError

HEADER = struct.Struct("<8sQIIIIQ8s")
"""magic, XXH3 of all that follows it, kind, units of payload, cut, lost, the two halves of the row's digest."""
CHECKED = 16
"""Bytes of a record that its checksum leaves out: the magic and itself."""
MAGIC = b"sft rec2"
SAMPLE, ERROR = 0, 1
INDEX_ENTRY = np.dtype([("digest", "<u8"), ("offset", "<u8")])


class Damaged(Exception):
    """A shard that cannot be trusted any more."""


def half(digest: bytes) -> int:
    """The half of a digest that indexes hold."""
    return int.from_bytes(digest[:8], "little")


class ShardReader:
    """One shard, mapped as far as it reached when it was opened."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self.path = path
        with path.open("rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            self._map = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ) if self.size else b""
            with contextlib.suppress(OSError):  # of another user
                os.utime(file.fileno())  # the shard that was used longest ago is evicted first
        self._view = memoryview(self._map)
        self._tokens = np.frombuffer(self._map, np.int32, self.size // 4)
        self._weights = np.frombuffer(self._map, np.float32, self.size // 4)

    def read(self, offset: int, units: int, digest: int) -> Outcome | None:
        """The record at an offset; None if another one stands there. Raises Damaged: its checksum is wrong."""
        end = offset + HEADER.size + 8 * units
        if offset % 8 or end > self.size:
            return None
        magic, checksum, kind, stored, cut, lost, stands, _ = HEADER.unpack_from(self._view, offset)
        if magic != MAGIC or stored != units or stands != digest:
            return None
        if xxh3_64_intdigest(self._view[offset + CHECKED : end]) != checksum:
            raise Damaged(f"{self.path}: the checksum of the record at byte {offset} is wrong")
        begin = offset + HEADER.size
        if kind == ERROR:
            return RowError(**json.loads(bytes(self._view[begin:end]).rstrip(b"\0")))
        at = begin // 4
        return EncodedSample(self._tokens[at : at + units], self._weights[at + units : at + 2 * units], cut, lost)

    def find(self, offset: int, digest: bytes) -> tuple[Outcome, int]:
        """The record that the index says is there, and its units. Raises Damaged."""
        if offset + HEADER.size <= self.size:
            *_, units, _, _, stands, rest = HEADER.unpack_from(self._view, offset)
            found = self.read(offset, units, stands) if (stands, rest) == (half(digest), digest[8:]) else None
            if found is not None:
                return found, units
        raise Damaged(f"{self.path}: the record at byte {offset} is not the one that its index names")

    def records(self) -> Iterator[tuple[int, int]]:
        """(digest, offset) of each whole record, up to the first that is torn or broken."""
        offset = 0
        while offset + HEADER.size <= self.size:
            *_, units, _, _, digest, _ = HEADER.unpack_from(self._view, offset)
            try:
                if self.read(offset, units, digest) is None:
                    return
            except Damaged:
                return
            yield digest, offset
            offset += HEADER.size + 8 * units


class ShardWriter:
    """A shard that this process appends to. The lock on it tells others that its writer lives."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError."""
        while True:
            self.id = secrets.randbits(32) or 1
            self.path = folder / f"{self.id:08x}.tokens"
            try:
                self._file = self.path.open("xb", buffering=1 << 20)
                break
            except FileExistsError:
                continue
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.size = 0
        self.offsets: dict[int, int] = {}

    def add(self, digest: bytes, outcome: Outcome) -> tuple[int, int]:
        """Offset and units of the new record. Raises OSError."""
        if isinstance(outcome, RowError):
            text = {key: getattr(outcome, key) for key in ("what", "reason", "where", "fix", "lost")}
            payload = json.dumps(text).encode()
            payload += b"\0" * (-len(payload) % 8)
            kind, units, cut, lost = ERROR, len(payload) // 8, 0, 0
        else:
            payload = outcome.tokens.astype("<i4").tobytes() + outcome.weights.astype("<f4").tobytes()
            kind, units, cut, lost = SAMPLE, len(outcome), outcome.cut, outcome.lost
        facts = (kind, units, cut, lost, half(digest), digest[8:])
        checked = HEADER.pack(MAGIC, 0, *facts)[CHECKED:] + payload
        offset = self.size
        self._file.write(HEADER.pack(MAGIC, xxh3_64_intdigest(checked), *facts)[:CHECKED] + checked)
        self.size += CHECKED + len(checked)
        self.offsets[half(digest)] = offset
        return offset, units

    def flush(self) -> None:
        self._file.flush()

    def seal(self) -> None:
        """Write the index; no record is added after that. Raises OSError."""
        self._file.flush()
        os.fsync(self._file.fileno())
        write_index(self.path, self.offsets)
        self._file.close()


@dataclass(frozen=True)
class ShardIndex:
    """Digests of a shard, sorted, and where their records begin."""

    entries: NDArray[np.void]

    @classmethod
    def read(cls, path: Path) -> "ShardIndex":
        """Raises OSError; Damaged: cut off or changed."""
        raw = path.read_bytes()
        if len(raw) < 8 or (len(raw) - 8) % INDEX_ENTRY.itemsize or xxh3_64_digest(raw[8:]) != raw[:8]:
            raise Damaged(f"{path}: the checksum is wrong")
        return cls(np.frombuffer(raw, INDEX_ENTRY, offset=8))

    def find(self, digests: NDArray[np.uint64]) -> NDArray[np.int64]:
        """int64[K] offsets of these digests, -1 for those that are not there."""
        if not len(self.entries):
            return np.full(len(digests), -1)
        places = np.minimum(np.searchsorted(self.entries["digest"], digests), len(self.entries) - 1)
        there = self.entries["digest"][places] == digests
        return np.where(there, self.entries["offset"][places].astype(np.int64), -1)


def write_index(shard: Path, offsets: dict[int, int]) -> None:
    """Raises OSError."""
    entries = np.array(sorted(offsets.items()), dtype=INDEX_ENTRY) if offsets else np.zeros(0, INDEX_ENTRY)
    raw = entries.tobytes()
    partial = shard.with_suffix(f".{os.getpid()}.partial")
    partial.write_bytes(xxh3_64_digest(raw) + raw)
    partial.replace(shard.with_suffix(".index"))


def recover(shard: Path) -> bool:
    """Index a shard whose writer was killed; False while its writer lives. Raises OSError."""
    with shard.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if not shard.with_suffix(".index").exists():
            write_index(shard, dict(ShardReader(shard).records()))
    return True
