"""The texts of a row, where they stand in a rendered one, and the forms in which a template may be given the row."""

import json
import re
from collections.abc import Iterator
from typing import Any

Turn = dict[str, Any]

# where texts stand


def begin_of(text: str, whole: str) -> int:
    """Where a text stands, as it is or as JSON writes it; -1: nowhere."""
    return next((at for form in _written(text) if (at := whole.find(form)) >= 0), -1)


def end_of(text: str, whole: str) -> int:
    """Behind a text; behind the last leaf of a JSON object that is written anew. 0: it is not there."""
    begin = begin_of(text, whole)
    if begin >= 0:
        return begin + next(len(form) for form in _written(text) if whole.startswith(form, begin))
    try:
        leaves = _leaves(json.loads(text))
    except ValueError:
        return 0
    ends = [end_of(leaf, whole) for leaf in leaves]
    return max(ends) if ends and all(ends) else 0


def _written(text: str) -> tuple[str, ...]:
    return text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]


def _leaves(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        return [leaf for inner in (value.values() if isinstance(value, dict) else value) for leaf in _leaves(inner)]
    return [value if isinstance(value, str) else json.dumps(value)]


# what a row says


def words_of(turn: Turn) -> list[str]:
    """Thoughts, content and the values in calls, without blanks at their ends."""
    content = turn["content"]
    parts = [part["text"] for part in content] if isinstance(content, list) else [content or ""]
    spoken = [piece.strip() for part in parts for piece in re.split(r"</?think>", part) if piece.strip()]
    values = [str(value) for call in turn.get("tool_calls", ()) for value in arguments_of(call).values()]
    return [*thoughts_of(turn), *spoken, *values]


def names_of(turn: Turn) -> list[str]:
    """The names in calls. They stand in the schemas of tools, too."""
    return [text for call in turn.get("tool_calls", ()) for text in (call["function"]["name"], *arguments_of(call))]


def thoughts_of(turn: Turn) -> list[str]:
    content = turn["content"]
    inside = re.findall(r"<think>(.*?)</think>", content, re.DOTALL) if isinstance(content, str) else []
    return [text.strip() for text in (turn.get("reasoning_content"), *inside) if text and text.strip()]


def arguments_of(call: Turn) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    return dict(json.loads(arguments) if isinstance(arguments, str) else arguments)


def schema_texts(tools: list[Any] | None) -> Iterator[str]:
    for tool in tools or ():
        function = tool["function"]
        yield from (function["name"], function["description"])
        for name, described in function["parameters"]["properties"].items():
            yield from (name, described["description"])


# forms of a row


def with_joined_parts(turns: list[Turn]) -> list[Turn]:
    """Parts of a content as one text."""

    def joined(content: Any) -> Any:
        return "".join(part["text"] for part in content) if isinstance(content, list) else content

    return [turn | {"content": joined(turn["content"])} for turn in turns]


def with_parts(turns: list[Turn]) -> list[Turn]:
    """A content that is text as a list of parts."""

    def parts(content: Any) -> Any:
        return content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []

    return [turn | {"content": parts(turn["content"])} for turn in turns]


def with_arguments_as_text(turns: list[Turn]) -> list[Turn]:
    """The arguments of calls as JSON text, as OpenAI's interface has them."""

    def call(one: Turn) -> Turn:
        return one | {"function": one["function"] | {"arguments": json.dumps(one["function"]["arguments"])}}

    return [
        turn | {"tool_calls": [call(one) for one in turn["tool_calls"]]} if "tool_calls" in turn else turn
        for turn in turns
    ]


def with_other_emptiness(turns: list[Turn]) -> list[Turn]:
    """An empty content beside calls written the other way: None for "", "" for None."""
    other = {"": None, None: ""}
    empty = [bool(turn.get("tool_calls")) and not turn["content"] for turn in turns]
    return [turn | {"content": other[turn["content"]]} if e else turn for turn, e in zip(turns, empty, strict=True)]


def with_thoughts_apart(turns: list[Turn]) -> list[Turn]:
    """A thought that opens a content as reasoning_content."""

    def apart(turn: Turn) -> Turn:
        content = turn["content"]
        found = re.match(r"<think>\s*(.*?)\s*</think>\s*", content, re.DOTALL) if isinstance(content, str) else None
        return turn | {"content": content[found.end() :], "reasoning_content": found[1]} if found else turn

    return [apart(turn) for turn in turns]
