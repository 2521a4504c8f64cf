"""The bytes of a file on this machine, in a store, or in memory. Random access; what was not asked for is not held.

What is unpickled on another node opens the file there, and refuses one with another size or date. But for what had to
be unpacked, which travels as it is, they pickle small.
"""

import io
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import fsspec

from dist_sft.core.errors import DataError, MissingExtra, plainly
from dist_sft.core.redact import redact_urls, redact_value

Buffer = memoryview
"""uint8[bytes of the file]"""

STRONG = ("ETag", "etag", "md5", "md5Hash", "content_md5", "Content-MD5", "crc32c")
WEAK = ("generation", "LastModified", "Last-Modified", "last_modified", "updated", "mtime", "created", "modified")
"""Keys under which a store says that a file's content, or its date, has changed."""

RACY = 2.0
"""Seconds: a file may be written again within the resolution of its date, so a younger one is not trusted by it."""


class Content(Protocol):
    """Bytes of a file.

    size      bytes
    identity  of the file and its content, on this machine; None where that cannot be told
    settled   False: it was written so lately that its date may not tell another write
    digest    of the content, as the store itself keeps it; None where it keeps none
    """

    @property
    def size(self) -> int: ...

    @property
    def identity(self) -> str | None: ...

    @property
    def settled(self) -> bool: ...

    @property
    def digest(self) -> str | None: ...

    def check(self) -> None:
        """Raises DataError: the file is not the one that the run first saw."""
        ...

    def whole(self) -> Buffer:
        """A copy of all bytes."""
        ...

    def read(self, begin: int, end: int) -> Buffer: ...

    def ranges(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Many pieces, from a store in one go."""
        ...

    def open(self) -> Any:
        """A seekable binary file, or a path, for libraries that read by themselves."""
        ...


@dataclass
class Local:
    """A file on this machine, as it was when the run first saw it. mtime: nanoseconds; a copy of it elsewhere keeps it.

    Its size and date are looked at whenever rows are read, so that rows of a file that is edited under a run are never
    learned, nor kept as those of the file that it was.
    """

    path: Path
    size: int
    mtime: int
    identity: str
    digest: None = None
    _file: io.FileIO | None = field(default=None, repr=False)

    @classmethod
    def of(cls, path: Path) -> "Local":
        """Raises OSError."""
        stat = path.stat()
        identity = f"{stat.st_dev}:{stat.st_ino}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
        return cls(path.absolute(), stat.st_size, stat.st_mtime_ns, identity)

    @property
    def settled(self) -> bool:
        return time.time() - self.mtime / 1e9 > RACY

    def check(self) -> None:
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            raise _changed(str(self.path)) from None
        if (stat.st_size, stat.st_mtime_ns) != (self.size, self.mtime):
            raise _changed(str(self.path))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def whole(self) -> Buffer:
        """Raises OSError; DataError: the file is not the one that the run began with."""
        self.check()
        return self.read(0, self.size)

    def read(self, begin: int, end: int) -> Buffer:
        """By a call: a page that is touched for the first time in a mapping costs ten times as much, and one that is
        gone ends the process."""
        data = self._read(begin, end)
        if len(data) == end - begin:
            return memoryview(data)
        rest = bytearray(data)  # a call gives at most 2 GiB
        while len(rest) < end - begin:
            data = self._read(begin + len(rest), end)
            if not data:
                raise _changed(str(self.path))
            rest += data
        return memoryview(rest).toreadonly()

    def _read(self, begin: int, end: int) -> bytes:
        return os.pread(self._opened().fileno(), end - begin, begin)

    def _opened(self) -> io.FileIO:
        if self._file is None:
            self._file = io.FileIO(self.path)
        return self._file

    def ranges(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        found = [bytes(self.read(begin, end)) for begin, end in spans]
        self.check()
        return found

    def open(self) -> Any:
        self.check()
        return str(self.path)


@dataclass
class Remote:
    """A file that fsspec reaches. name: within its file system. shown: without secrets."""

    url: str
    name: str
    shown: str
    info: dict[str, Any] | None = None
    _whole: memoryview | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.info is None:
            found = self._call(lambda fs: fs.info(self.name))
            self.info = {key: str(found[key]) for key in (*STRONG, *WEAK, "size") if found.get(key) is not None}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_whole": None}

    @property
    def size(self) -> int:
        """A store that does not tell the size of a file gives it whole."""
        assert self.info is not None
        return int(self.info["size"]) if "size" in self.info else len(self.whole())

    @property
    def identity(self) -> str | None:
        assert self.info is not None
        known = [f"{key}={self.info[key]}" for key in (*STRONG, *WEAK) if key in self.info]
        return ",".join(known) or None

    @property
    def settled(self) -> bool:
        """A store's tag tells each write, its date only one a second."""
        return self.digest is not None

    def check(self) -> None:
        if self.identity is not None:
            now = Remote(self.url, self.name, self.shown)
            if (now.identity, now.info) != (self.identity, self.info):
                raise _changed(self.shown)

    @property
    def digest(self) -> str | None:
        assert self.info is not None
        return next((self.info[key] for key in STRONG if key in self.info), None)

    def whole(self) -> Buffer:
        if self._whole is None:
            self._whole = memoryview(self._call(lambda fs: fs.cat_file(self.name)))
        return self._whole

    def read(self, begin: int, end: int) -> Buffer:
        return memoryview(self.ranges([(begin, end)])[0])

    def ranges(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        if self._whole is not None or not self.info or "size" not in self.info:
            return [bytes(self.whole()[begin:end]) for begin, end in spans]
        self.check()
        begins, ends = [begin for begin, _ in spans], [end for _, end in spans]
        pieces: list[bytes] = self._call(
            lambda fs: fs.cat_ranges([self.name] * len(spans), begins, ends, on_error="raise")
        )
        if all(len(piece) == end - begin for piece, (begin, end) in zip(pieces, spans, strict=True)):
            return pieces
        if len(pieces[0]) != self.size:
            raise _changed(self.shown)
        self._whole = memoryview(pieces[0])  # a web server that knows no ranges gives the whole file
        return self.ranges(spans)

    def open(self) -> Any:
        return self._call(lambda fs: fs.open(self.name, "rb"))

    def _call(self, call: Any) -> Any:
        return reached(self.url, lambda: call(fsspec.core.url_to_fs(self.url)[0]))


@dataclass
class Memory:
    """Bytes that had to be unpacked."""

    data: bytes
    identity: None = None
    settled: bool = True
    digest: None = None

    def check(self) -> None:
        """Nobody else has it."""

    @property
    def size(self) -> int:
        return len(self.data)

    def whole(self) -> Buffer:
        return memoryview(self.data)

    def read(self, begin: int, end: int) -> Buffer:
        return self.whole()[begin:end]

    def ranges(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        return [self.data[begin:end] for begin, end in spans]

    def open(self) -> Any:
        return io.BytesIO(self.data)


@dataclass
class Part:
    """Bytes [begin, begin + size) of another content: a file that lies in an archive as it is."""

    of: Content
    begin: int
    size: int

    @property
    def identity(self) -> str | None:
        return self._here(self.of.identity)

    @property
    def settled(self) -> bool:
        return self.of.settled

    @property
    def digest(self) -> str | None:
        return self._here(self.of.digest)

    def check(self) -> None:
        self.of.check()

    def whole(self) -> Buffer:
        return self.read(0, self.size)

    def read(self, begin: int, end: int) -> Buffer:
        return self.of.read(self.begin + begin, self.begin + end)

    def ranges(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        return self.of.ranges([(self.begin + begin, self.begin + end) for begin, end in spans])

    def open(self) -> Any:
        return opened(self)

    def _here(self, known: str | None) -> str | None:
        return None if known is None else f"{known} {self.begin}+{self.size}"


def is_local(content: Content) -> bool:
    """Whether the bytes lie in a file on this machine."""
    return is_local(content.of) if isinstance(content, Part) else isinstance(content, Local)


def opened(content: Content) -> io.BufferedReader:
    """A seekable binary file over any content, which is read as far as it is asked for."""
    return io.BufferedReader(_Reading(content), AHEAD)


AHEAD = 1 << 20
"""Bytes that are read at once by who looks for something in a file."""


class _Reading(io.RawIOBase):
    def __init__(self, content: Content) -> None:
        self.content, self.at = content, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.content.size}[whence]
        if self.at < 0:
            raise OSError(f"there is no byte {self.at}")
        return self.at

    def readinto(self, buffer: Any) -> int:
        data = self.content.read(self.at, min(self.at + len(buffer), self.content.size)) if self._left else b""
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)

    @property
    def _left(self) -> bool:
        return self.at < self.content.size


def reached(url: str, call: Any) -> Any:
    """What a file system answers. Its faults are of any type, for each store has its own.

    Raises:
        DataError, MissingExtra
    """
    shown = redact_value(url)
    try:
        return call()
    except FileNotFoundError as error:
        cause = error.__cause__  # fsspec says "not found" of any error of a web server
        if cause is not None and getattr(cause, "status", 404) != 404:
            raise _unreadable(shown, cause) from None
        raise DataError("no such file", where=shown, fix="check the URL") from None
    except ImportError as error:
        raise MissingExtra(f"no file system for this URL: {error}", where=shown, fix="install what it names") from None
    except Exception as error:  # noqa: BLE001  # whatever it is, it must name the URL
        raise _unreadable(shown, error) from None


def _unreadable(shown: str, error: BaseException) -> DataError:
    what = f"cannot be read: {type(error).__name__}: {plainly(redact_urls(str(error)))}"
    return DataError(what, where=shown, fix="check the URL, the network and the credentials")


def _changed(where: str) -> DataError:
    return DataError(
        "the file has changed since the run first saw it, or is another one on this node",
        where=where,
        fix="bring the file back, or start a new run; every node must see the same files",
    )
