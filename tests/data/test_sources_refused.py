"""Files and rows that cannot be read say which, where and what to do."""

import gzip
import http.server
import json
import threading

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dist_sft.config.data import Source
from dist_sft.core.errors import DataError, MissingExtra, RowError
from dist_sft.data.sources import open_source


def refused(path, **source):
    with pytest.raises(DataError) as caught:
        open_source(Source(path=str(path), **source))
    return str(caught.value)


def bad_row(path, i):
    opened = open_source(Source(path=str(path)))
    with pytest.raises(RowError) as caught:
        opened[i]
    return caught.value.reason, str(caught.value)


def test_a_missing_file_names_those_most_like_it(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}")
    assert (
        refused(tmp_path / "trian.jsonl") == f"{tmp_path}/trian.jsonl: no such file\n  fix: did you mean train.jsonl?"
    )
    assert f"fix: {tmp_path} holds train.jsonl" in refused(tmp_path / "zzz.csv")
    assert f"the folder {tmp_path}/no does not exist" in refused(tmp_path / "no" / "x.jsonl")


def test_a_glob_that_matches_nothing_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    assert refused(tmp_path / "*.csv").startswith(f"{tmp_path}/*.csv: no file matches\n  fix: ")


def test_a_link_to_nowhere_names_its_target(tmp_path):
    (tmp_path / "a.jsonl").symlink_to("gone.jsonl")
    assert refused(tmp_path / "a.jsonl") == (
        f"{tmp_path}/a.jsonl: a link to gone.jsonl, which does not exist\n  fix: mend the link"
    )


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    (tmp_path / "a").write_text("")
    assert refused(tmp_path / "a" / "b.jsonl").startswith(f"{tmp_path}/a/b.jsonl: cannot be read: Not a directory")


def test_a_folder_without_data_says_what_it_holds(tmp_path):
    assert "a folder without data files; it holds nothing" in refused(tmp_path)
    (tmp_path / "model.safetensors").write_text("x")
    assert "it holds model.safetensors\n  fix: use .jsonl, .ndjson, .json, .csv" in refused(tmp_path)


def test_a_file_of_unknown_format_is_refused(tmp_path):
    (tmp_path / "a.xlsx").write_text("x")
    assert refused(tmp_path / "a.xlsx").startswith(
        f"{tmp_path}/a.xlsx: a file of unknown format\n  fix: name it .jsonl"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", b""), ("b.jsonl", b"\n \n"), ("a.json", b"[]"), ("a.csv", b""), ("b.csv", b"prompt,completion\n"),
     ("a.txt", b"\n\n"), ("a.jsonl.gz", gzip.compress(b"", mtime=0))],
)  # fmt: skip
def test_a_source_without_a_row_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert refused(tmp_path / name).startswith(f"{tmp_path}/{name}: there is no row in it")


