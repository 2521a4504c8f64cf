"""Rows of every kind of file, by number, with their place."""

import gzip
import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dist_sft.config.data import Source
from dist_sft.data.sources import open_source

ROWS = [{"prompt": f"p{i}\n", "completion": f"ç{i}"} for i in range(5)]
SHARED = Path(__file__).parents[3] / "shared" / "data"


def rows(path, **source):
    opened = open_source(Source(path=str(path), **source))
    return [opened[i] for i in range(len(opened))]


def jsonl(values=ROWS):
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()


def arrow_file(path, table, *, stream=False):
    opened = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, opened(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def test_every_format_gives_the_same_rows(tmp_path):
    table = pa.Table.from_pylist(ROWS)
    csv_text = "prompt,completion\n" + "".join(f'"p{i}\n",ç{i}\n' for i in range(5))
    (tmp_path / "a.jsonl").write_bytes(jsonl())
    (tmp_path / "a.ndjson").write_bytes(jsonl())
    (tmp_path / "lines.json").write_bytes(jsonl())
    (tmp_path / "array.json").write_text(json.dumps(ROWS))
    (tmp_path / "data.json").write_text(json.dumps({"version": 1, "data": ROWS}))
    (tmp_path / "split.json").write_text(json.dumps({"test": [], "train": ROWS}))
    (tmp_path / "a.csv").write_text(csv_text)
    (tmp_path / "a.tsv").write_text(csv_text.replace(",", "\t"))
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    arrow_file(tmp_path / "a.arrow", table)
    arrow_file(tmp_path / "stream.arrow", table, stream=True)
    for path in tmp_path.iterdir():
        assert rows(path) == ROWS, path.name


def test_compressed_files_give_the_same_rows(tmp_path):
    import bz2
    import lzma

    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl(ROWS[:2])) + gzip.compress(jsonl(ROWS[2:])))
    (tmp_path / "a.jsonl.bz2").write_bytes(bz2.compress(jsonl()))
    (tmp_path / "a.json.xz").write_bytes(lzma.compress(json.dumps(ROWS).encode()))
    with pa.CompressedOutputStream(str(tmp_path / "a.jsonl.zst"), "zstd") as file:
        file.write(jsonl())
    for path in tmp_path.iterdir():
        assert rows(path) == ROWS, path.name


