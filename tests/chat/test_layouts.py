"""Rows as publishers write them mean what these mean by them, without a setting; or are refused with the setting.

All rows are made up. docs/data_layouts.md names files of ten publishers that were read, and what their own code does.
"""

import contextlib
import json
import time

import pytest

from dist_sft.chat.conversation import Conversation, Message
from dist_sft.chat.fields import told
from dist_sft.chat.formats import parse_row
from dist_sft.chat.layouts import calls_in, loose_json
from dist_sft.core.errors import RowError

ASK, SAY, SYSTEM = Message("user", "q"), Message("assistant", "a"), Message("system", "s")
TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SCHEMA = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALLED = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]}
THOUGHTFUL = (ASK, Message("assistant", "a", "t"))
QUOTED = """{"name": "f", "arguments": '{"x": 1}'}"""
TELLS = f"You call functions. <tools> [{json.dumps(SCHEMA)}] </tools>"

LAYOUTS = {
    "OpenOrca": ({"id": "1", "system_prompt": "s", "question": "q", "response": "a"}, (SYSTEM, ASK, SAY), ()),
    "Firefly": ({"conversation_id": 1, "category": "c", "conversation": [{"human": "q", "assistant": "a"}]},
                (ASK, SAY), ()),
    "Firefly, on the hub": ({"kind": "k", "input": "q", "target": "a"}, (ASK, SAY), ()),
    "XTuner": ({"conversation": [{"system": "s", "input": "q", "output": "a"},
                                 {"input": "q2", "output": "a2", "output_with_loss": False}]},
               (SYSTEM, ASK, SAY, Message("user", "q2"), Message("assistant", "a2", weight=0.0)), ()),
    "Capybara": ({"source": "s", "conversation": [{"input": "q", "output": "a"}]}, (ASK, SAY), ()),
    "UltraChat": ({"id": "0", "data": ["q", "a"]}, (ASK, SAY), ()),
    "LIMA": ({"conversations": ["q", "a"], "source": "s"}, (ASK, SAY), ()),
    "no_robots": ({"prompt": "q", "prompt_id": "x", "messages": TALK, "category": "c"}, (ASK, SAY), ()),
    "Alpaca, on the hub": ({"instruction": "q", "input": "i", "output": "a",
                            "text": "Below is ... ### Instruction:\nq\n\n### Input:\ni\n\n### Response:\na"},
                           (Message("user", "q\n\ni"), SAY), ()),
    "NuminaMath": ({"source": "s", "problem": "q", "solution": "a", "messages": TALK}, (ASK, SAY), ()),
    "WildChat": ({"conversation": [t | {"language": "English", "toxic": False, "hashed_ip": "1"} for t in TALK],
                  "model": "m", "openai_moderation": [{"x": 1}], "turn": 1}, (ASK, SAY), ()),
    "Open-R1": ({"problem": "p", "generations": ["<think>t</think>a"], "uuid": "u",
                 "messages": [TALK[0], {"role": "assistant", "content": "<think>t</think>a"}]},
                THOUGHTFUL, ("generations", "problem")),
    "OpenThoughts": ({"system": "s", "conversations": [{"from": "user", "value": "q"}, {"from": "assistant",
                      "value": "<|begin_of_thought|>t<|end_of_thought|>a"}]},
                     (SYSTEM, ASK, Message("assistant", "<|begin_of_thought|>t<|end_of_thought|>a")), ()),
    "medical o1": ({"Question": "q", "Complex_CoT": "t", "Response": "a"}, THOUGHTFUL, ()),
    "a thought beside": ({"prompt": "q", "thinking": "t", "completion": "a"}, THOUGHTFUL, ()),
    "Llama-Nemotron": ({"input": TALK[:1], "output": "a", "reasoning": "off", "system_prompt": "s"},
                       (SYSTEM, ASK, SAY), ("reasoning",)),
    "CAMEL": ({"role_1": "x", "sub_topic": "y", "message_1": "q", "message_2": "a"}, (ASK, SAY), ("role_1",)),
    "Aya": ({"inputs": "q", "targets": "a", "language": "eng"}, (ASK, SAY), ()),
    "OpenAI evals": ({"input": TALK[:1], "ideal": "a"}, (ASK, SAY), ()),
    "ms-swift": ({"system": "s", "query": "q", "response": "a", "history": [["q0", "a0"]]},
                 (SYSTEM, Message("user", "q0"), Message("assistant", "a0"), ASK, SAY), ()),
    "TRL": ({"prompt": [{"role": "user", "content": "q0"}, TALK[1], TALK[0]], "completion": TALK[1:]},
            (Message("user", "q0"), Message("assistant", "a", weight=0.0), ASK, SAY), ()),
    "Cohere": ({"messages": [{"role": "System", "content": "s"}, {"role": "User", "content": "q"},
                             {"role": "Chatbot", "content": "a"}]}, (SYSTEM, ASK, SAY), ()),
    "Bedrock": ({"schemaVersion": "v", "system": [{"text": "s"}],
                 "messages": [{"role": t["role"], "content": [{"text": t["content"]}]} for t in TALK]},
                (SYSTEM, ASK, SAY), ()),
    "Gemini": ({"systemInstruction": {"role": "system", "parts": [{"text": "s"}]},
                "contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}]},
               (SYSTEM, ASK, SAY), ()),
    "datasets, by column": ({"conversations": {"from": ["human", "gpt"], "value": ["q", "a"]}}, (ASK, SAY), ()),
    "datasets, Json": ({"messages": [json.dumps(turn) for turn in TALK]}, (ASK, SAY), ()),
    "CSV": ({"conversations": json.dumps([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}])},
            (ASK, SAY), ()),
    "OpenAI Responses": ({"messages": [{"role": "user", "content": [{"type": "input_text", "text": "q"}]},
                                       {"role": "assistant", "content": [{"type": "output_text", "text": "a"}]}]},
                         (ASK, SAY), ()),
}  # fmt: skip


