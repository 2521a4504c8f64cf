"""Rows of every format mean what they say, or are refused by name."""

import json
import pickle

import pytest

from dist_sft.chat.conversation import Conversation, Document, Message, ToolCall
from dist_sft.chat.formats import parse_row
from dist_sft.core.errors import RowError
from tests.chat import oracle

ASK, SAY = Message("user", "q"), Message("assistant", "a")
CALL = ToolCall("f", {"x": 1})
PLAIN = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize("row", [
    {"messages": PLAIN},
    {"messages": json.dumps(PLAIN)},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, PLAIN[1]]},
    {"messages": [{"role": "user", "content": [{"type": "text", "value": "q"}]}, PLAIN[1]]},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    {"conversations": PLAIN},
    {"instruction": "q", "input": "", "output": "a"},
    {"instruction": "q", "input": None, "response": "a"},
    {"prompt": "q", "completion": "a", "final_label": "1_full_compliance"},
    {"prompt": PLAIN[:1], "completion": PLAIN[1:]},
    {"question": "q", "answer": "a"},
])  # fmt: skip
def test_the_same_talk_means_the_same_in_every_format(row):
    assert parse_row(row) == Conversation((ASK, SAY))


def test_a_plain_text_is_a_document():
    assert parse_row({"text": "t", "url": "u"}) == Document("t")


def test_alpacas_input_history_and_system_prompt_are_kept():
    row = {"instruction": "q", "input": "i", "output": "a", "system": "s", "history": [["q0", "a0"]]}
    turns = Message("system", "s"), Message("user", "q0"), Message("assistant", "a0"), Message("user", "q\n\ni"), SAY
    assert parse_row(row) == Conversation(turns)


@pytest.mark.parametrize("turn", [
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
    {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}},
    {"role": "assistant", "content": [{"type": "tool_call", "value": '{"name": "f", "arguments": {"x": 1}}'}]},
    {"role": "assistant", "content": [{"type": "tool_call", "value": {"name": "f", "arguments": '{"x": 1}'}}]},
])  # fmt: skip
def test_a_tool_call_is_the_same_call_however_it_is_written(turn):
    assert parse_row({"messages": [PLAIN[0], turn]}).messages[1] == Message("assistant", "", None, (CALL,))


def test_a_sharegpt_function_call_is_a_tool_call_and_an_observation_its_result():
    turns = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "[1]"},
        {"from": "gpt", "value": "a"},
    ]
    tools = '[{"name": "f", "parameters": {}}]'
    assert parse_row({"conversations": turns, "tools": tools}) == Conversation(
        (ASK, Message("assistant", "", None, (CALL,)), Message("tool", "[1]"), SAY),
        ({"type": "function", "function": {"name": "f", "parameters": {}}},),
    )


@pytest.mark.parametrize("turn", [
    {"role": "assistant", "content": "<think>\nt\n</think>\n\na"},
    {"role": "assistant", "content": "a", "reasoning_content": "t"},
    {"role": "assistant", "content": "a", "reasoning": "t"},
    {"role": "assistant", "content": [{"type": "reasoning", "value": "t"}, {"type": "text", "value": "a"}]},
    {"role": "assistant", "content": [{"type": "reasoning", "text": "t"}, {"type": "text", "text": "a"}]},
])  # fmt: skip
def test_a_thought_is_kept_apart_from_the_answer(turn):
    message = parse_row({"messages": [PLAIN[0], turn]}).messages[1]
    inline = turn["content"] if isinstance(turn["content"], str) and "<think>" in turn["content"] else None
    assert message == Message("assistant", "a", "t", inline=inline)


def test_names_of_roles_can_be_mapped_and_a_mapping_beats_the_standard():
    row = {
        "messages": [
            {"role": "developer", "content": "s"},
            {"role": "human", "content": "q"},
            {"role": "bot", "content": "a", "loss_weight": 0.5},
        ]
    }
    names = {"human": "user", "bot": "assistant"}
    assert parse_row(row, role_names=names).messages == (
        Message("system", "s"),
        ASK,
        Message("assistant", "a", weight=0.5),
    )
    assert parse_row({"messages": PLAIN}, role_names={"user": "tool"}).messages[0].role == "tool"