def test_each_row_knows_its_place(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\n" + jsonl(ROWS[:2]) + b"  \t\n\r\n" + jsonl(ROWS[2:]))
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    (tmp_path / "d.json").write_text(json.dumps({"data": ROWS}))
    (tmp_path / "a.csv").write_text('prompt\n"two\nlines"\n\nx\n')
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    places = {name: open_source(Source(path=str(tmp_path / name))) for name in ("a.jsonl", "a.json", "d.json", "a.csv")}
    assert [places["a.jsonl"].where(i) for i in range(5)] == [f"{tmp_path}/a.jsonl:{n}" for n in (2, 3, 6, 7, 8)]
    assert places["a.json"].where(3) == f"{tmp_path}/a.json[3]"
    assert places["d.json"].where(3) == f"{tmp_path}/d.json.data[3]"
    assert [places["a.csv"].where(i) for i in range(2)] == [f"{tmp_path}/a.csv:2", f"{tmp_path}/a.csv:5"]
    assert open_source(Source(path=str(tmp_path / "a.parquet"))).where(4) == f"{tmp_path}/a.parquet row 4"


def test_byte_order_marks_windows_line_ends_and_a_missing_last_line_end_change_nothing(tmp_path):
    bom = b"\xef\xbb\xbf"
    (tmp_path / "a.jsonl").write_bytes(bom + jsonl().replace(b"\n", b"\r\n").rstrip())
    (tmp_path / "a.json").write_bytes(bom + json.dumps(ROWS).encode())
    (tmp_path / "b.csv").write_bytes(bom + "prompt,completion\r\nx,ç\r\n".encode())
    assert rows(tmp_path / "a.jsonl") == rows(tmp_path / "a.json") == ROWS
    assert rows(tmp_path / "b.csv") == [{"prompt": "x", "completion": "ç"}]


def test_lines_are_found_across_the_chunks_of_the_scan(tmp_path, monkeypatch):
    monkeypatch.setattr("dist_sft.data.readers.jsonl.PIECE", 7)
    (tmp_path / "a.jsonl").write_bytes(jsonl() + b"\n" * 20 + jsonl())
    assert rows(tmp_path / "a.jsonl") == ROWS + ROWS


def test_a_separator_of_unicode_inside_a_json_line_ends_no_row(tmp_path):
    odd = [{"text": "a\u2028b\x0bc\x85d"}]
    (tmp_path / "a.jsonl").write_bytes(jsonl(odd))
    assert rows(tmp_path / "a.jsonl") == odd


def test_a_text_file_is_documents_between_blank_lines(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\r\none\r\ntwo\r\n \r\n\r\nthree\r\n")
    source = open_source(Source(path=str(tmp_path / "a.txt")))
    assert [source[i] for i in range(len(source))] == [{"text": "one\ntwo"}, {"text": "three"}]
    assert [source.where(i) for i in range(2)] == [f"{tmp_path}/a.txt:2", f"{tmp_path}/a.txt:6"]


def test_a_long_csv_value_is_read_whole(tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + "x" * 300_000 + "\n")
    assert len(rows(tmp_path / "a.csv")[0]["text"]) == 300_000


def test_a_folder_is_its_files_in_natural_order(tmp_path):
    for number in (10, 2, 1):
        (tmp_path / f"part-{number}.jsonl").write_bytes(jsonl([{"n": number}, {"n": number}]))
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "x.csv").write_text("n\nx\n")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "README.md").write_text("no rows")
    (tmp_path / "LICENSE.txt").write_text("no document")
    (tmp_path / "_SUCCESS.jsonl").write_text("not read")
    (tmp_path / ".hidden.jsonl").write_text("not read")
    source = open_source(Source(path=str(tmp_path)))
    assert [source[i]["n"] for i in range(len(source))] == ["x", 1, 1, 2, 2, 10, 10]
    assert source.where(4) == f"{tmp_path}/part-2.jsonl:2"
    assert [row["n"] for row in rows(tmp_path / "part-*.jsonl")] == [1, 1, 2, 2, 10, 10]
    assert [row["n"] for row in rows(tmp_path / "**" / "*.csv")] == ["x"]


def test_a_folder_of_text_files_is_documents(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    assert rows(tmp_path) == [{"text": "one"}]


def test_an_index_outside_the_rows_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl())
    source = open_source(Source(path=str(tmp_path / "a.jsonl")))
    for i in (5, -1):
        with pytest.raises(IndexError):
            source[i]


def test_a_name_with_brackets_is_a_file_if_it_exists(tmp_path):
    (tmp_path / "a[1].jsonl").write_bytes(jsonl())
    assert rows(tmp_path / "a[1].jsonl") == ROWS


def test_the_fingerprint_tells_content_not_place(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl())
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "b.jsonl").write_bytes(jsonl())
    first = open_source(Source(path=str(tmp_path / "a.jsonl"))).fingerprint
    assert open_source(Source(path=str(tmp_path / "inner"))).fingerprint == first
    changed = bytearray(jsonl())
    changed[-5] ^= 1
    (tmp_path / "a.jsonl").write_bytes(changed)
    assert open_source(Source(path=str(tmp_path / "a.jsonl"))).fingerprint != first


def test_the_fingerprint_tells_the_order_of_the_files(tmp_path):
    for folder, names in (("x", "ab"), ("y", "ba")):
        (tmp_path / folder).mkdir()
        for name, row in zip(names, ROWS, strict=False):
            (tmp_path / folder / f"{name}.jsonl").write_bytes(jsonl([row]))
    x, y = (open_source(Source(path=str(tmp_path / folder))).fingerprint for folder in "xy")
    assert x != y


def test_a_folder_of_save_to_disk_is_read_with_its_splits(tmp_path):
    import datasets

    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "one"), num_shards=2)
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(str(tmp_path / "two"))
    assert rows(tmp_path / "one") == rows(tmp_path / "two") == ROWS
    assert rows(tmp_path / "two", split="test") == ROWS[:1]


def test_a_hub_id_is_loaded_by_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "train.jsonl").write_bytes(jsonl())
    source = open_source(Source(path=f"hub:{tmp_path}/repo"))
    assert [source[i] for i in range(len(source))] == ROWS
    assert source.where(3) == f"hub:{tmp_path}/repo train row 3"
    assert len(source.fingerprint) == 64


