"""Archives are read as folders of the files in them, row by row; what is not whole or not clear is refused."""

import bz2
import gzip
import http.server
import io
import json
import lzma
import pickle
import random
import tarfile
import threading
import zipfile
from functools import partial

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dist_sft.config.data import Source
from dist_sft.core.errors import DataError, RowError
from dist_sft.data.readers.content import Local, Part
from dist_sft.data.sources import open_source

ROWS = [{"prompt": f"p{i}\n", "completion": f"ç{i}"} for i in range(12)]


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parquet(rows):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
    return sink.getvalue()


def arrow(rows):
    sink, table = pa.BufferOutputStream(), pa.Table.from_pylist(rows)
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()


FILES = {
    "a-10.jsonl": jsonl(ROWS[8:]),
    "a-2.parquet": parquet(ROWS[4:8]),
    "a-1.jsonl.gz": gzip.compress(jsonl(ROWS[:2]), mtime=0),
    "./deep/.hidden.jsonl": b"{",
    "__MACOSX/a.jsonl": b"{",
    "a-1b.arrow": arrow(ROWS[2:4]),
    "README.md": b"no rows",
    "dataset_infos.json": b"{}",
}


def zipped(files=FILES, method=zipfile.ZIP_DEFLATED):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return sink.getvalue()


def tarred(files=FILES, format=tarfile.GNU_FORMAT):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=format) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return sink.getvalue()


def packed(codec):
    def pack(data):
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, codec) as file:
            file.write(data)
        return sink.getvalue().to_pybytes()

    return pack


KINDS = {
    "a.zip": zipped,
    "stored.ZIP": lambda files=FILES: zipped(files, zipfile.ZIP_STORED),
    "lzma.zip": lambda files=FILES: zipped(files, zipfile.ZIP_LZMA),
    "a.tar": tarred,
    "pax.tar": lambda files=FILES: tarred(files, tarfile.PAX_FORMAT),
    "a.tar.gz": lambda files=FILES: gzip.compress(tarred(files)),
    "a.tgz": lambda files=FILES: gzip.compress(tarred(files)),
    "a.tar.bz2": lambda files=FILES: bz2.compress(tarred(files)),
    "a.tar.xz": lambda files=FILES: lzma.compress(tarred(files)),
    "a.tar.zst": lambda files=FILES: packed("zstd")(tarred(files)),
    "a.tar.lz4": lambda files=FILES: packed("lz4")(tarred(files)),
}


def rows(path, **source):
    found = open_source(Source(path=str(path), **source))
    return [found[i] for i in range(len(found))]


def texts(path, **source):
    return [row["text"] for row in rows(path, **source)]


def refused(path, **source):
    with pytest.raises(DataError) as caught:
        open_source(Source(path=str(path), **source))
    return str(caught.value)


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", KINDS)
def test_an_archive_is_its_files_in_natural_order_with_rows_at_random(tmp_path, name):
    path = put(tmp_path / name, KINDS[name]())
    found = open_source(Source(path=str(path)), tmp_path / "cache")
    assert [found[i] for i in range(len(found))] == ROWS
    assert [found.where(i) for i in (0, 3, 8)] == [
        f"{path}/a-1.jsonl.gz:1", f"{path}/a-1b.arrow row 1", f"{path}/a-10.jsonl:1"
    ]  # fmt: skip
    again = pickle.loads(pickle.dumps(found))
    assert [row.parse() for row in again.read([11, 0, 5, 5])] == [ROWS[11], ROWS[0], ROWS[5], ROWS[5]]
    assert again.column("prompt") == [row["prompt"] for row in ROWS]


def test_an_archive_has_the_fingerprint_of_its_files_in_a_folder(tmp_path):
    for name, content in FILES.items():
        put(tmp_path / "folder" / name, content)
    fingerprints = {open_source(Source(path=str(tmp_path / "folder"))).fingerprint}
    for name, make in KINDS.items():
        fingerprints.add(open_source(Source(path=str(put(tmp_path / name, make())))).fingerprint)
    assert len(fingerprints) == 1
    other = put(tmp_path / "other.zip", zipped(FILES | {"a-10.jsonl": jsonl(ROWS[7:])}))
    assert open_source(Source(path=str(other))).fingerprint not in fingerprints


