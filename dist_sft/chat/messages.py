"""Turns as files hold them (OpenAI `messages`, ShareGPT `conversations`) -> Message.

Whatever a turn holds is either kept or refused by name: nothing in it is dropped without a word.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dist_sft.chat.conversation import Message, Role, ToolCall
from dist_sft.chat.fields import CHANGES_LEARNING, KNOWN, Fields, listed
from dist_sft.chat.layouts import CALLING, turns_of
from dist_sft.config.section import HEAVIEST
from dist_sft.core.errors import RowError

ROLES: dict[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
    "model": "assistant", "chatbot": "assistant", "function": "tool", "ipython": "tool",
}  # fmt: skip

SHAREGPT_ROLES: dict[str, Role] = ROLES | dict.fromkeys(CALLING, "assistant") | {
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "bot": "assistant", "ai": "assistant",
    "observation": "tool", "function_response": "tool", "function-response": "tool", "tool_response": "tool",
}  # fmt: skip

_THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_WEIGHT_KEYS = ("loss_weight", "weight")
_TRAINED_KEYS = ("loss", "train", "training", "trainable", "learn")
_NAME = re.compile(r"[\w .:/@+=#-]+")


def parse_turns(turns: Any, key: str, role_names: Mapping[str, Role], unread: set[str]) -> tuple[Message, ...]:
    """Turns in OpenAI's style: role, content (text, None or parts), tool_calls, reasoning, loss_weight; in ShareGPT's:
    from, value, where a function_call's value is JSON: {"name", "arguments"} or a list of these; in any that `layouts`
    knows; or plain texts that alternate, the user's first.

    Args:
        turns: the row's value under `key`.
        key: named in errors, e.g. "messages".
        role_names: what a role is called in these files; looked up before the standard names.
        unread: gets the keys of turns that hold something and say nothing here, as "messages[].id".
    Raises:
        RowError: wrong_role, bad_row or key_not_read.
    """
    found = turns_of(turns)
    if isinstance(turns, str) and found is None:
        from_json(turns, key)
    if not found or (len(found) == 1 and isinstance(found[0], str)):
        raise bad_row(f"{key} is not a list of messages")
    if all(isinstance(turn, str) for turn in found):
        return parse_alternating(found)
    messages = []
    for i, turn in enumerate(found):
        if not isinstance(turn, Mapping):
            raise bad_row(f"{key} is not a list of messages")
        fields = Fields(turn, f"{key}[{i}]")
        if "role" not in turn and "from" not in turn:
            held = ", ".join(map(str, turn)) or "nothing"
            raise bad_row(f"{key}[{i}] has no role; it holds {held}", "write role and content in each message")
        messages.append((_openai_turn if "role" in turn else _sharegpt_turn)(fields, role_names))
        unread.update(f"{key}[].{name}" for name in fields.rest())
        _refuse_blank(messages[-1], fields)
    return tuple(messages)


def parse_alternating(texts: Sequence[str]) -> tuple[Message, ...]:
    """Plain texts: a user's, an assistant's, and so on."""
    return tuple(answer(("user", "assistant")[i % 2], text, None) for i, text in enumerate(texts))


def _refuse_blank(message: Message, fields: Fields) -> None:
    """A turn without a content that holds something else is of a layout that nobody knows."""
    held = fields.taken
    if message.tool_calls or message.reasoning or any(held.get(key) is not None for key in ("content", "value")):
        return
    unread = [name for name in fields.rest() if name not in KNOWN]
    if unread:
        raise bad_row(f"{fields.where} has no content, but {', '.join(unread)}", "write its text as content")


def bad_row(what: str, fix: str = "") -> RowError:
    return RowError(what, reason="bad_row", fix=fix)


def from_json(text: str, where: str) -> Any:
    """The value of a JSON text that stands inside a row."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise bad_row(f"{where} is not JSON: {error}", f"write the {where.rsplit('.', 1)[-1]} as JSON") from None


def answer(
    role: Role, content: str, reasoning: str | None, calls: Sequence[ToolCall] = (), weight: float | None = None
) -> Message:
    """A message, with a `<think>...</think>` that opens an assistant's content taken as its reasoning."""
    inline = None
    if role == "assistant" and reasoning is None and (thought := _THOUGHT.match(content)):
        inline = content
        reasoning, content = thought[1].strip("\n"), content[thought.end() :].lstrip("\n")
    reasoning = (reasoning or None) if role == "assistant" else None
    return Message(role, content, reasoning, tuple(calls), weight, inline=inline)


def _openai_turn(turn: Fields, role_names: Mapping[str, Role]) -> Message:
    where = turn.where
    role = _role(turn.take("role"), f"{where}.role", ROLES, role_names)
    content, reasoning, calls = _content(turn)
    calls += parse_calls(turn.take("tool_calls"), f"{where}.tool_calls")
    calls += parse_calls(turn.take("function_call"), f"{where}.function_call")
    for key in _REASONING_KEYS:
        value = turn.take(key)
        if reasoning is None and value is not None:
            reasoning = _text(value, f"{where}.{key}")
    if role != "assistant" and (calls or reasoning):
        raise bad_row(
            f"{where} has {'tool calls' if calls else 'reasoning'}, but its role is {role!r}",
            "only an assistant reasons and calls tools: give that part a turn of its own",
        )
    message = answer(role, content, reasoning, calls, weight_of(turn, role))
    name, call_id = (_name(turn.take(key), turn.place(key)) for key in ("name", "tool_call_id"))
    return replace(message, name=name, call_id=call_id) if name or call_id else message


