"""Files of encoded samples: append-only, each record with a checksum.

A shard is <id>.tokens, written by one process, and <id>.index once that process is done with it.

A record is 48 bytes of header, then its payload in units of 8 bytes: int32 tokens and float32 weights of a sample, or
the text of an error. The checksum is looked at whenever a record is read, so that a byte which has changed on the disk
is never learned. Nobody changes a shard after it is written; eviction removes it whole. Records are read by calls, and
never mapped: where a file has been cut off, a page that is gone would end the process.
"""

import contextlib
import fcntl
import json
import os
import secrets
import struct
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_digest, xxh3_64_intdigest

from dist_sft.chat.conversation import EncodedSample
from dist_sft.core.errors import RowError
from dist_sft.core.files import atomic

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
    """One shard, as far as it reached when it was opened. The file stays open as long as this lives."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self.path = path
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        self.size = os.fstat(self._file).st_size
        with contextlib.suppress(OSError):  # of another user
            os.utime(self._file)  # the shard that was used longest ago is evicted first

    def read(self, offset: int, units: int, digest: int) -> Outcome | None:
        """The record at an offset; None if another one stands there. Raises Damaged: its checksum is wrong."""
        end = offset + HEADER.size + 8 * units
        if offset % 8 or end > self.size:
            return None
        record = self._bytes(offset, end)
        magic, checksum, kind, stored, cut, lost, stands, _ = HEADER.unpack_from(record)
        if magic != MAGIC or stored != units or stands != digest:
            return None
        if xxh3_64_intdigest(memoryview(record)[CHECKED:]) != checksum:
            raise Damaged(f"{self.path}: the checksum of the record at byte {offset} is wrong")
        if kind == ERROR:
            return RowError(**json.loads(record[HEADER.size :].rstrip(b"\0")))
        tokens = np.frombuffer(record, np.int32, units, HEADER.size)
        return EncodedSample(tokens, np.frombuffer(record, np.float32, units, HEADER.size + 4 * units), cut, lost)

    def _bytes(self, begin: int, end: int) -> bytes:
        """Raises Damaged: cut off since it was opened, or not readable."""
        try:
            found = os.pread(self._file, end - begin, begin)
        except OSError as error:
            raise Damaged(f"{self.path}: {error.strerror}") from None
        if len(found) < end - begin:
            raise Damaged(f"{self.path}: cut off at byte {begin + len(found)}")
        return found

    def find(self, offset: int, digest: bytes) -> tuple[Outcome, int]:
        """The record that the index says is there, and its units. Raises Damaged."""
        if offset + HEADER.size <= self.size:
            *_, units, _, _, stands, rest = HEADER.unpack(self._bytes(offset, offset + HEADER.size))
            found = self.read(offset, units, stands) if (stands, rest) == (half(digest), digest[8:]) else None
            if found is not None:
                return found, units
        raise Damaged(f"{self.path}: the record at byte {offset} is not the one that its index names")

    def records(self) -> Iterator[tuple[int, int]]:
        """(digest, offset) of each whole record, up to the first that is torn or broken."""
        offset = 0
        while offset + HEADER.size <= self.size:
            try:
                *_, units, _, _, digest, _ = HEADER.unpack(self._bytes(offset, offset + HEADER.size))
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
    with atomic(shard.with_suffix(".index")) as file:
        file.write(xxh3_64_digest(raw) + raw)


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
