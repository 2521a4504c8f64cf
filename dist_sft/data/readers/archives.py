"""Archives of files of rows: zip and tar, the latter compressed or not. They are read as folders of the files in them.

name, bytes of an archive ─ members ─> name inside -> its bytes

A file in a plain tar lies there as it is, and is read in place, row by row. What is compressed is unpacked into memory,
as a compressed file is.
"""

import lzma
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import PurePosixPath

from dist_sft.core.errors import DataError
from dist_sft.data.readers.base import PIECE, File
from dist_sft.data.readers.content import Content, Memory, Part, opened
from dist_sft.data.readers.sound import most_unpacked
from dist_sft.data.readers.suffixes import TARS, decompressed, is_archive, suffixes

Members = dict[str, Callable[[], Content]]
"""By its name inside the archive, what reaches for the bytes of a file."""

_FAULTS = (
    *(tarfile.TarError, zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(OSError, EOFError, ValueError, OverflowError, IndexError, RuntimeError, NotImplementedError),
)
"""What Python's own readers raise for a damaged archive, for one with a password, and for what they do not know."""
_ENCRYPTED = 1
"""Of a zip entry's flags."""
_SAMPLES = (".json", ".txt")
"""How files end that hold one part of a sample, where the other parts lie beside them."""


def members(name: str, file_name: str, content: Content) -> Members:
    """The files of an archive but for hidden ones (. or _), in its order.

    Args:
        name: for errors.
        file_name: what its kind is told by; name may have more to it.
    Raises:
        DataError: damaged, with a password, with an archive in it, with a link to a file of rows, or with samples of
            several files.
    """
    with _whole(name):
        if file_name.lower().endswith(".zip"):
            found = list(_of_zip(name, content))
        else:
            found = list(_of_tar(name, _plain(File(name, content), file_name)))
    found = [(path, reach) for path, reach in found if not any(part[0] in "._" for part in path.split("/"))]
    names = [path for path, _ in found]
    _refuse_unclear(name, names)
    _refuse_parts(name, names)
    return dict(found)


def _refuse_parts(name: str, names: list[str]) -> None:
    """Raise DataError where samples have parts, as WebDataset writes them: 7.json beside 7.jpg."""
    beside: dict[str, list[str]] = {}
    for one in names:
        beside.setdefault(_key(one), []).append(one)
    kinds = {key: {PurePosixPath(one).suffix for one in together} for key, together in beside.items()}
    parts = [one for one in names if one.lower().endswith(_SAMPLES) and len(kinds[_key(one)]) > 1]
    if len({_key(one) for one in parts}) > 1:
        together = ", ".join(PurePosixPath(one).name for one in beside[_key(parts[0])])
        raise DataError(
            f"its samples have several files each ({together}), and a row is read from one",
            where=name,
            fix="write all that is to be learned of a sample into one JSON file, and nothing beside it",
        )


def _key(name: str) -> str:
    """What the files of one sample have in common: all up to the first dot of the file's name."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


def _of_zip(name: str, content: Content) -> Iterator[tuple[str, Callable[[], Content]]]:
    archive = zipfile.ZipFile(opened(content))  # kept open for what is unpacked later: its index is read once
    for info in archive.infolist():
        if not info.is_dir():
            yield _inside(info.filename), partial(_unzipped, name, archive, info)


def _unzipped(name: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Content:
    """Raises DataError. Its checksum is looked at."""
    where = f"{name}/{_inside(info.filename)}"
    if info.flag_bits & _ENCRYPTED:
        raise DataError("it has a password", where=where, fix="unpack the archive, and name its folder")
    if info.file_size > (most := most_unpacked(info.compress_size)):
        raise DataError(
            f"it unpacks to {info.file_size:,} bytes, more than {most:,}", where=where,
            fix="unpack the archive, and name its folder",
        )  # fmt: skip
    with _whole(where):
        return Memory(archive.read(info))


def _plain(file: File, file_name: str) -> Content:
    """A tar without its compression."""
    compression = next(TARS[end] for end in TARS if file_name.lower().endswith(end))
    return Memory(decompressed(file, compression)) if compression else file.data


def _of_tar(name: str, content: Content) -> Iterator[tuple[str, Callable[[], Content]]]:
    begin = -1
    with tarfile.open(fileobj=opened(content), mode="r:") as archive:
        for info in archive:
            if info.offset <= begin or info.size < 0:
                raise tarfile.ReadError("a header leads back")
            begin, path = info.offset, _inside(info.name)
            if info.islnk() or info.issym():
                _refuse_link(name, path, info.linkname)
            elif info.isreg() and info.sparse:
                raise DataError("a sparse file", where=f"{name}/{path}", fix="pack it again, without --sparse")
            elif info.isreg():
                yield path, partial(Part, content, info.offset_data, info.size)
        _refuse_rest(content, archive.offset)


def _refuse_link(name: str, path: str, to: str) -> None:
    if suffixes(path)[0]:
        raise DataError(
            f"a link to {to}: it holds no rows of its own", where=f"{name}/{path}",
            fix="pack the file itself: tar --dereference --hard-dereference; or unpack the archive, name its folder",
        )  # fmt: skip


def _refuse_rest(content: Content, end: int) -> None:
    """Behind its last file a tar has zeros and nothing else: else a header is broken, or a part of it is missing."""
    if end >= content.size:
        raise tarfile.ReadError("its end is missing")
    for at in range(end, content.size, PIECE):
        if bytes(content.read(at, min(at + PIECE, content.size))).strip(b"\0"):
            raise tarfile.ReadError(f"the header at byte {end} is broken, or another archive follows there")


def _inside(name: str) -> str:
    """A name without "./" before it."""
    return str(PurePosixPath(name.lstrip("/")))


def _refuse_unclear(name: str, names: list[str]) -> None:
    if twice := [path for path, count in Counter(names).items() if count > 1]:
        raise DataError(
            f"it holds {twice[0]} twice", where=name, fix="pack it again: which one is meant cannot be told"
        )
    for path in names:
        if is_archive(path):
            raise DataError(
                "an archive in an archive", where=f"{name}/{path}", fix="unpack the outer one, and name its folder"
            )


@contextmanager
def _whole(name: str) -> Iterator[None]:
    try:
        yield
    except _FAULTS as error:
        raise DataError(
            f"no whole archive: {error}", where=name, fix="write or copy it again; was it cut off?"
        ) from None
