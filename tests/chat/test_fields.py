"""Every filled key of a row is read, or refused by name, or told: for each format, and for keys that nobody knows."""

import json
import random
import string
from typing import get_args

import pytest

from dist_sft.chat.conversation import Conversation, Message, ToolCall
from dist_sft.chat.fields import CHANGES_LEARNING, ENCODED, JUDGED, KNOWN, OTHERS, PREFERRED, told
from dist_sft.chat.formats import FORMATS, parse_row
from dist_sft.chat.layouts import PAIRS
from dist_sft.chat.recognise import GLAIVE, QUESTIONS, QUESTIONS_OF, TURNS
from dist_sft.chat.render import template_input
from dist_sft.config.data import Source
from dist_sft.core.errors import RowError

ASK, SAY = Message("user", "q"), Message("assistant", "a")
TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHARED = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
OF_FORMAT = {
    "messages": [{key: TALK} for key in TURNS],
    "sharegpt": [{"conversations": turns} for turns in (SHARED, ["q", "a"], *([{q: "q", a: "a"}] for q, a in PAIRS))],
    "glaive": [{key: "USER: q\n\n\nASSISTANT: a <|endoftext|>"} for key in GLAIVE],
    "text": [{"text": "t"}],
} | {
    format: [{question: "q", said: "a"} for question in questions for said in QUESTIONS[question] if said != "answers"]
    for format, questions in QUESTIONS_OF.items()
}  # fmt: skip
"""Rows of each format under each name that it knows. From the code's own tables: a new name is tried as well."""
ROWS = {f"{format}-{'-'.join(row)}-{i}": row for format, rows in OF_FORMAT.items() for i, row in enumerate(rows)}
MEANINGFUL = [*CHANGES_LEARNING, *ENCODED, *JUDGED, *PREFERRED, *OTHERS]
SAYS = {"tools": [{"name": "f"}], "functions": [{"name": "f"}], "history": [["q", "a"]],
        **dict.fromkeys(("loss", "train", "training", "trainable", "learn", "output_with_loss", *JUDGED), False),
        "weight": 0.5, "loss_weight": 0.5, **{key: [1] for key in ENCODED}}  # fmt: skip
"""A value that says something, for keys where a text would not."""


def test_every_format_is_tried():
    named = get_args(Source.model_fields["format"].annotation)
    assert set(OF_FORMAT) == set(FORMATS) == {*named} - {"auto"} and all(OF_FORMAT.values())
    assert set(QUESTIONS) == {question for questions in QUESTIONS_OF.values() for question in questions}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_every_name_of_a_part_is_read(row):
    item = parse_row(row)
    assert item.text == "t" if "text" in row else item == Conversation((ASK, SAY))
    assert not item.unread


@pytest.mark.parametrize("key", MEANINGFUL)
@pytest.mark.parametrize("format", FORMATS)
def test_a_key_that_may_change_what_is_learned_is_obeyed_or_refused_by_name(format, key):
    for row in OF_FORMAT[format]:
        if key in row or any(key in turn for turn in row.get("conversations", ()) if isinstance(turn, dict)):
            continue
        try:
            item = parse_row(row | {key: SAYS.get(key, "something")})
            assert item != parse_row(row), f"{key} is not obeyed in {row}"
        except RowError as refused:
            assert key in refused.what and refused.fix


@pytest.mark.parametrize("key", [*CHANGES_LEARNING, *ENCODED, *JUDGED])
@pytest.mark.parametrize("turns", [TALK, SHARED, [{"human": "q", "assistant": "a"}]], ids=["role", "from", "pair"])
def test_so_is_one_of_a_turn(turns, key):
    row = {"conversation": [*turns[:-1], turns[-1] | {key: SAYS.get(key, "something")}]}
    try:
        assert parse_row(row) != parse_row({"conversation": turns})
    except RowError as refused:
        assert key in refused.what and refused.fix


@pytest.mark.parametrize("key", ["Images", "LABELS", "Loss_Mask"])
def test_capital_letters_hide_nothing(key):
    with pytest.raises(RowError, match=key):
        parse_row({"messages": TALK, key: SAYS.get(key.lower(), "something")})


