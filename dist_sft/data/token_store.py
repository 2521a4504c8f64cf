"""Samples that were encoded once, for all epochs, restarts and runs: row bytes ─> EncodedSample | RowError.

    <folder>/<namespace>/            all that decides a sample, given its row's bytes, is in the namespace
        <id>.tokens, <id>.index      see `shards`
        <fingerprint>.rows           for one file of rows: where each row's record is, if it is known

What is found is the right sample, or nothing: a record carries the digest of its row and a checksum, and both are
looked at whenever it is read. So the row maps are mere hints. A shard with a wrong byte is removed, and only its rows
are encoded again. The store may vanish at any time, and a full disk switches it off: it can slow a run, not end it.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import struct
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_sft.core.files import beyond
from dist_sft.data.shards import HEADER, Damaged, Outcome, ShardIndex, ShardReader, ShardWriter, half, recover

SHARD = 64 << 20
"""Bytes after which a process begins a new shard."""
OPEN = 256
"""Shards that a store holds open at most."""
_SHARD = re.compile(r"[0-9a-f]{8}\.tokens")
HINT = np.dtype([("digest", "<u8"), ("offset", "<u8"), ("shard", "<u4"), ("units", "<u4")])


_HINT = struct.Struct("<QQII")


class Place(NamedTuple):
    """Where a record is. units: of 8 bytes, its payload."""

    shard: int
    offset: int
    units: int


class TokenStore:
    """One namespace of a folder. Not for several threads at once; for any number of processes.

    damaged  what was wrong with shards that this process has removed, and why it stopped writing, for a person
    """

    def __init__(self, folder: Path, namespace: str, limit: int) -> None:
        """limit: most bytes of shards in the whole folder; those used longest ago are removed."""
        self.root, self.namespace, self.limit = folder, namespace, limit
        self.folder = folder / namespace
        self.damaged: list[str] = []
        self._readers: OrderedDict[int, ShardReader | None] = OrderedDict()
        self._indexes: dict[int, ShardIndex] = {}
        self._writing: list[ShardWriter] = []  # none or one
        self._writable = True
        with self._giving_up():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._index_all()
        self._closing = weakref.finalize(self, _seal, self._writing)

    def __reduce__(self) -> tuple[object, ...]:
        return TokenStore, (self.root, self.namespace, self.limit)

    def rows(self, fingerprint: str, count: int) -> "RowMap":
        """The map of `count` rows with this fingerprint."""
        return RowMap(self, self.folder / f"{fingerprint[:32]}.rows", count)

    def close(self) -> None:
        """Seal what was written; nothing is written after that."""
        self._writable = False
        self._closing()

    def read(self, shard: int, offset: int, units: int, digest: int) -> Outcome | None:
        """The record that a hint names; None if it is not there."""
        reader = self._readers.get(shard)
        if reader is None or reader.size < offset + 8 * units:
            reader = self._reader(shard, offset + 8 * units)
        try:
            return reader.read(offset, units, digest) if reader else None
        except Damaged as error:
            self._remove(shard, str(error))
            return None

    def find(self, digests: Sequence[bytes]) -> list[tuple[Outcome, Place] | None]:
        """By content: what each row became, and where its record is."""
        halves = np.array([half(digest) for digest in digests], np.uint64)
        found: list[tuple[Outcome, Place] | None] = [None] * len(digests)
        for writer in self._writing:
            offsets = np.array([writer.offsets.get(half(digest), -1) for digest in digests], np.int64)
            self._collect(writer.id, offsets, digests, found)
        for shard, index in list(self._indexes.items()):
            self._collect(shard, index.find(halves), digests, found)
        return found

    def add(self, digest: bytes, outcome: Outcome) -> Place | None:
        """Where the new record is; None if the store cannot be written."""
        if not self._writable:
            return None
        with self._giving_up():
            if not self._writing:
                self._writing.append(ShardWriter(self.folder))
            writer = self._writing[0]
            place = Place(writer.id, *writer.add(digest, outcome))
            if writer.size >= SHARD:
                self._writing.clear()
                writer.seal()
                self._indexes[writer.id] = ShardIndex.read(writer.path.with_suffix(".index"))
                self._evict()
            return place
        return None

    def _collect(
        self,
        shard: int,
        offsets: NDArray[np.int64],
        digests: Sequence[bytes],
        found: list[tuple[Outcome, Place] | None],
    ) -> None:
        for i in np.flatnonzero(offsets >= 0).tolist():
            reader = self._reader(shard, int(offsets[i]) + HEADER.size) if found[i] is None else None
            if reader is None:
                continue
            try:
                outcome, units = reader.find(int(offsets[i]), digests[i])
            except Damaged as error:
                self._remove(shard, str(error))
                return
            found[i] = outcome, Place(shard, int(offsets[i]), units)

    def _reader(self, shard: int, upto: int) -> ShardReader | None:
        """A shard, opened at least so far if it is that long; None if it is gone."""
        reader = self._readers.get(shard)
        if shard in self._readers and (reader is None or reader.size >= upto):
            return reader
        with self._giving_up():
            for writer in self._writing:
                writer.flush()
        try:
            reader = ShardReader(self.folder / f"{shard:08x}.tokens")
        except (OSError, ValueError):
            reader = None
        self._readers[shard] = reader
        self._readers.move_to_end(shard)
        if sum(map(bool, self._readers.values())) > OPEN:  # each has its file open
            del self._readers[next(shard for shard, opened in self._readers.items() if opened)]
        return reader

    def _index_all(self) -> None:
        for path in sorted(path for path in self.folder.glob("*.tokens") if _is_shard(path)):
            shard, index = int(path.stem, 16), path.with_suffix(".index")
            try:
                if index.exists() or recover(path):
                    self._indexes[shard] = ShardIndex.read(index)
            except Damaged as error:
                self._remove(shard, str(error))
            except FileNotFoundError:  # evicted in between
                continue

    def _remove(self, shard: int, why: str) -> None:
        """A shard that cannot be trusted: its rows are encoded again, by whoever meets them."""
        self.damaged.append(why)
        self._readers[shard] = None
        self._indexes.pop(shard, None)
        self._writing[:] = [writer for writer in self._writing if writer.id != shard]
        with contextlib.suppress(OSError):
            for suffix in (".index", ".tokens"):
                (self.folder / f"{shard:08x}{suffix}").unlink(missing_ok=True)

    def _evict(self) -> None:
        """Remove the shards that were used longest ago, of any namespace, until the rest is within the limit."""
        with (self.root / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for path in beyond(filter(_is_shard, self.root.glob("*/*.tokens")), self.limit, _sealed):
                path.with_suffix(".index").unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                if path.parent == self.folder:
                    self._indexes.pop(int(path.stem, 16), None)

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        """After an error of the file system nothing is written any more."""
        try:
            yield
        except OSError as error:
            self._writable = False
            self._writing.clear()
            self.damaged.append(f"{self.folder}: {error.strerror or error}; samples are not kept from here on")


class RowMap:
    """Where the record of each row of a file is; hints that are right, or lead nowhere.

    The file is read and written by calls: where it is cut off, or the disk is full, a row is looked up by its content.
    """

    def __init__(self, store: TokenStore, path: Path, count: int) -> None:
        self.store = store
        self._file = -1
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            weakref.finalize(self, os.close, self._file)
            os.posix_fallocate(self._file, 0, max(1, count * HINT.itemsize))
        except (OSError, ValueError) as error:
            self._file = -1
            why = getattr(error, "strerror", None) or error
            store.damaged.append(f"{path}: {why}; rows are looked up by their content")

    def read(self, rows: Sequence[int]) -> list[Outcome | None]:
        """What these rows became, without a look at the rows; None for a row that is not known by its number."""
        read = self.store.read
        return [
            read(shard, offset, units, digest) if shard else None
            for digest, offset, shard, units in map(self._hint, rows)
        ]

    def _hint(self, row: int) -> tuple[int, int, int, int]:
        """digest, offset, shard and units; of zeros where there is none."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                found = os.pread(self._file, HINT.itemsize, HINT.itemsize * int(row))
                if len(found) == HINT.itemsize:
                    return _HINT.unpack(found)
        return 0, 0, 0, 0

    def find(self, rows: Sequence[int], digests: Sequence[bytes]) -> list[Outcome | None]:
        """What rows with this content became, wherever they were met before. digests: see `digest_of`."""
        found = self.store.find(digests)
        for row, digest, hit in zip(rows, digests, found, strict=True):
            if hit:
                self._remember(row, digest, hit[1])
        return [hit and hit[0] for hit in found]

    def add(self, rows: Sequence[int], digests: Sequence[bytes], outcomes: Sequence[Outcome]) -> None:
        """Keep what rows became."""
        places: dict[bytes, Place | None] = {}
        for row, digest, outcome in zip(rows, digests, outcomes, strict=True):
            if digest not in places:
                places[digest] = self.store.add(digest, outcome)
            if (place := places[digest]) is not None:
                self._remember(row, digest, place)

    def _remember(self, row: int, digest: bytes, place: Place) -> None:
        if self._file < 0:
            return
        hint = np.array((half(digest), place.offset, place.shard, place.units), HINT)
        with contextlib.suppress(OSError):  # a row without a hint is looked up
            os.pwrite(self._file, hint.tobytes(), HINT.itemsize * row)


def digest_of(content: bytes) -> bytes:
    """16 bytes that stand for a row's content."""
    return hashlib.blake2b(content, digest_size=16).digest()


def _is_shard(path: Path) -> bool:
    """Whether a file in a cache has the name of a shard: nothing else is read or removed."""
    return _SHARD.fullmatch(path.name) is not None


def _sealed(shard: Path) -> bool:
    """Whether its writer is done with it."""
    return shard.with_suffix(".index").exists()


def _seal(writing: list[ShardWriter]) -> None:
    with contextlib.suppress(OSError):
        while writing:
            writing.pop().seal()