def test_a_plain_tar_is_read_where_it_lies_and_refused_once_it_has_changed(tmp_path):
    path = put(tmp_path / "a.tar", tarred({"b.jsonl": jsonl(ROWS * 2000), "a.jsonl": jsonl(ROWS)}))
    found = open_source(Source(path=str(path)))
    data = found.parts[1].file.data
    assert isinstance(data, Part) and isinstance(data.of, Local)
    size = len(pickle.dumps(found))
    assert size < 300_000 < path.stat().st_size / 3, "indexes of lines travel, and no line"
    path.write_bytes(path.read_bytes() + bytes(512))
    with pytest.raises(DataError, match="the file has changed since the run first saw it"):
        found[20_000]


def test_a_tar_of_a_json_file_for_each_sample_is_rows(tmp_path):
    """As WebDataset writes them."""
    chats = [{"messages": [{"role": "user", "content": f"q{i}"}]} for i in range(30)]
    path = put(tmp_path / "s.tar", tarred({f"{i:06d}.json": json.dumps(chat).encode() for i, chat in enumerate(chats)}))
    assert rows(path) == chats
    assert open_source(Source(path=str(path))).where(7) == f"{path}/000007.json[0]"
    parts = {f"{i:06d}.{kind}": b"{}" for i in range(3) for kind in ("jpg", "json")}
    assert refused(put(tmp_path / "image.tar", tarred(parts))) == (
        f"{tmp_path}/image.tar: its samples have several files each (000000.jpg, 000000.json), and a row is read from "
        "one\n  fix: write all that is to be learned of a sample into one JSON file, and nothing beside it"
    )
    texts = {f"{i}.{kind}": b"x" for i in range(3) for kind in ("txt", "json")}
    assert "several files each (0.txt, 0.json)" in refused(put(tmp_path / "text.zip", zipped(texts)))
    shards = {f"{kind}.{i}.json": b'[{"text": "x"}]' for kind in ("some", "more") for i in range(3)}
    assert len(rows(put(tmp_path / "shards.zip", zipped(shards)))) == 6


def text(name, count=1):
    return jsonl([{"text": f"{name} {i}"} for i in range(count)])


def test_files_in_an_archive_are_of_splits_as_in_a_folder(tmp_path):
    path = put(tmp_path / "all.zip", zipped({"data/train-0.jsonl": text("train", 2), "data/test.jsonl": text("test")}))
    assert texts(path) == ["train 0", "train 1"] and texts(path, split="test") == ["test 0"]
    assert refused(path, split="dev") == f"{path}: no split 'dev'\n  fix: set split to test or train"
    more = put(tmp_path / "more.zip", zipped({"train.jsonl": text("a"), "test.jsonl": text("b"), "c.jsonl": text("c")}))
    assert "c.jsonl belongs to no split, and others do" in refused(more)
    card = b"---\nconfigs:\n- config_name: x\n  data_files:\n  - {split: test, path: 'c*'}\n---\n"
    carded = put(tmp_path / "test.zip", zipped({"README.md": card, "c.jsonl": text("c"), "d.jsonl": text("d")}))
    assert texts(carded, split="test") == texts(carded, split="test", subset="x") == ["c 0"]
    assert "no subset 'y'" in refused(carded, subset="y")


def test_an_archive_may_say_by_its_own_name_what_split_it_is(tmp_path):
    for name in ("train", "test", "dev"):
        put(tmp_path / "folder" / f"{name}.tar", tarred({"b.jsonl": text(name), "a.jsonl": text(name)}))
    assert texts(tmp_path / "folder") == ["train 0"] * 2 and texts(tmp_path / "folder", split="test") == ["test 0"] * 2
    assert refused(tmp_path / "folder", split="x").endswith("set split to test or train or validation")
    assert texts(tmp_path / "folder" / "test.tar", split="test") == ["test 0"] * 2
    assert texts(tmp_path / "folder" / "test.tar") == ["test 0"] * 2, "it was named"
    assert "no split 'test': no name of a file says" in refused(tmp_path / "folder" / "dev.tar", split="test")


