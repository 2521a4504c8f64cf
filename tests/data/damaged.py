"""Files of rows that are damaged in a given way, and what reading them comes to, in a process that it may kill.

    python -m tests.data.damaged FOLDER KIND FIRST LAST

reads damaged files FIRST to LAST - 1 of a kind, and writes a line for each to FOLDER/KIND.log: first its number, and
once it is read what came of it. A number without an outcome is the file on which the process died.
"""

import bz2
import faulthandler
import gzip
import io
import json
import lzma
import os
import pickle
import random
import resource
import signal
import struct
import sys
import tarfile
import zipfile
from functools import cache
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from dist_sft.config.data import Source
from dist_sft.core.errors import DataError, RowError
from dist_sft.data.sources import open_source

MOST_MEMORY = 4 << 30
"""Bytes of address space that a reader gets on top of what Python and Arrow take."""
MOST_SECONDS = 30
"""For one file."""

CALL = {"type": "function", "function": {"name": "f", "arguments": {"city": "Oslo", "days": 3}}}
ROWS = [
    {"prompt": f"q{i} " * (i % 7), "completion": f"Ålesund {i}" if i % 5 else None, "score": i / 3, "id": i,
     "good": i % 2 == 0, "turns": [{"role": "user", "content": f"t{k}"} for k in range(i % 4)], "call": CALL,
     "kind": ("a", "b", "c")[i % 3]}
    for i in range(60)
]  # fmt: skip
FLAT = [{key: row[key] for key in ("prompt", "completion", "score", "id")} for row in ROWS]


def table():
    """Rows of many types: text, numbers, flags, lists of objects, objects, a dictionary, views, and JSON."""
    made = pa.Table.from_pylist(ROWS)
    made = made.set_column(7, "kind", made["kind"].dictionary_encode())
    made = made.append_column("view", made["prompt"].cast(pa.string_view()))
    made = made.append_column("large", made["prompt"].cast(pa.large_string()))
    made = made.append_column("day", pa.array(range(len(ROWS)), pa.int32()).cast(pa.date32()))
    return made.append_column("map", pa.array([[("k", i)] for i in range(len(ROWS))], pa.map_(pa.string(), pa.int64())))


def arrow(stream=False, compression=None):
    sink, options = pa.BufferOutputStream(), pa.ipc.IpcWriteOptions(compression=compression)
    made = table()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, made.schema, options=options) as writer:
        writer.write_table(made, max_chunksize=25)
    return sink.getvalue().to_pybytes()


def parquet(**options):
    sink = io.BytesIO()
    pq.write_table(table().drop_columns(["view"]), sink, row_group_size=25, **options)
    return sink.getvalue()


def jsonl():
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def separated(by):
    lines = [by.join(FLAT[0]), *(by.join(f'"{value}"' for value in row.values()) for row in FLAT)]
    return "\n".join(lines).encode()


def zipped(method=zipfile.ZIP_DEFLATED):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as archive:
        archive.writestr("a.jsonl", jsonl())
        archive.writestr("b.arrow", arrow())
    return sink.getvalue()


def tarred():
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, data in (("a.jsonl", jsonl()), ("b.arrow", arrow()), ("c.parquet", parquet())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def packed(codec):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as file:
        file.write(jsonl())
    return sink.getvalue().to_pybytes()


KINDS = {
    "a.arrow": arrow, "stream.arrow": lambda: arrow(stream=True), "lz4.arrow": lambda: arrow(compression="lz4"),
    "zstd.arrow": lambda: arrow(stream=True, compression="zstd"), "a.parquet": parquet,
    "zstd.parquet": lambda: parquet(compression="zstd", use_dictionary=False, data_page_version="2.0"),
    "a.jsonl": jsonl, "a.jsonl.gz": lambda: gzip.compress(jsonl(), mtime=0), "a.jsonl.zst": lambda: packed("zstd"),
    "a.jsonl.lz4": lambda: packed("lz4"), "a.jsonl.xz": lambda: lzma.compress(jsonl()),
    "a.jsonl.bz2": lambda: bz2.compress(jsonl()), "a.zip": zipped, "a.tar": tarred,
    "a.tar.gz": lambda: gzip.compress(tarred(), mtime=0), "a.csv": lambda: separated(","),
    "a.tsv": lambda: separated("\t"), "a.json": lambda: json.dumps(ROWS).encode(),
}  # fmt: skip
"""The bytes of a whole file, by its name."""
SAVED = "saved"
"""A folder of `datasets.save_to_disk`, of which any file is damaged."""

NUMBERS = (0, 1, -1, 127, 255, 1 << 15, (1 << 31) - 1, -(1 << 31), 1 << 31, 1 << 40, (1 << 62) + 8, (1 << 63) - 1)


@cache
def whole(kind):
    return KINDS[kind]()


def damage(data, dice):
    """The bytes with one or several wounds."""
    data = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        if data:
            dice.choice((cut, flip, flip, overwrite, blank, swap, forge, forge, forge_end))(data, dice)
    return bytes(data)


def cut(data, dice):
    if dice.random() < 0.3:
        del data[max(0, len(data) - dice.randint(1, 40)) :]
    else:
        del data[dice.randrange(len(data)) :]


def flip(data, dice):
    for _ in range(dice.choice((1, 1, 8, 64))):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)