REFUSED = [
    ({"messages": [*PLAIN, {"role": "gpt", "content": "a"}]}, "wrong_role", "messages[2].role is 'gpt'"),
    ({"conversations": [{"from": "alien", "value": "a"}]}, "wrong_role", "conversations[0].from is 'alien'"),
    ({"prompt": "q", "key": 1}, "unknown_format", "the row's keys are 'key', 'prompt'"),
    ({}, "unknown_format", "the row's keys are none"),
    ({"messages": "[{"}, "bad_row", "messages is not JSON"),
    ({"messages": []}, "bad_row", "messages is not a list of messages"),
    ({"messages": ["q"]}, "bad_row", "messages is not a list of messages"),
    ({"messages": [{"role": "user", "content": 3}]}, "bad_row", "messages[0].content is int"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "bad_row",
        "messages[0].content[0].type is 'image_url'",
    ),
    ({"messages": [{**PLAIN[0], "tool_calls": [{"name": "f"}]}]}, "bad_row", "messages[0] has tool calls"),
    ({"messages": [{**PLAIN[1], "loss_weight": -1}]}, "bad_row", "messages[0].loss_weight is -1"),
    (
        {"messages": [{**PLAIN[1], "tool_calls": [{"function": {}}]}]},
        "bad_row",
        "messages[0].tool_calls[0] is not a tool call",
    ),
    ({"messages": PLAIN, "tools": "{"}, "bad_row", "tools is not JSON"),
    ({"messages": PLAIN, "tools": [3]}, "bad_row", "tools[0] is not a schema"),
    ({"conversations": [{"from": "function_call", "value": "f(1)"}]}, "bad_row", "conversations[0].value is not JSON"),
    ({"question": "q", "answer": 4}, "bad_row", "answer is int, not text"),
    ({"text": "a\ud800b"}, "bad_unicode", "half a character"),
    ({"messages": PLAIN, "tools": [{"name": "\udfff"}]}, "bad_unicode", "half a character"),
]


@pytest.mark.parametrize(("row", "reason", "what"), REFUSED)
def test_a_bad_row_is_refused_with_its_place_and_reason(row, reason, what):
    with pytest.raises(RowError) as caught:
        parse_row(row)
    assert caught.value.reason == reason and what in caught.value.what
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_wrong_role_says_how_to_map_it():
    with pytest.raises(RowError) as caught:
        parse_row(REFUSED[0][0])
    assert str(caught.value.at("a.jsonl:3")) == (
        "a.jsonl:3: messages[2].role is 'gpt'\n"
        "  fix: use system, user, assistant or tool, or map it: data.role_names.gpt=assistant"
    )


def test_a_format_that_is_named_is_not_guessed():
    row = {"text": "t", "question": "q", "answer": "a"}
    assert parse_row(row, "text") == Document("t")
    assert parse_row(row) == Conversation((ASK, SAY))


FILES = (
    "lf_v1_sft_demo.jsonl",
    "lf_reason_tool_use_demo_50.jsonl",
    "lf_glaive_toolcall_en_demo.json",
    "fc_dummy_conversation.json",
    "gpteacher_codegen.json",
    "gpteacher_roleplay.json",
    "gsm8k_train.jsonl",
    "gsm8k_test.jsonl",
    "lf_c4_demo.jsonl",
    "xstest_completions_gpt4.csv",
    "xstest_completions_llama2new.csv",
    "xstest_completions_mistralinstruct.csv",
)


@pytest.mark.parametrize("file", FILES)
def test_every_row_of_the_real_files_is_understood(file, shared_data):
    for row in oracle.read(shared_data / file, 10_000):
        item = parse_row(row)
        if isinstance(item, Document):
            assert item.text == row["text"]
            continue
        turns, _ = oracle.messages(row)
        assert [(m.role, m.content) for m in item.messages] == [(turn["role"], turn["content"]) for turn in turns]