def test_an_empty_parquet_is_refused(tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert "there is no row in it" in refused(tmp_path / "a.parquet")


def test_a_row_that_is_not_json_costs_only_itself(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": }\n{"a": 3}\n')
    assert bad_row(tmp_path / "a.jsonl", 1) == (
        "bad_json",
        f"{tmp_path}/a.jsonl:3: not JSON: Expecting value: line 1 column 7 (char 6)\n  fix: one whole JSON object per line",  # noqa: E501
    )
    assert open_source(Source(path=str(tmp_path / "a.jsonl")))[2] == {"a": 3}


def test_a_last_row_that_was_cut_off_says_so(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": "hal')
    reason, message = bad_row(tmp_path / "a.jsonl", 1)
    assert reason == "bad_json"
    assert message.endswith("fix: the last line does not end: was the file cut off?")


def test_a_row_nested_too_deeply_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("[" * 200_000 + "\n")
    assert bad_row(tmp_path / "a.jsonl", 0)[0] == "bad_json"


def test_invalid_utf_8_is_refused_at_its_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": "caf\xe9"}\n')
    assert bad_row(tmp_path / "a.jsonl", 1) == (
        "bad_unicode",
        f"{tmp_path}/a.jsonl:2: invalid UTF-8: byte 0xe9 at column 11\n  fix: save the file as UTF-8",
    )
    for name, content in (("a.json", b'[\n{"a": "\xe9"}]'), ("a.csv", b"a\n\xe9\n"), ("a.txt", b"x\n\xe9")):
        (tmp_path / name).write_bytes(content)
        assert refused(tmp_path / name) == (
            f"{tmp_path}/{name}:2: invalid UTF-8: byte 0xe9\n  fix: save the file as UTF-8"
        )


def test_half_a_character_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": [{"b": "\\ud83d\\ude00"}]}\n{"a": [{"b": "x \\uD83D"}]}\n')
    (tmp_path / "a.json").write_text('[{"a": "\\ud800"}]')
    assert bad_row(tmp_path / "a.jsonl", 1) == (
        "bad_unicode",
        rf"{tmp_path}/a.jsonl:2: half a character: \ud83d without its other half" + "\n  fix: remove it from the row",
    )
    assert bad_row(tmp_path / "a.json", 0)[0] == "bad_unicode"
    (tmp_path / "lower.jsonl").write_text('{"a": "\\udc00"}')
    assert bad_row(tmp_path / "lower.jsonl", 0)[0] == "bad_unicode"
    assert open_source(Source(path=str(tmp_path / "a.jsonl")))[0] == {"a": [{"b": "😀"}]}


def test_utf_16_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"a": 1}\n'.encode("utf-16"))
    assert refused(tmp_path / "a.jsonl").startswith(f"{tmp_path}/a.jsonl: the file is UTF-16\n  fix: convert it")


@pytest.mark.parametrize(("value", "kind"), [("[1]", "a list"), ('"x"', "text"), ("3", "a number"), ("null", "null")])
def test_a_row_that_is_no_object_is_refused(tmp_path, value, kind):
    (tmp_path / "a.jsonl").write_text(f"{value}\n")
    (tmp_path / "a.json").write_text(f"[{value}]")
    assert bad_row(tmp_path / "a.jsonl", 0)[1].startswith(f"{tmp_path}/a.jsonl:1: the row is {kind}, not an object")
    reason, message = bad_row(tmp_path / "a.json", 0)
    assert reason == "bad_row"
    assert message.startswith(f"{tmp_path}/a.json[0]: the row is {kind}, not an object")


def test_broken_json_files_are_refused_at_their_line(tmp_path):
    (tmp_path / "a.json").write_text('[\n{"a": 1},\n{"a": }\n]')
    assert refused(tmp_path / "a.json").startswith(f"{tmp_path}/a.json:3: not JSON: Expecting value (column 7)")
    (tmp_path / "a.json").write_text('[\n{"a": 1},\n')
    assert refused(tmp_path / "a.json").endswith("fix: the file ends too early: was it cut off?")


def test_a_json_file_without_rows_names_the_lists_it_holds(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"examples": [{}], "version": 1}))
    assert refused(tmp_path / "a.json") == (
        f"{tmp_path}/a.json: an object without a list under 'train' or 'data'\n"
        "  fix: set split to one of examples, if it holds rows"
    )
    assert len(open_source(Source(path=str(tmp_path / "a.json"), split="examples"))) == 1
    (tmp_path / "a.json").write_text("3")
    assert "neither an array of rows nor an object that holds one" in refused(tmp_path / "a.json")


def test_a_csv_row_with_too_many_or_few_values_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n1,2,3\n1\n")
    assert bad_row(tmp_path / "a.csv", 1) == (
        "bad_row",
        f"{tmp_path}/a.csv:3: 3 values, but the header names 2 columns\n"
        "  fix: quote values that hold the separator, a quote or a line end",
    )
    assert "a.csv:4: 1 values" in bad_row(tmp_path / "a.csv", 2)[1]


def test_a_csv_without_a_proper_header_is_refused(tmp_path):
    for text, message in (
        ("a,b,a\n1,2,3\n", ":1: two columns are called 'a'"),
        ("1,What is it?\n2,x\n", ":1: the first line is no header: '1' is no name of a column"),
        (f"{'long answer ' * 30},x\n", ":1: the first line is no header: 'long answer long"),
        (",\n1,\n", "two columns are called ''"),
    ):
        (tmp_path / "a.csv").write_text(text)
        assert message in refused(tmp_path / "a.csv")


def test_a_csv_with_an_open_quote_is_refused_where_it_opens(tmp_path):
    (tmp_path / "a.csv").write_text('a,b\n1,2\n1,"open\n3,4\n')
    assert refused(tmp_path / "a.csv").startswith(f"{tmp_path}/a.csv:3: broken quotes in the row that begins here")


