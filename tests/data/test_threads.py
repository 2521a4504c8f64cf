"""Messages that answer one another are read as conversations: those that OpenAssistant's own loader makes of them."""

import json
import pickle
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dist_sft.chat.formats import parse_row
from dist_sft.config.data import Source
from dist_sft.core.errors import DataError, RowError
from dist_sft.data.readers.arrow import Table
from dist_sft.data.sources import open_source


def tree(dice, role="prompter", depth=0, parent=None, ids=None):
    """A random tree of messages."""
    ids = ids if ids is not None else iter(range(10_000))
    id_ = f"m{next(ids)}"
    node = {"message_id": id_, "parent_id": parent, "role": role, "text": f"text of {id_}", "lang": "en"}
    width = dice.choice((0, 1, 1, 2, 3)) if depth else dice.choice((1, 2))
    other = "assistant" if role == "prompter" else "prompter"
    node["replies"] = [tree(dice, other, depth + 1, id_, ids) for _ in range(width if depth < 5 else 0)]
    return node


def flat(node):
    """Its messages, each before its replies."""
    return [{key: value for key, value in node.items() if key != "replies"}, *(
        message for reply in node["replies"] for message in flat(reply))]  # fmt: skip


def expected(node, before=()):
    """As OpenAssistant's load_oasst_export has it: ways to leaves; of a question nobody answered, the first alone, and
    without it."""
    way = (*before, node)
    found = [thread for reply in node["replies"] for thread in expected(reply, way)]
    leaf = not node["replies"]
    if leaf and node["role"] == "assistant":
        found.append([message["text"] for message in way])
    if leaf and node["role"] == "prompter" and before and before[-1]["replies"][0] is node:
        found.append([message["text"] for message in before])
    return found


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path, **source):
    opened = open_source(Source(path=str(path), **source))
    return [parse_row(opened[i]) for i in range(len(opened))]


@pytest.fixture(params=range(4))
def trees(request):
    dice = random.Random(request.param)
    ids = iter(range(10_000))
    return [tree(dice, ids=ids) for _ in range(12)]


def test_threads_are_those_of_the_publishers_own_loader(tmp_path, trees):
    wanted = sorted(thread for root in trees for thread in expected(root))
    messages = [message for root in trees for message in flat(root)]
    random.Random(1).shuffle(trees)
    of_trees = [
        {"message_tree_id": root["message_id"], "tree_state": "ready_for_export", "prompt": root} for root in trees
    ]
    pq.write_table(pa.Table.from_pylist(messages), tmp_path / "flat.parquet", row_group_size=7)
    for path in (written(tmp_path / "flat.jsonl", messages), written(tmp_path / "trees.jsonl", of_trees),
                 written(tmp_path / "roots.jsonl", trees), tmp_path / "flat.parquet"):  # fmt: skip
        items = read(path)
        assert sorted([turn.content for turn in item.messages] for item in items) == wanted, path.name
        for item in items:
            assert [turn.role for turn in item.messages] == ["user", "assistant"] * (len(item.messages) // 2)
        assert all(item.unread == {"messages[].lang"} for item in items)


def test_a_thread_knows_its_place_and_its_columns_and_travels(tmp_path):
    root = {"message_id": "1", "parent_id": None, "role": "prompter", "text": "q", "lang": "en"}
    rows = [root, {**root, "message_id": "2", "parent_id": "1", "role": "assistant", "text": "a", "lang": "de"}]
    source = open_source(Source(path=str(written(tmp_path / "m.jsonl", rows))))
    assert len(source) == 1 and source.where(0) == f"{tmp_path}/m.jsonl:2" and source.column("lang") == ["de"]
    copy = pickle.loads(pickle.dumps(source))
    assert copy[0] == source[0] and copy.read([0])[0].content == source.read([0])[0].content
    nested = {**root, "replies": [{**rows[1], "replies": []}]}
    assert (
        open_source(Source(path=str(written(tmp_path / "t.jsonl", [nested])))).where(0)
        == f"{tmp_path}/t.jsonl:1.replies[0]"
    )


@pytest.mark.parametrize(("change", "why"), [
    ({"parent_id": "gone"}, "'gone', which it answers, is not in the file"),
    ({"parent_id": "2"}, "is its own answer"),
    ({"deleted": True}, "a message in it was deleted"),
])  # fmt: skip
def test_a_thread_that_is_broken_is_an_error_of_the_row(tmp_path, change, why):
    root = {"message_id": "1", "parent_id": None, "role": "prompter", "text": "q"}
    answers = [{"message_id": "2", "parent_id": "1", "role": "assistant", "text": "a"} | change,
               {"message_id": "3", "parent_id": "2", "role": "assistant", "text": "b"}]  # fmt: skip
    source = open_source(Source(path=str(written(tmp_path / "m.jsonl", [root, *answers]))))
    with pytest.raises(RowError, match=why):
        source[0]


def test_a_line_that_is_no_row_is_an_error_of_what_it_may_belong_to(tmp_path):
    root = {"message_id": "1", "parent_id": None, "role": "prompter", "text": "q", "replies": []}
    (tmp_path / "t.jsonl").write_text(json.dumps(root | {"replies": [{**root, "role": "assistant"}]}) + "\n{\n")
    source = open_source(Source(path=str(tmp_path / "t.jsonl")))
    assert len(source) == 2 and source[0]["messages"][1]["role"] == "assistant"
    with pytest.raises(RowError, match="not JSON"):
        source[1]


def test_messages_that_nobody_answers_are_refused(tmp_path):
    rows = [{"message_id": "1", "parent_id": None, "role": "prompter", "text": "q"}]
    path = written(tmp_path / "m.jsonl", rows)
    with pytest.raises(DataError, match="no message in it has an answer"):
        open_source(Source(path=str(path)))
    assert len(open_source(Source(path=str(path), format="text"))) == 1, "who asks for documents gets documents"


def test_other_files_are_not_looked_into(tmp_path, monkeypatch):
    pq.write_table(pa.Table.from_pylist([{"prompt": "q", "completion": "a"}]), tmp_path / "a.parquet")
    monkeypatch.setattr(Table, "_read", None)
    assert len(open_source(Source(path=str(tmp_path / "a.parquet")))) == 1