def test_urls_are_read_by_fsspec():
    fs = fsspec.filesystem("memory")
    fs.pipe("/sources/part-10.jsonl", jsonl([{"n": 10}]))
    fs.pipe("/sources/part-2.jsonl.gz", gzip.compress(jsonl([{"n": 2}])))
    pq.write_table(pa.Table.from_pylist(ROWS), fs.open("/sources/deep/rows.parquet", "wb"))
    source = open_source(Source(path="memory://sources/part-10.jsonl"))
    assert source[0] == {"n": 10}
    assert source.where(0) == "memory://sources/part-10.jsonl:1"
    assert rows("memory://sources/*.jsonl*") == [{"n": 2}, {"n": 10}]
    assert rows("memory://sources") == [*ROWS, {"n": 2}, {"n": 10}]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real files are not here")
@pytest.mark.parametrize(
    ("name", "count", "keys"),
    [
        ("gsm8k_train.jsonl", 7473, {"question", "answer"}),
        ("gsm8k_test.jsonl", 1319, {"question", "answer"}),
        ("xstest_prompts.csv", 450, {"id", "prompt", "type", "label", "focus", "note"}),
        ("fc_dummy_conversation.json", 500, {"id", "conversations"}),
        ("lf_v1_sft_demo.jsonl", 500, {"messages"}),
        ("lf_glaive_toolcall_en_demo.json", 300, {"conversations", "tools"}),
        ("lf_reason_tool_use_demo_50.jsonl", 50, {"messages", "tools"}),
        ("lf_c4_demo.jsonl", 300, {"text"}),
        ("gpteacher_codegen.json", 4535, {"instruction", "input", "response"}),
        ("gpteacher_roleplay.json", 1923, {"instruction", "input", "response"}),
        ("xstest_completions_gpt4.csv", 450, {"prompt", "completion", "final_label"}),
    ],
)
def test_real_files_are_read_whole(name, count, keys):
    read = rows(SHARED / name)
    assert len(read) == count
    assert all(keys <= row.keys() for row in read)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real files are not here")
def test_a_real_text_file_is_many_documents():
    texts = [row["text"] for row in rows(SHARED / "wikitext2_valid.txt")]
    assert len(texts) > 1000
    assert any("Homarus gammarus , known as the European lobster" in text for text in texts)


def test_json_columns_are_what_was_written_in_them(tmp_path):
    """The Json feature of `datasets` is Arrow's type of JSON text: of a column, or inside lists and structs."""
    from datasets import Dataset, Features, Json, List, Value

    call = {"function": {"name": "f", "arguments": {"x": 1, "unit": None}}}
    schema = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "default": None}}}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    features = {
        "alone": Features({"messages": Json(), "tools": Json()}),
        "inside": Features({"messages": List({"role": Value("string"), "content": Value("string"),
                                              "tool_calls": List(Json())}), "tools": List(Json())}),
    }  # fmt: skip
    for name, types in features.items():
        data = Dataset.from_list([{"messages": turns, "tools": [schema]}], features=types)
        data.to_parquet(tmp_path / f"{name}.parquet")
        data.save_to_disk(tmp_path / name)
        for path in (tmp_path / f"{name}.parquet", tmp_path / name):
            (row,) = rows(path)
            assert row == {"messages": turns, "tools": [schema]}, "nulls that stand in the JSON are its own"
    table = pa.table({"text": pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{no json"]))})
    pq.write_table(table, tmp_path / "broken.parquet")
    assert rows(tmp_path / "broken.parquet") == [{"text": "{no json"}]


def test_a_line_that_is_a_list_of_messages_is_a_row(tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (tmp_path / "a.jsonl").write_text(json.dumps(turns) + "\n" + json.dumps([{"from": "human", "value": "q"}]) + "\n")
    (tmp_path / "a.json").write_text(json.dumps([turns, turns]))
    assert rows(tmp_path / "a.jsonl") == [{"messages": turns}, {"messages": [{"from": "human", "value": "q"}]}]
    assert rows(tmp_path / "a.json") == [{"messages": turns}] * 2