def test_a_compressed_file_that_was_cut_off_is_refused(tmp_path):
    whole = gzip.compress(b'{"a": 1}\n' * 1000)
    for name in ("a.jsonl.gz", "a.jsonl.bz2", "a.jsonl.xz", "a.jsonl.zst"):
        (tmp_path / name).write_bytes(whole[:-9])
        assert refused(tmp_path / name).startswith(f"{tmp_path}/{name}: no whole .{name.rpartition('.')[2]} file: ")


@pytest.mark.parametrize(("name", "kind"), [("a.parquet", "Parquet"), ("a.arrow", "Arrow")])
def test_a_broken_table_is_refused(tmp_path, name, kind):
    table = pa.table({"text": ["x"] * 1000})
    if kind == "Parquet":
        pq.write_table(table, tmp_path / name)
    else:
        with pa.OSFile(str(tmp_path / name), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    whole = (tmp_path / name).read_bytes()
    for content in (whole[:-20], b"", b"garbage" * 9):
        (tmp_path / name).write_bytes(content)
        assert refused(tmp_path / name).startswith(f"{tmp_path}/{name}: no whole {kind} file: ")


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.table([pa.array(["x"]), pa.array(["y"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert "two columns are called 'text'" in refused(tmp_path / "a.parquet")


def test_text_in_a_table_that_is_not_utf_8_is_refused(tmp_path):
    broken = pa.StringArray.from_buffers(1, pa.py_buffer(b"\x00\x00\x00\x00\x01\x00\x00\x00"), pa.py_buffer(b"\xe9"))
    table = pa.table({"text": broken})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    reason, message = bad_row(tmp_path / "a.arrow", 0)
    assert reason == "bad_unicode"
    assert message.startswith(f"{tmp_path}/a.arrow row 0: invalid UTF-8 in a text column")


def test_a_value_of_a_column_that_cannot_be_read_is_none_in_it(tmp_path):
    bounds = pa.py_buffer(np.array([0, 1, 2], np.int32).tobytes())
    table = pa.table({"tag": pa.StringArray.from_buffers(2, bounds, pa.py_buffer(b"a\xe9"))})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert open_source(Source(path=str(tmp_path / "a.arrow"))).column("tag") == ["a", None]


def test_a_saved_data_set_without_the_split_names_those_it_has(tmp_path):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["training", "test"]}')
    assert refused(tmp_path) == f"{tmp_path}: no split 'train'\n  fix: set split to training or test"
    (tmp_path / "dataset_dict.json").write_text("{")
    assert "no whole state of a saved data set" in refused(tmp_path)


def test_a_hub_data_set_that_cannot_be_had_is_refused(tmp_path):
    message = refused(f"hub:{tmp_path}/nothing")
    assert message.startswith(f"hub:{tmp_path}/nothing train: the data set cannot be loaded: ")
    assert message.endswith("fix: check the name, split and subset, the network, and HF_TOKEN for a private one")


def test_urls_that_name_nothing_are_refused():
    fsspec.filesystem("memory").pipe("/refused/a.jsonl", b"{}")
    assert refused("memory://refused/b.jsonl") == "memory://refused/b.jsonl: no such file\n  fix: check the URL"
    assert refused("memory://refused/*.csv").startswith("memory://refused/*.csv: no file matches")
    assert "cannot be read: ValueError: Protocol not known: nosuch" in refused("nosuch://x/a.jsonl")


def test_a_url_whose_file_system_is_not_installed_says_what_to_install():
    with pytest.raises(MissingExtra) as caught:
        open_source(Source(path="dropbox://x/a.jsonl"))
    assert "no file system for this URL: DropboxFileSystem requires" in str(caught.value)


class Server(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        status = {"/rows.jsonl": 200, "/broken.jsonl": 500}.get(self.path.partition("?")[0], 404)
        body = b'{"a": 1}\n{"a": \n' if status == 200 else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        return


@pytest.fixture
def address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_web_server_is_read_and_its_errors_hide_the_secrets_of_the_url(address):
    url = f"http://{address}/rows.jsonl?token=hush"
    assert open_source(Source(path=url))[0] == {"a": 1}
    assert bad_row(url, 1)[1].startswith(f"http://{address}/rows.jsonl?token=<hidden>:2: not JSON")
    assert refused(f"http://{address}/gone.jsonl") == f"http://{address}/gone.jsonl: no such file\n  fix: check the URL"
    message = refused(f"http://{address}/broken.jsonl?token=hush")
    assert "cannot be read: ClientResponseError: 500" in message
    assert "hush" not in message