def test_archives_lie_beside_other_files_and_shards_beside_each_other(tmp_path):
    put(tmp_path / "mixed" / "c.zip", zipped({"train.jsonl": text("zip"), "test.jsonl": text("no")}))
    put(tmp_path / "mixed" / "a" / "train.jsonl", text("plain"))
    assert texts(tmp_path / "mixed") == ["plain 0", "zip 0"]
    for number in (10, 9):
        put(tmp_path / f"shard-{number}.tar", tarred({"0.jsonl": text(number), "1.jsonl": text(number)}))
    assert texts(tmp_path / "shard-*.tar") == ["9 0", "9 0", "10 0", "10 0"]


@pytest.mark.parametrize("unpacked", ["train.jsonl", "data/train.jsonl"])
def test_an_archive_beside_what_was_unpacked_from_it_is_a_question(tmp_path, unpacked):
    """Else a folder into which somebody has unpacked its download would be read twice."""
    for name in ("data.zip", "train/data.tar.gz"):
        folder = tmp_path / name.replace(".", "_")
        archive = put(folder / name, KINDS["a.tar.gz" if "tar" in name else "a.zip"]({"train.jsonl": text("a")}))
        file = put(archive.parent / unpacked, text("a"))
        said = f"{file}: {archive} holds it, too: its rows would be read twice\n  fix: remove the archive"
        assert said in refused(folder)
    assert texts(tmp_path / "data_zip" / "*.zip") == texts(tmp_path / "data_zip" / unpacked) == ["a 0"]


def test_a_dataset_card_may_name_archives(tmp_path):
    card = b"---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: 'data/*.zip'}\n---\n"
    put(tmp_path / "README.md", card)
    put(tmp_path / "data" / "x.zip", zipped({"a.jsonl": text("a"), "dataset_infos.json": b"{}"}))
    put(tmp_path / "left.zip", zipped({"b.jsonl": text("b")}))
    assert texts(tmp_path) == ["a 0"]


def test_archives_behind_a_url_are_read_as_those_of_this_machine():
    fs = fsspec.filesystem("memory")
    for name, make in KINDS.items():
        fs.pipe(f"/archives/{name}/{name}", make())
        assert rows(f"memory://archives/{name}/{name}") == ROWS, name
    fs.pipe("/shards/train-1.tar", tarred({"a.jsonl": text("one")}))
    fs.pipe("/shards/test-1.tar", tarred({"a.jsonl": text("test")}))
    assert texts("memory://shards") == texts("memory://shards/train*") == ["one 0"]
    found = open_source(Source(path="memory://shards"))
    assert found.where(0) == "memory://shards/train-1.tar/a.jsonl:1"
    assert pickle.loads(pickle.dumps(found))[0] == {"text": "one 0"}


class Server(http.server.SimpleHTTPRequestHandler):
    """One that knows no ranges."""

    def log_message(self, *args):
        return


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz"])
def test_an_archive_of_a_web_server_is_known_by_its_name_and_shows_no_secret(tmp_path, name):
    put(tmp_path / name, KINDS[name]({"a.jsonl": text("a")}))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            found = open_source(Source(path=f"http://127.0.0.1:{server.server_port}/{name}?token=hush"))
            assert found[0] == {"text": "a 0"}
        finally:
            server.shutdown()
    assert found.where(0) == f"http://127.0.0.1:{server.server_port}/{name}?token=<hidden>/a.jsonl:1"


def with_password():
    """zipfile cannot write one: the flag is set in both headers of the entry."""
    data = bytearray(zipped({"a.jsonl": text("a")}))
    for signature, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(signature) + at] |= 1
    return bytes(data)


def linked(kind):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        info = tarfile.TarInfo("b.jsonl")
        info.type, info.linkname = kind, "a.jsonl"
        archive.addfile(info)
    return sink.getvalue()


def leading_back():
    """A tar whose second file has a size below 0, so that the header behind it would be its own again."""
    info = tarfile.TarInfo("b.jsonl")
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head[124:136] = (2**96 - 512).to_bytes(12, "big")
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return tarred({"a.jsonl": text("a")})[:1024] + bytes(head) + bytes(1024)