def _sharegpt_turn(turn: Fields, role_names: Mapping[str, Role]) -> Message:
    name, value, where = turn.take("from"), turn.take("value"), turn.where
    role = _role(name, f"{where}.from", SHAREGPT_ROLES, role_names)
    weight = weight_of(turn, role)
    if name in CALLING:
        thought = _THOUGHT.match(value) if isinstance(value, str) else None
        calls = parse_calls(value[thought.end() :] if thought and isinstance(value, str) else value, f"{where}.value")
        return Message(role, "", (thought[1].strip("\n") or None) if thought else None, calls, weight)
    return answer(role, _text(value, f"{where}.value"), None, (), weight)


def _role(name: Any, where: str, known: Mapping[str, Role], role_names: Mapping[str, Role]) -> Role:
    role = (role_names.get(name) or known.get(name) or known.get(name.lower())) if isinstance(name, str) else None
    if role is None:
        raise RowError(
            f"{where} is {name!r}",
            reason="wrong_role",
            fix=f"use system, user, assistant or tool, or map it: data.role_names.{name}=assistant",
        )
    return role


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise bad_row(f"{where} is {type(value).__name__}, not text")
    return value


def weight_of(fields: Fields, role: Role) -> float | None:
    """The loss weight that a turn has, or the answers of a row; None: what data.loss says."""
    weight = None
    for key in _WEIGHT_KEYS:
        value = fields.take(key)
        if value is None or weight is not None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < HEAVIEST:
            raise bad_row(f"{fields.place(key)} is {value!r}", f"use a number, at least 0 and below {HEAVIEST:g}")
        weight = float(value)
    for key in _TRAINED_KEYS:
        value = fields.take(key)
        if value is None:
            continue
        if not isinstance(value, bool) and value not in (0, 1):
            raise bad_row(f"{fields.place(key)} is {value!r}", "use true or false; loss_weight for a number")
        if not value:
            return 0.0
        if weight is None and role != "assistant":
            weight = 1.0
    return weight


def _name(value: Any, where: str) -> str | None:
    """A name, or an id. Templates write it as it is, so it holds nothing that could be taken for a control token."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise bad_row(f"{where} is {value!r}", "use letters, digits, blanks and . : / @ + = # - _")
    return value


def _content(turn: Fields) -> tuple[str, str | None, tuple[ToolCall, ...]]:
    """Text, reasoning and tool calls of a content: text, None, or parts in order."""
    value, where = turn.take("content"), turn.place("content")
    if value is None or isinstance(value, str):
        return value or "", None, ()
    parts = listed(value)
    if parts is None:
        raise bad_row(f"{where} is {type(value).__name__}, not text or a list of parts")
    texts: list[str] = []
    thoughts: list[str] = []
    calls: tuple[ToolCall, ...] = ()
    for i, part in enumerate(parts):
        here = f"{where}[{i}]"
        fields = turn.inside("content", part, i) if isinstance(part, Mapping) else Fields({})
        kind = fields.take("type")
        kind = kind if isinstance(kind, str) else None
        held = next((one for key in ("value", kind, "text") if key and (one := fields.take(key)) is not None), None)
        if kind == "tool_call":
            calls += parse_calls(held, here)
        elif kind in ("reasoning", "thinking"):
            thoughts.append(_text(held, here))
        elif kind == "text":
            texts.append(_text("" if held is None and "text" in fields.values else held, here))
        else:
            raise bad_row(
                f"{here}.type is {kind!r}", CHANGES_LEARNING.get(kind or "", "use text, reasoning or tool_call parts")
            )
    return "".join(texts), "".join(thoughts) if thoughts else None, calls


def parse_calls(value: Any, where: str) -> tuple[ToolCall, ...]:
    """Tool calls: one or a list; each JSON text or an object, OpenAI's {"function": {...}} or its inside."""
    if value is None:
        return ()
    if isinstance(value, str):
        value = from_json(value, where)
    if (several := listed(value)) is not None:
        return tuple(call for i, one in enumerate(several) for call in parse_calls(one, f"{where}[{i}]"))
    inside = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(inside, Mapping) or not isinstance(inside.get("name"), str) or not inside["name"].strip():
        raise bad_row(f"{where} is not a tool call", 'use {"name": ..., "arguments": {...}}')
    arguments = _arguments(inside.get("arguments", inside.get("parameters")), f"{where}.arguments")
    return (ToolCall(inside["name"], arguments, _name(value.get("id"), f"{where}.id")),)


def _arguments(value: Any, where: str) -> dict[str, Any] | str:
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return dict(value)
    if not isinstance(value, str):
        raise bad_row(f"{where} is {type(value).__name__}, not an object")
    try:
        parsed = json.loads(value)
        parsed = json.loads(parsed) if isinstance(parsed, str) else parsed  # some of OpenAI's examples have it twice
    except (ValueError, RecursionError):
        return value
    return parsed if isinstance(parsed, dict) else value