@pytest.mark.parametrize("empty", [None, "", [], {}])
@pytest.mark.parametrize(
    "key", ["images", "tools", "loss_mask", "context", "labels", "rejected", "thinking", "whatever"]
)
@pytest.mark.parametrize("format", FORMATS)
def test_a_key_that_holds_nothing_says_nothing(format, key, empty):
    for row in OF_FORMAT[format]:
        item = parse_row(row | {key: empty})
        assert item == parse_row(row) and not item.unread


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_an_unknown_key_is_told(row):
    drawn = random.Random(repr(row))
    for value in (3, "text", [1], {"x": None}, False):
        name = "x" + "".join(drawn.choices(string.ascii_letters + string.digits + "_-. ", k=drawn.randint(1, 20)))
        item = parse_row(row | {name: value, "category": "qa"})
        assert item == parse_row(row) and item.unread == {name, "category"}
        line, question = told(item.unread)
        assert line == f"category, {name}" and f"is {name} to be learned?" in question and "category" not in question


def test_a_key_of_a_turn_is_told_with_its_place():
    item = parse_row({"messages": [TALK[0], TALK[1] | {"id": 7, "mood": "good"}]})
    assert item.unread == {"messages[].id", "messages[].mood"} and "messages[].mood" in told(item.unread)[1]
    with pytest.raises(RowError, match=r"messages\[1\]\.loss_mask is not read") as caught:
        parse_row({"messages": [TALK[0], TALK[1] | {"loss_mask": [1]}]})
    assert caught.value.reason == "key_not_read"


def test_what_our_own_data_commands_write_is_known():
    assert {"origin", "parent", "method", "round", "scores", "teacher", "tags"} <= KNOWN


# Cases of ../shared/cases


@pytest.mark.parametrize("flag", [{"loss": False}, {"train": False}, {"loss": 0}])
def test_a_turn_that_is_not_to_be_learned_is_context(flag):
    bad = {"role": "assistant", "content": "BAD ANSWER"}
    row = {"messages": [{"role": "user", "content": "hi"}, bad | flag, {"role": "user", "content": "again"}, TALK[1]]}
    assert [message.weight for message in parse_row(row).messages] == [None, 0.0, None, None]
    shared = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "BAD ANSWER"} | flag]
    assert [message.weight for message in parse_row({"conversations": shared}).messages] == [None, 0.0]


def test_a_turn_that_is_to_be_learned_is_whoever_speaks():
    turns = [TALK[0] | {"train": True}, TALK[1] | {"train": True}]
    assert [message.weight for message in parse_row({"messages": turns}).messages] == [1.0, None]
    with pytest.raises(RowError, match=r"messages\[0\].train is 'yes'"):
        parse_row({"messages": [TALK[0] | {"train": "yes"}]})


@pytest.mark.parametrize(
    ("key", "value", "weight"), [("weight", 0.25, 0.25), ("loss", False, 0.0), ("train", True, None)]
)
def test_what_a_row_says_of_its_loss_is_of_its_answers(key, value, weight):
    turns = [*TALK, *TALK[:1], TALK[1] | {"loss_weight": 2}]
    found = parse_row({"messages": turns, key: value})
    assert [message.weight for message in found.messages] == [None, weight, None, 2.0]


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), 10**400, 1e39, True, "1"])
def test_a_weight_is_a_number_that_a_loss_can_hold(weight):
    with pytest.raises(RowError, match="weight is"):
        parse_row({"messages": TALK, "weight": weight})


def test_a_context_is_part_of_the_question():
    asked = "Which town is the fair in?"
    context = "The wool fair of Lindby has been held in May since 1702."
    item = parse_row({"instruction": asked, "context": context, "response": "Lindby.", "category": "closed_qa"})
    assert item.messages == (Message("user", f"{asked}\n\n{context}"), Message("assistant", "Lindby."))
    assert item.unread == {"category"}


def test_an_image_is_refused_by_name():
    turns = [
        {"role": "user", "content": "<image>\nWhat animal is this?"},
        {"role": "assistant", "content": "A red fox."},
    ]
    with pytest.raises(RowError, match=r"images is not read.*\n  fix: a run of text cannot see it"):
        parse_row({"messages": turns, "images": ["fox.jpg"]})