ONE = tarred({"a.jsonl": text("a"), "b.jsonl": text("b")})
REFUSED = {
    "password": ("a.zip", with_password(), "a.zip/a.jsonl: it has a password\n  fix: unpack the archive"),
    "nested": ("a.zip", zipped({"a.jsonl": text("a"), "in.tar.gz": b""}), "a.zip/in.tar.gz: an archive in an archive"),
    "hard link": ("a.tar", linked(tarfile.LNKTYPE), "a.tar/b.jsonl: a link to a.jsonl: it holds no rows of its own"),
    "soft link": ("a.tar", linked(tarfile.SYMTYPE), "a.tar/b.jsonl: a link to a.jsonl: it holds no rows of its own"),
    "no rows": ("a.zip", zipped({"a.jpg": b""}), "a.zip: an archive without data files; it holds a.jpg\n  fix: use "),
    "empty": ("a.tar", tarred({}), "a.tar: an archive without data files; it holds nothing"),
    "no zip": ("a.zip", b"PK", "a.zip: no whole archive: File is not a zip file"),
    "no tar": ("a.tar", b"x" * 2000, "a.tar: no whole archive: "),
    "no gzip": ("a.tar.gz", gzip.compress(ONE)[:-9], "a.tar.gz: no whole .gz file: "),
    "cut off in a file": ("a.tar", ONE[:1540], "a.tar: no whole archive: unexpected end of data"),
    "cut off after a file": ("a.tar", ONE[:1024], "a.tar: no whole archive: its end is missing"),
    "cut off in a header": ("a.tar", ONE[:1300], "a.tar: no whole archive: "),
    "a broken header": (
        "a.tar", ONE[:1030] + b"!" + ONE[1031:], "a.tar: no whole archive: the header at byte 1024 is broken"),
    "leading back": ("a.tar", leading_back(), "a.tar: no whole archive: "),
    "joined": ("a.tar", ONE + ONE, "is broken, or another archive follows there"),
    "twice": ("a.tar", tarred({"a.jsonl": text("a"), "./a.jsonl": text("b")}), "a.tar: it holds a.jsonl twice"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_an_archive_that_is_not_whole_or_not_clear_is_refused(tmp_path, what):
    name, content, said = REFUSED[what]
    message = refused(put(tmp_path / name, content))
    assert said in message and "\n  fix: " in message, message


def test_a_wrong_byte_in_a_zip_is_found_by_its_checksum(tmp_path):
    stored = bytearray(zipped({"a.jsonl": text("a")}, zipfile.ZIP_STORED))
    stored[stored.index(b"a 0")] ^= 1
    assert refused(put(tmp_path / "a.zip", stored)).startswith(
        f"{tmp_path}/a.zip/a.jsonl: no whole archive: Bad CRC-32"
    )


def test_what_is_not_read_is_told_with_all_that_is(tmp_path):
    message = refused(put(tmp_path / "a.rar", b""))
    for word in (".jsonl", ".parquet", ".txt", ".gz", ".zst", ".lz4", ".zip", ".tar"):
        assert f"{word}" in message.partition("fix: ")[2]


@pytest.mark.parametrize("name", ["a.zip", "stored.ZIP", "a.tar", "pax.tar", "a.tgz"])
def test_a_damaged_archive_is_rows_or_our_error(tmp_path, name):
    files, dice = {"a.jsonl": text("a", 20), "b.csv": b"text\nb\n", "c.json": b'[{"text": "c"}]'}, random.Random(0)
    whole, seen = KINDS[name](files), set()
    for _ in range(120):
        data = bytearray(whole)
        for _ in range(dice.choice((1, 1, 3, 20))):
            data[dice.randrange(len(data))] = dice.randrange(256)
        if dice.random() < 0.3:
            del data[dice.randrange(len(data)) :]
        path = put(tmp_path / name, bytes(data))
        try:
            found = open_source(Source(path=str(path)))
            seen.update(type(row) for row in found.read(range(len(found))))
        except (DataError, RowError) as error:
            seen.add(type(error))
    assert DataError in seen
