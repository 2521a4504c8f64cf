"""Glaive's function calling data: a whole conversation as one text, the schemas of its tools inside its system prompt.

{"system": "SYSTEM: ... {schema} {schema}", "chat": "USER: ... ASSISTANT: <functioncall> {...} FUNCTION RESPONSE: ..."}
"""

import re
from collections.abc import Mapping
from typing import Any

from dist_sft.chat.layouts import found_json, loose_json
from dist_sft.core.errors import RowError

_HEADS = re.compile(r"^[ \t]*(SYSTEM|USER|ASSISTANT|FUNCTION RESPONSE):[ \t]*", re.MULTILINE)
_ROLES = {"SYSTEM": "system", "USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
_END, _CALL = "<|endoftext|>", "<functioncall>"


def is_glaive(text: Any) -> bool:
    """Whether a text is such a conversation: one that begins with a speaker, and in which the assistant speaks."""
    return isinstance(text, str) and bool(_HEADS.match(text.lstrip())) and "ASSISTANT:" in text and "USER:" in text


def glaive_turns(text: str) -> list[dict[str, Any]]:
    """The turns as OpenAI writes them. Raises RowError for a call that is no JSON."""
    pieces = _HEADS.split(text)
    return [_turn(head, said.strip()) for head, said in zip(pieces[1::2], pieces[2::2], strict=True)]


def glaive_system(text: str) -> tuple[str, list[Mapping[str, Any]]]:
    """A system prompt without the schemas in it, and these."""
    text = text.strip().removeprefix("SYSTEM:").strip()
    tools: list[Mapping[str, Any]] = []
    rest, place = [], 0
    for value, start, end in found_json(text):
        if isinstance(value, Mapping) and isinstance(value.get("name"), str):
            tools.append(value)
            rest.append(text[place:start])
            place = end
    return "".join([*rest, text[place:]]).strip(), tools


def _turn(head: str, said: str) -> dict[str, Any]:
    said = said.removesuffix(_END).rstrip()
    turn: dict[str, Any] = {"role": _ROLES[head], "content": said}
    if head != "ASSISTANT" or _CALL not in said:
        return turn
    said, _, call = said.partition(_CALL)
    value = loose_json(call)
    if not isinstance(value, Mapping):
        raise RowError(
            f"what follows {_CALL} is not JSON: {call.strip()[:80]!r}", reason="bad_row", fix="write the call as JSON"
        )
    return {**turn, "content": said.rstrip(), "tool_calls": [value]}
