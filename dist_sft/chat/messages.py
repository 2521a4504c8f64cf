"""Turns as files hold them (OpenAI `messages`, ShareGPT `conversations`) -> Message.

Whatever a turn holds is either kept or refused by name: nothing in it is dropped without a word.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dist_sft.chat.conversation import Message, Role, ToolCall
from dist_sft.core.errors import RowError

ROLES: dict[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
}  # fmt: skip

SHAREGPT_ROLES: dict[str, Role] = ROLES | {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "function_call": "assistant", "observation": "tool", "function_response": "tool",
}  # fmt: skip

_THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_WEIGHT_KEYS = ("loss_weight", "weight")


def parse_messages(turns: Any, key: str, role_names: Mapping[str, Role]) -> tuple[Message, ...]:
    """OpenAI style: role, content (text, None or parts), tool_calls, reasoning, loss_weight.

    Args:
        turns: the row's value under `key`.
        key: named in errors, e.g. "messages".
        role_names: what a role is called in these files; looked up before the standard names.
    Raises:
        RowError: wrong_role or bad_row.
    """
    return tuple(_openai_turn(turn, f"{key}[{i}]", role_names) for i, turn in enumerate(_turns(turns, key)))


def parse_sharegpt(turns: Any, key: str, role_names: Mapping[str, Role]) -> tuple[Message, ...]:
    """ShareGPT style: from, value; a function_call's value is JSON: {"name", "arguments"} or a list of these."""
    return tuple(_sharegpt_turn(turn, f"{key}[{i}]", role_names) for i, turn in enumerate(_turns(turns, key)))


def bad_row(what: str, fix: str = "") -> RowError:
    return RowError(what, reason="bad_row", fix=fix)


def from_json(text: str, where: str) -> Any:
    """The value of a JSON text that stands inside a row."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise bad_row(f"{where} is not JSON: {error}", f"write the {where.rsplit('.', 1)[-1]} as JSON") from None


def answer(
    role: Role, content: str, reasoning: str | None, calls: Sequence[ToolCall] = (), weight: float | None = None
) -> Message:
    """A message, with a `<think>...</think>` that opens an assistant's content taken as its reasoning."""
    if role == "assistant" and reasoning is None and (thought := _THOUGHT.match(content)):
        reasoning, content = thought[1].strip("\n"), content[thought.end() :].lstrip("\n")
    return Message(role, content, (reasoning or None) if role == "assistant" else None, tuple(calls), weight)


def _turns(turns: Any, key: str) -> list[Mapping[str, Any]]:
    if isinstance(turns, str):
        turns = from_json(turns, key)
    turns = list(turns) if isinstance(turns, Iterable) and not isinstance(turns, Mapping | bytes) else turns
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
        raise bad_row(f"{key} is not a list of messages")
    return turns


def _openai_turn(turn: Mapping[str, Any], where: str, role_names: Mapping[str, Role]) -> Message:
    role = _role(turn.get("role"), f"{where}.role", ROLES, role_names)
    content, reasoning, calls = _content(turn.get("content"), f"{where}.content")
    calls += _calls(turn.get("tool_calls"), f"{where}.tool_calls")
    calls += _calls(turn.get("function_call"), f"{where}.function_call")
    for key in _REASONING_KEYS:
        if reasoning is None and turn.get(key) is not None:
            reasoning = _text(turn[key], f"{where}.{key}")
    if role != "assistant" and (calls or reasoning):
        raise bad_row(
            f"{where} has {'tool calls' if calls else 'reasoning'}, but its role is {role!r}",
            "only an assistant reasons and calls tools: give that part a turn of its own",
        )
    return answer(role, content, reasoning, calls, _weight(turn, where))


def _sharegpt_turn(turn: Mapping[str, Any], where: str, role_names: Mapping[str, Role]) -> Message:
    name = turn.get("from")
    role = _role(name, f"{where}.from", SHAREGPT_ROLES, role_names)
    if name == "function_call":
        value = turn.get("value")
        thought = _THOUGHT.match(value) if isinstance(value, str) else None
        calls = _calls(value[thought.end() :] if thought and isinstance(value, str) else value, f"{where}.value")
        return Message(role, "", (thought[1].strip("\n") or None) if thought else None, calls, _weight(turn, where))
    return answer(role, _text(turn.get("value"), f"{where}.value"), None, (), _weight(turn, where))


def _role(name: Any, where: str, known: Mapping[str, Role], role_names: Mapping[str, Role]) -> Role:
    role = (role_names.get(name) or known.get(name)) if isinstance(name, str) else None
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


def _weight(turn: Mapping[str, Any], where: str) -> float | None:
    for key in _WEIGHT_KEYS:
        value = turn.get(key)
        if value is None:
            continue
        if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise bad_row(f"{where}.{key} is {value!r}", "use a number, 0 or more")
        return float(value)
    return None


def _content(value: Any, where: str) -> tuple[str, str | None, tuple[ToolCall, ...]]:
    """Text, reasoning and tool calls of a content: text, None, or parts in order."""
    if value is None or isinstance(value, str):
        return value or "", None, ()
    if not isinstance(value, Iterable) or isinstance(value, Mapping | bytes):
        raise bad_row(f"{where} is {type(value).__name__}, not text or a list of parts")
    texts: list[str] = []
    thoughts: list[str] = []
    calls: tuple[ToolCall, ...] = ()
    for i, part in enumerate(value):
        here = f"{where}[{i}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        held = part.get("value", part.get(kind)) if isinstance(part, Mapping) and kind else None
        if kind == "tool_call":
            calls += _calls(held, here)
        elif kind in ("reasoning", "thinking"):
            thoughts.append(_text(held if held is not None else part.get("text"), here))
        elif kind == "text":
            texts.append(_text(held, here))
        else:
            raise bad_row(f"{here}.type is {kind!r}", "use text, reasoning or tool_call parts")
    return "".join(texts), "".join(thoughts) if thoughts else None, calls


def _calls(value: Any, where: str) -> tuple[ToolCall, ...]:
    """Tool calls: one or a list; each JSON text or an object, OpenAI's {"function": {...}} or its inside."""
    if value is None:
        return ()
    if isinstance(value, str):
        value = from_json(value, where)
    if isinstance(value, Iterable) and not isinstance(value, Mapping | str):
        return tuple(call for i, one in enumerate(value) for call in _calls(one, f"{where}[{i}]"))
    inside = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(inside, Mapping) or not isinstance(inside.get("name"), str) or not inside["name"].strip():
        raise bad_row(f"{where} is not a tool call", 'use {"name": ..., "arguments": {...}}')
    return (ToolCall(inside["name"], _arguments(inside.get("arguments"), f"{where}.arguments")),)


def _arguments(value: Any, where: str) -> dict[str, Any] | str:
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return dict(value)
    if not isinstance(value, str):
        raise bad_row(f"{where} is {type(value).__name__}, not an object")
    try:
        parsed = json.loads(value)
    except ValueError:
        return value
    return parsed if isinstance(parsed, dict) else value