def test_ids_of_tool_calls_and_names_reach_the_template():
    call = {"id": "abcdef123", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    result = {"role": "tool", "tool_call_id": "abcdef123", "name": "weather", "content": "rain"}
    row = {"messages": [TALK[0], {"role": "assistant", "content": None, "tool_calls": [call]}, result, TALK[1]]}
    item = parse_row(row)
    assert item.messages[1].tool_calls == (ToolCall("weather", {"city": "Oslo"}, "abcdef123"),) and not item.unread
    seen = template_input(item)["messages"]
    assert seen[1]["tool_calls"][0]["id"] == seen[2]["tool_call_id"] == "abcdef123" and seen[2]["name"] == "weather"


@pytest.mark.parametrize("name", ["<|im_end|>", "a\nb", "x" + chr(0x100000), "[INST]", 7])
def test_a_name_that_could_be_taken_for_something_else_is_refused(name):
    with pytest.raises(RowError, match=r"messages\[0\].name is"):
        parse_row({"messages": [TALK[0] | {"name": name}]})


SYSTEM = Message("system", "s")


@pytest.mark.parametrize(("row", "turns", "unread"), [
    ({"query": "q", "response": "a"}, (ASK, SAY), ()),
    ({"system_prompt": "s", "question": "q", "response": "a"}, (SYSTEM, ASK, SAY), ()),
    ({"conversations": ["q", "a", "q2", "a2"]}, (ASK, SAY, Message("user", "q2"), Message("assistant", "a2")), ()),
    ({"conversation": TALK}, (ASK, SAY), ()),
    ({"problem": "p", "solution": "s"}, (Message("user", "p"), Message("assistant", "s")), ()),
    # MetaMathQA, OpenOrca, LMSYS, Magicoder, NuminaMath, Hermes
    ({"query": "q", "response": "a", "type": "GSM", "original_question": "o"}, (ASK, SAY),
     ("type", "original_question")),
    ({"id": "1", "system_prompt": "", "question": "q", "response": "a"}, (ASK, SAY), ("id",)),
    ({"conversation": TALK, "model": "m", "turn": 1, "redacted": False}, (ASK, SAY), ("model", "turn", "redacted")),
    ({"lang": "py", "raw_index": 1, "problem": "q", "solution": "a"}, (ASK, SAY), ("lang", "raw_index")),
    ({"problem": "q", "solution": "a", "answer": "4"}, (ASK, SAY), ("answer",)),
    ({"messages": TALK, "system": "s", "prompt": "p"}, (SYSTEM, ASK, SAY), ("prompt",)),
])  # fmt: skip
def test_widespread_layouts_need_no_setting(row, turns, unread):
    item = parse_row(row)
    assert item.messages == turns and item.unread == set(unread)


def test_xlams_answers_are_calls_of_its_tools():
    row = {"id": 0, "query": "q", "tools": json.dumps([{"name": "f", "description": "d", "parameters": {}}]),
           "answers": json.dumps([{"name": "f", "arguments": {"x": 1}}])}  # fmt: skip
    item = parse_row(row)
    assert item.messages == (ASK, Message("assistant", "", None, (ToolCall("f", {"x": 1}),))) and len(item.tools) == 1


@pytest.mark.parametrize(("row", "what"), [
    ({"instruction": "q", "output": "a", "response": "b"}, "output and response are both filled"),
    ({"messages": TALK, "conversations": TALK}, "messages and conversations are both filled"),
    ({"messages": [{"role": "system", "content": "x"}, *TALK], "system": "y"}, "two system prompts"),
    ({"instruction": "q", "output": "a", "history": "no pairs"}, "history is not a list of pairs"),
    ({"instruction": "q", "output": "a", "history": [3]}, "history[0] is not a pair"),
])  # fmt: skip
def test_what_could_be_meant_in_two_ways_is_refused(row, what):
    with pytest.raises(RowError) as caught:
        parse_row(row)
    assert what in caught.value.what and caught.value.reason == "bad_row"


# Columns


def test_columns_say_which_part_stands_where():
    row = {"query": "q", "reply": {"text": "a", "by": "m"}, "meta": {"system": "s", "loss": 0.5}, "prompt": "not this"}
    columns = {"prompt": "query", "completion": "reply.text", "system": "meta.system", "weight": "meta.loss"}
    item = parse_row(row, columns=columns)
    assert item.messages == (SYSTEM, ASK, Message("assistant", "a", weight=0.5)) and item.unread == {"prompt"}
    assert parse_row({"body": "t"}, columns={"text": "body"}).text == "t"
    assert parse_row({"dialog": ["q", "a"]}, columns={"messages": "dialog"}) == Conversation((ASK, SAY))
    with pytest.raises(RowError, match=r"there is no column 'reply\.text' for its completion; there are 'query'"):
        parse_row({"query": "q"}, columns=columns)


def test_columns_the_wrong_way_round_are_answered_with_the_right_line():
    with pytest.raises(ValueError, match=r"write columns: \{prompt: query, completion: response\}"):
        Source(path="x", columns={"query": "prompt", "response": "completion"})
    with pytest.raises(ValueError, match="columns"):
        Source(path="x", columns={"prompt": "query", "answer": "response"})
