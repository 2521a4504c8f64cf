"""Damaged files are rows or our error, in bounded memory and time, and never the end of the process."""

import gzip
import os
import subprocess
import sys
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dist_sft.config.data import Source
from dist_sft.core.errors import DataError
from dist_sft.data.readers import sound
from dist_sft.data.sources import open_source
from tests.data.damaged import KINDS, SAVED, arrow, jsonl, put, table

EACH, EACH_SOAKED = 20, 300


def outcomes(folder, kind, count):
    """What came of each damaged file of a kind; "died" where the process that read it did."""
    found, died, log = {}, {}, folder / f"{kind}.log"
    while len(found) < count:
        command = [sys.executable, "-m", "tests.data.damaged", str(folder), kind, str(len(found)), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        lines = [line.split(" ", 1) for line in log.read_text().splitlines() if line] if log.exists() else []
        assert len(lines) > len(found), done.stderr
        found = {int(number): outcome for number, outcome in lines}
        if not found[len(found) - 1]:
            died[len(found) - 1] = f"died of {done.returncode}"
    return found | died


@pytest.mark.parametrize("kind", [*KINDS, SAVED])
def test_a_damaged_file_is_rows_or_our_error(tmp_path, request, kind):
    count = EACH_SOAKED if request.config.getoption("--soak") else EACH
    found = outcomes(tmp_path, kind, count)
    assert set(range(count)) == set(found)
    assert not {number: came for number, came in found.items() if came not in ("rows", "DataError", "RowError")}
    assert kind == "a.jsonl" or "DataError" in found.values()


def test_the_death_of_a_reader_is_found_with_the_file_that_killed_it(tmp_path, monkeypatch):
    hook = tmp_path / "sitecustomize.py"  # without the look at what Arrow made of a file
    hook.write_text("import dist_sft.data.readers.sound as sound\nsound.refuse_unsound = lambda table: None\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    found = outcomes(tmp_path, "a.arrow", 20)
    assert "died of -11" in found.values() and "DataError" in found.values() and len(found) == 20


@pytest.mark.parametrize("stream", [False, True])
def test_an_arrow_file_that_is_cut_off_under_a_run_is_our_error(tmp_path, stream):
    path = tmp_path / "a.arrow"
    path.write_bytes(arrow(stream))
    source = open_source(Source(path=str(path)))
    assert source[3]["prompt"]
    with path.open("r+b") as file:
        file.truncate(100)
    for read in (lambda: source[40], lambda: source.read([50]), lambda: source.column("prompt")):
        with pytest.raises(DataError, match="has changed since"):
            read()


CUT = """
import os, sys
from dist_sft.config.data import Source
from dist_sft.data.readers.content import Local
from dist_sft.data.sources import open_source

source = open_source(Source(path=sys.argv[1]))
check = Local.check
def cut(content):  # at the worst moment: when it has been looked at
    check(content)
    os.truncate(content.path, 100)
Local.check = cut
for read in (lambda: source[40], lambda: source.read([50]), lambda: source.column("prompt")):
    try:
        print(read())
    except Exception as error:
        print(type(error).__name__)
"""


@pytest.mark.parametrize("stream", [False, True])
def test_an_arrow_file_may_be_cut_off_at_any_moment(tmp_path, stream):
    path = tmp_path / "a.arrow"
    path.write_bytes(arrow(stream))
    done = subprocess.run([sys.executable, "-c", CUT, path], capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stdout.split()) == (0, ["DataError"] * 3), done


def test_so_is_a_file_of_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl())
    source = open_source(Source(path=str(path)))
    assert source[3]["prompt"]
    with path.open("r+b") as file:
        file.truncate(10)
    with pytest.raises(DataError, match="has changed since"):
        source.read([40])


def test_a_file_is_looked_at_once_and_again_when_it_has_changed(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr("dist_sft.data.readers.arrow.refuse_unsound", lambda table: looked.append(table.num_rows))
    path, cache = tmp_path / "a.arrow", tmp_path / "cache"

    def write(data):
        path.write_bytes(data)
        os.utime(path, (1_700_000_000 + len(data), 1_700_000_000 + len(data)))

    write(arrow())
    for _ in range(3):
        open_source(Source(path=str(path)), cache)
    assert sum(looked) == 60
    write(arrow(stream=True))
    open_source(Source(path=str(path)), cache)
    assert sum(looked) == 120


def test_text_that_is_not_utf_8_costs_only_its_row_in_every_kind_of_column(tmp_path):
    bad = pa.array([b"a", b"\xff", b"c"])
    kinds = [pa.string(), pa.large_string()]
    columns = {str(kind): bad.cast(kind, safe=False) if kind != pa.string() else bad.view(kind) for kind in kinds[:1]}
    columns["list"] = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), bad).view(pa.list_(pa.string()))
    columns["struct"] = pa.StructArray.from_arrays([bad], ["x"]).view(pa.struct([("x", pa.string())]))
    for name, column in columns.items():
        made = pa.table({"text": column})
        with pa.ipc.new_file(str(tmp_path / f"{name}.arrow"), made.schema) as writer:
            writer.write_table(made)
        source = open_source(Source(path=str(tmp_path / f"{name}.arrow")))
        assert len(source) == 3 and source[0]["text"] and source[2]["text"]
        with pytest.raises(DataError, match="invalid UTF-8"):
            source[1]


@pytest.mark.parametrize("made", [table(), pa.table({"good": pa.array([True] * 999)}), table().slice(7, 20)])
def test_a_sound_table_is_let_through(made):
    sound.refuse_unsound(made)


def test_a_table_with_more_rows_than_room_is_refused(tmp_path):
    made = pa.table({"nothing": pa.nulls(1000)})
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), made.schema) as writer:
        writer.write_table(made)
    with pytest.raises(DataError, match="no room"):
        open_source(Source(path=str(tmp_path / "a.arrow")))


def test_what_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sound, "MOST_UNPACKED", 1 << 20)
    rows = b'{"text": "a"}\n' * 400_000
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", rows)
    with pa.CompressedOutputStream(str(tmp_path / "a.jsonl.zst"), "zstd") as file:
        file.write(rows)
    text = "x" * 1000
    pq.write_table(pa.table({"text": [text] * 20_000}), tmp_path / "a.parquet")
    for name in ("a.jsonl.gz", "a.zip", "a.jsonl.zst", "a.parquet"):
        with pytest.raises(DataError, match=r"more than [\d,]+"):
            open_source(Source(path=str(tmp_path / name)))[0]


def test_each_way_to_damage_a_file_is_tried(tmp_path):
    assert len({put(tmp_path, "a.tsv", number).read_bytes() for number in range(200)}) > 150