@pytest.mark.parametrize(("row", "turns", "asked"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_widespread_layout_needs_no_setting(row, turns, asked):
    item = parse_row(row)
    assert item == Conversation(turns)
    assert told(item.unread)[1].removeprefix("is ").partition(" to be")[0] == ", ".join(asked)


WITH_TOOLS = {
    "Hermes": {"conversations": [
        {"from": "system", "value": TELLS},
        {"from": "human", "value": "q"},
        {"from": "gpt", "value": "<tool_call>\n{'arguments': {'x': 1}, 'name': 'f'}\n</tool_call>\n"},
        {"from": "tool", "value": '<tool_response>\n{"y": 2}\n</tool_response>\n'},
        {"from": "gpt", "value": "a"},
    ], "tools": json.dumps([SCHEMA]), "category": "c"},
    "Glaive": {
        "system": "SYSTEM: Use these -\n" + json.dumps(SCHEMA["function"], indent=4) + "\n",
        "chat": f"USER: q\n\n\nASSISTANT: <functioncall> {QUOTED} <|endoftext|>"
        '\n\n\nFUNCTION RESPONSE: {"y": 2}\n\n\nASSISTANT: a <|endoftext|>\n\n\n',
    },
    "Glaive, in one text": {"sample":
        f"SYSTEM: Use these -\n{json.dumps(SCHEMA['function'])}\nUSER: q\nASSISTANT: <functioncall> "
        '{"name": "f", "arguments": {"x": 1}}\nFUNCTION RESPONSE: {"y": 2}\nASSISTANT: a'},
    "LLaMA-Factory": {"conversations": [
        {"from": "human", "value": "q"}, {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": '{"y": 2}'}, {"from": "gpt", "value": "a"},
    ], "tools": json.dumps([SCHEMA["function"]])},
    "ToolBench": {"conversations": [
        {"from": "user", "value": "q"}, {"from": "function-call", "value": QUOTED},
        {"from": "function", "value": '{"y": 2}'}, {"from": "assistant", "value": "a"},
    ], "tools": [SCHEMA]},
    "Anthropic": {"messages": [
        TALK[0], {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1",
                                      "content": [{"type": "text", "text": '{"y": 2}'}]}]}, TALK[1],
    ], "tools": [{"name": "f", "input_schema": {"type": "object"}}]},
    "Bedrock": {"messages": [
        TALK[0], {"role": "assistant", "content": [{"toolUse": {"toolUseId": "t1", "name": "f", "input": {"x": 1}}}]},
        {"role": "user", "content": [{"toolResult": {"toolUseId": "t1", "content": [{"json": {"y": 2}}]}}]}, TALK[1],
    ], "tools": [SCHEMA]},
    "Gemini": {"contents": [
        {"role": "user", "parts": [{"text": "q"}]},
        {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"x": 1}}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"y": 2}}}]},
        {"role": "model", "parts": [{"text": "a"}]},
    ], "tools": [{"functionDeclarations": [SCHEMA["function"]]}]},
    "OpenAI, arguments twice": {"messages": [
        TALK[0], {"role": "assistant", "tool_calls": [{"id": "c", "type": "function",
                  "function": {"name": "f", "arguments": json.dumps(json.dumps({"x": 1}))}}]},
        {"role": "tool", "content": '{"y": 2}'}, TALK[1],
    ], "tools": [{"type": "function", **SCHEMA["function"]}], "parallel_tool_calls": False},
}  # fmt: skip