def overwrite(data, dice):
    at = dice.randrange(len(data))
    data[at : at + dice.choice((1, 4, 16, 200))] = dice.randbytes(dice.choice((1, 4, 16, 200)))


def blank(data, dice):
    at, size = dice.randrange(len(data)), dice.choice((8, 64, 512, 4096))
    end = min(len(data), at + size)
    data[at:end] = bytes([dice.choice((0, 0, 255))]) * (end - at)


def swap(data, dice):
    size = dice.choice((8, 64, 512))
    one, other = dice.randrange(len(data)) // 8 * 8, dice.randrange(len(data)) // 8 * 8
    if abs(one - other) >= size and max(one, other) + size <= len(data):
        data[one : one + size], data[other : other + size] = data[other : other + size], data[one : one + size]


def forge(data, dice, first=0):
    """A number of a header, aligned as most are, that is as large, as small or as odd as can be."""
    form = dice.choice(("<i", "<q", "<q", "<h", ">I"))
    size = struct.calcsize(form)
    places = (len(data) - first) // 4
    at = first + dice.randrange(places) * 4 if places > 2 else first
    if at + size > len(data):
        return
    (now,) = struct.unpack_from(form, data, at)
    value = dice.choice((*NUMBERS, now + 1, now - 1, now + 8, now * 2, -now, len(data), len(data) + 1))
    data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little" if form[0] == "<" else "big")


def forge_end(data, dice):
    """In the footer, where tables have their index."""
    if dice.random() < 0.5:
        forge(data, dice, max(0, len(data) - 1500))
    else:
        at = max(0, len(data) - dice.randrange(1, 1500))
        data[at] = dice.choice((0, 1, 127, 128, 255, dice.randrange(256)))


def put(folder, kind, number):
    """Write damaged file `number` of a kind. Returns its path."""
    dice = random.Random(f"{kind} {number}")
    if kind != SAVED:
        path = folder / kind
        path.write_bytes(damage(whole(kind), dice))
        return path
    path = folder / SAVED
    if not path.exists():
        datasets.Dataset.from_list(ROWS).save_to_disk(str(path), num_shards=2)
        (folder / "files").mkdir()
        for file in path.iterdir():
            (folder / "files" / file.name).write_bytes(file.read_bytes())
    files = sorted((folder / "files").iterdir())
    for file in files:
        (path / file.name).write_bytes(file.read_bytes())
    hurt = dice.choice(files)
    (path / hurt.name).write_bytes(damage(hurt.read_bytes(), dice))
    return path


def read(path, cache=None):
    """All that a run reads of a source. "rows", or the name of the error of ours that came of it."""
    try:
        source = open_source(Source(path=str(path)), cache)
        for found in (source, pickle.loads(pickle.dumps(source))):
            numbers = range(min(len(found), 500))
            for row in (*found.read(numbers), *found.read(range(max(0, len(found) - 3), len(found)))):
                if not isinstance(row, RowError):
                    try:
                        assert isinstance(row.parse(), dict)
                    except RowError:
                        continue
        source.column("prompt")
        source.where(0)
    except (DataError, RowError) as error:
        assert str(error).isprintable() or "\n" in str(error)
        return type(error).__name__
    return "rows"


def main(folder, kind, first, last):
    faulthandler.enable()
    folder = Path(folder)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, used + MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with (folder / f"{kind}.log").open("a") as log:
        for number in range(int(first), int(last)):
            log.write(f"\n{number} ")
            log.flush()
            path = put(folder, kind, number)
            signal.alarm(MOST_SECONDS)
            try:
                outcome = read(path)
            except BaseException as error:
                outcome = f"FAULT {type(error).__module__}.{type(error).__name__}: {str(error)[:200]!r}"
                if os.environ.get("TRACE"):
                    raise
            signal.alarm(0)
            log.write(outcome)
            log.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
