"""Which files of a folder are read: by the split that is asked for, the dataset card, or the files' names."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dist_sft.config.data import Source
from dist_sft.core.errors import DataError
from dist_sft.data.readers.splits import split_of
from dist_sft.data.sources import open_source


def write(folder, **texts):
    """Write files with that many rows each; each row names its file."""
    for name, rows in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        values = [{"text": f"{name} {i}"} for i in range(rows)]
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(values), path)
        else:
            path.write_text("".join(json.dumps(value) + "\n" for value in values))


def rows(folder, **source):
    found = open_source(Source(path=str(folder), **source))
    return [found[i]["text"] for i in range(len(found))]


def refused(folder, **source):
    with pytest.raises(DataError) as caught:
        open_source(Source(path=str(folder), **source))
    return str(caught.value)


def test_a_folder_as_the_hub_has_it_holds_splits(tmp_path):
    write(tmp_path, **{"data/train-00000-of-00001.parquet": 6, "data/test-00000-of-00001.parquet": 4})
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Fair\n")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert len(rows(tmp_path)) == 6 and len(rows(tmp_path, split="test")) == 4
    assert refused(tmp_path, split="dev") == f"{tmp_path}: no split 'dev'\n  fix: set split to test or train"


@pytest.mark.parametrize(("name", "split"), [
    ("train.jsonl", "train"), ("my-train_part2.jsonl", "train"), ("validation/a.jsonl", "validation"),
    ("data/dev-1.jsonl", "validation"), ("eval.jsonl", "test"), ("data/test_sft-00000-of-00002.parquet", "test_sft"),
    ("chats.jsonl", None), ("trainer.jsonl", None), ("contest.jsonl", None), ("train/test.jsonl", None),
    ("values.jsonl", None), ("part-00000-of-00002.parquet", None),
])  # fmt: skip
def test_a_split_is_told_by_the_words_of_a_path(name, split):
    assert split_of(name) == split


def test_shards_of_one_split_are_all_read(tmp_path):
    write(tmp_path, **{f"train-0000{i}-of-00003.jsonl": 2 for i in range(3)})
    assert len(rows(tmp_path)) == 6


def test_a_folder_without_splits_is_read_whole_and_another_split_refused(tmp_path):
    write(tmp_path, **{"a.jsonl": 1, "deep/b.jsonl": 2})
    assert len(rows(tmp_path)) == 3
    assert "no split 'test': no name of a file says which split it is" in refused(tmp_path, split="test")


def test_a_file_of_no_split_beside_files_of_some_is_a_question(tmp_path):
    write(tmp_path, **{"train.jsonl": 1, "test.jsonl": 1, "more.jsonl": 1})
    message = refused(tmp_path)
    assert "more.jsonl belongs to no split, and others do: test, train" in message and "train*" in message
    assert rows(tmp_path / "train*") == ["train.jsonl 0"]


def test_a_test_set_is_not_trained_on_for_want_of_another(tmp_path):
    write(tmp_path, **{"test.jsonl": 2})
    assert refused(tmp_path).endswith("no split 'train'\n  fix: set split to test")
    assert len(rows(tmp_path, split="test")) == 2


CARD = """---
configs:
- config_name: chats
  default: true
  data_files:
  - split: train
    path: "chats/*.jsonl"
  - split: held_out
    path: ["more/one.jsonl", "more/two.jsonl"]
- config_name: texts
  data_files: "texts/*"
---
"""


def test_the_dataset_card_says_which_files_are_what(tmp_path):
    write(tmp_path, **{"chats/a.jsonl": 1, "chats/b.jsonl": 1, "more/one.jsonl": 3, "more/two.jsonl": 4})
    write(tmp_path, **{"texts/c.jsonl": 7, "left/d.jsonl": 9})
    (tmp_path / "README.md").write_text(CARD)
    assert len(rows(tmp_path)) == 2 and len(rows(tmp_path, split="held_out")) == 7
    assert len(rows(tmp_path, subset="texts")) == 7
    assert "no subset 'other'\n  fix: set subset to chats or texts" in refused(tmp_path, subset="other")
    (tmp_path / "more" / "one.jsonl").unlink()
    (tmp_path / "more" / "two.jsonl").unlink()
    assert "the dataset card names more/one.jsonl, more/two.jsonl, and no such file is there" in refused(tmp_path)


def test_several_subsets_without_a_default_are_a_question(tmp_path):
    write(tmp_path, **{"chats/a.jsonl": 1, "texts/c.jsonl": 7})
    (tmp_path / "README.md").write_text(CARD.replace("  default: true\n", ""))
    assert "several subsets, and none is the default\n  fix: set subset to chats or texts" in refused(tmp_path)


def test_a_split_or_subset_of_a_file_that_has_none_is_refused(tmp_path):
    write(tmp_path, **{"rows.jsonl": 1, "test.jsonl": 2})
    assert "nothing says that this is the split 'test'" in refused(tmp_path / "rows.jsonl", split="test")
    assert len(rows(tmp_path / "test.jsonl", split="test")) == 2
    assert "a file has no subset 'main'" in refused(tmp_path / "rows.jsonl", subset="main")
    assert "no subset 'main'" in refused(tmp_path, subset="main")
    (tmp_path / "rows.json").write_text('[{"text": "a"}]')
    assert "no split 'test': the file is one array of rows" in refused(tmp_path / "rows.json", split="test")
    (tmp_path / "some.json").write_text('{"data": [{"text": "a"}]}')
    assert "an object without a list under 'test'" in refused(tmp_path / "some.json", split="test")


def test_a_json_file_that_is_one_row_is_one_row(tmp_path):
    (tmp_path / "row.json").write_text('{"messages": [{"role": "user", "content": "q"}]}')
    assert len(open_source(Source(path=str(tmp_path / "row.json")))) == 1


def test_nulls_that_a_tables_type_puts_into_a_rows_objects_are_taken_out(tmp_path):
    def row(tool, arguments):
        schema = {"name": tool, "parameters": {"properties": {key: {"type": "string"} for key in arguments}}}
        call = {"role": "assistant", "content": None, "tool_calls": [{"name": tool, "arguments": arguments}]}
        return {"messages": [{"role": "user", "content": "q"}, call], "tools": [schema]}

    values = [row("weather", {"city": "Oslo"}), row("pay", {"amount": 3, "currency": "EUR"})]
    pq.write_table(pa.Table.from_pylist(values), tmp_path / "a.parquet")
    with pa.ipc.new_file(tmp_path / "a.arrow", pa.Table.from_pylist(values).schema) as file:
        file.write_table(pa.Table.from_pylist(values))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))
    from dist_sft.chat.formats import parse_row

    lined = open_source(Source(path=str(tmp_path / "a.jsonl")))
    for name in ("a.parquet", "a.arrow"):
        found = open_source(Source(path=str(tmp_path / name)))
        assert [parse_row(found[i]) for i in range(2)] == [parse_row(lined[i]) for i in range(2)]
        assert parse_row(found[0]).messages[1].tool_calls[0].arguments == {"city": "Oslo"}