@pytest.mark.parametrize("row", WITH_TOOLS.values(), ids=WITH_TOOLS)
def test_a_call_is_a_call_and_a_result_a_result_in_every_layout(row):
    item = parse_row(row)
    turns = [turn for turn in item.messages if turn.role != "system"]
    assert [turn.role for turn in turns] == ["user", "assistant", "tool", "assistant"]
    assert [(call.name, call.arguments) for call in turns[1].tool_calls] == [("f", {"x": 1})] and not turns[1].content
    assert [turn.content for turn in turns] == ["q", "", '{"y": 2}', "a"]
    called = [call.id for call in turns[1].tool_calls if call.id not in (None, "c")]
    assert called == ([turns[2].call_id] if turns[2].call_id else [])
    told = TELLS in [turn.content for turn in item.messages]
    assert item.tools == (() if told else (SCHEMA,)), "told once: by the system prompt, or by the template"


def test_tools_that_a_system_prompt_does_not_tell_of_reach_the_template():
    row = WITH_TOOLS["Hermes"] | {"tools": json.dumps([SCHEMA, {"type": "function", "function": {"name": "g"}}])}
    assert len(parse_row(row).tools) == 2


def test_calls_stay_text_where_the_template_has_no_place_for_them():
    class Native:
        writes_calls = False

        def reread(self, *_):
            return None

        def own_stop(self, message, _):
            return message

    turns = parse_row(WITH_TOOLS["Hermes"], native=Native()).messages
    assert turns[2].content.startswith("<tool_call>") and not turns[2].tool_calls
    assert turns[3].content.startswith("<tool_response>")


@pytest.mark.parametrize(("text", "found"), [
    ('<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>', ("", 1)),
    ('Let me.\n<tool_call>{"name": "f"}</tool_call>\n<tool_call>{"name": "g"}</tool_call>\n', ("Let me.", 2)),
    ('<tool_call>{"name": "f"}</tool_call> and more', None),
    ("<tool_call>f(1)</tool_call>", None),
    ('<tool_call>{"name": "f"}', None),
    ("Write <tool_call> and </tool_call> around it.", None),
])  # fmt: skip
def test_only_blocks_that_are_calls_are_calls(text, found):
    calls = calls_in(text)
    assert (calls and (calls[0], len(calls[1]))) == found


@pytest.mark.parametrize(
    "text", ["__import__('os')", "(" * 50_000, "{1, 2}", "b'x'", "{'a': open}", "9" * 200_000, "1e999"]
)
def test_what_is_neither_json_nor_plain_python_is_no_value(text):
    assert loose_json(text) is None or text == "1e999"


CALL = '<tool_call>{"name": "f"}</tool_call>'
HOSTILE = [
    CALL * 20_000 + "x", "<tool_call>" * 50_000, "<tool_response>r</tool_response>" * 20_000 + "x", "<tools>" * 50_000,
    "<tools>" + "[" * 100_000 + "</tools>", "<tools>" + "[1, x" * 20_000 + "</tools>",
    '<tool_call>{"name": "f", ' + "\"arguments\": '" * 6_000 + "</tool_call>",
    "USER: q\nASSISTANT: " + "<functioncall> " * 50_000, "ASSISTANT: a\nUSER: q\n" * 20_000,
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_takes_long_to_read(text):
    """Quadratic time would take minutes here."""
    rows = [{"conversations": [{"from": "system", "value": text}, {"from": "human", "value": "q"},
             {"from": "gpt", "value": text}, {"from": "tool", "value": text}], "tools": [SCHEMA]},
            {"system": text, "chat": f"USER: q\nASSISTANT: {text}"}, {"chat": text}]  # fmt: skip
    for row in rows:
        begin = time.process_time()
        with contextlib.suppress(RowError):
            parse_row(row)
        assert time.process_time() - begin < 5


REFUSED = {
    "two answers": ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference",
                    "columns of the source: {prompt: prompt, completion: chosen}"),
    "two talks": ({"chosen": TALK, "rejected": TALK}, "preference", "columns of the source: {messages: chosen}"),
    "StackExchange": ({"question": "q", "response_j": "a", "response_k": "b"}, "preference",
                      "{prompt: question, completion: response_j}"),
    "a second answer": ({"messages": TALK, "rejected_response": "b"}, "preference", "remove rejected_response"),
    "LLaMA-Factory's": ({"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"},
                         "rejected": {"from": "gpt", "value": "b"}}, "preference", "as the last message"),
    "KTO": ({"prompt": "q", "completion": "a", "label": False}, "key_not_read", "keep the rows that are good"),
    "s1K": ({"question": "q", "solution": "s", "attempt": "a", "thinking_trajectories": ["t"]}, "unknown_format",
            "columns: {prompt: question, completion: solution or attempt}"),
    "seed tasks": ({"instruction": "q", "instances": [{"input": "i", "output": "a"}]}, "unknown_format", "row of each"),
    "a message a row": ({"role": "user", "content": "q", "conversation_id": 3}, "unknown_format", "into one row"),
    "MT-bench": ({"question_id": 1, "category": "c", "turns": ["q", "q2"]}, "unknown_format", "columns"),
    "choices": ({"question": "q", "choices": ["a", "b"], "answer": "a"}, "key_not_read", "write it into the prompt"),
    "contents of a corpus": ({"id": 1, "contents": "t"}, "unknown_format", "columns"),
    "ChatGLM3's tools": ({"conversations": [TALK[0], {"role": "tool", "name": "f", "parameters": {"x": 1},
                          "observation": "r"}, TALK[1]]}, "bad_row", "write its text as content"),
    "names of one's own": ({"messages": [{"toy_input": "q", "toy_output": "a"}]}, "bad_row", "write role and content"),
    "two thoughts": ({"prompt": "q", "thinking": "t", "completion": "<think>u</think>a"}, "bad_row", "one of them"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "reason", "fix"), REFUSED.values(), ids=REFUSED)
def test_a_layout_that_could_be_meant_otherwise_is_refused_with_a_way_out(row, reason, fix):
    with pytest.raises(RowError) as caught:
        parse_row(row)
    assert caught.value.reason == reason and fix in caught.value.fix


def test_the_ways_out_lead_somewhere():
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert parse_row(pair, columns={"prompt": "prompt", "completion": "chosen"}) == Conversation((ASK, SAY))
    talks = {"prompt": "q", "chosen": TALK, "rejected": TALK}
    found = parse_row(talks, columns={"messages": "chosen"})
    assert found == Conversation((ASK, SAY)) and found.unread == {"rejected"}
    columns = {"prompt": "question", "completion": "attempt", "reasoning": "thinking_trajectories.0"}
    s1k = parse_row({"question": "q", "solution": "s", "attempt": "a", "thinking_trajectories": ["t"]}, columns=columns)
    assert s1k == Conversation(THOUGHTFUL) and s1k.unread == {"solution"}


def test_what_a_part_holds_besides_is_told_with_its_place():
    part = {"type": "text", "text": "q", "cache_control": {"type": "ephemeral"}}
    assert parse_row({"messages": [{"role": "user", "content": [part]}, TALK[1]]}).unread == {
        "messages[].content[].cache_control"
    }
    with pytest.raises(RowError, match=r"messages\[0\].content\[0\].type is 'image'"):
        parse_row({"messages": [{"role": "user", "content": [{"image": {"format": "png"}}, {"text": "q"}]}, TALK[1]]})
    result = {"type": "tool_result", "tool_use_id": "t", "content": "r", "is_error": True}
    item = parse_row({"messages": [TALK[0], CALLED, {"role": "user", "content": [result]}, TALK[1]]})
    assert item.unread == {"messages[].is_error"}
