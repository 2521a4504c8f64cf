"""How publishers write a conversation -> turns as OpenAI or ShareGPT writes them, which `messages` reads.

Nothing is left out here: a key that no layout knows stays in its turn, where `fields` tells or refuses it.
"""

import ast
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from dist_sft.chat.fields import is_filled, listed

PAIRS = (
    ("human", "assistant"), ("user", "assistant"), ("human", "gpt"), ("human", "bot"), ("input", "output"),
    ("instruction", "output"), ("prompt", "completion"), ("prompt", "response"), ("question", "answer"),
    ("query", "response"),
)  # fmt: skip
"""What question and answer are called in a list of both (Firefly, XTuner, Capybara)."""
CALLING = ("function_call", "function-call", "tool_call", "tool-call")
"""ShareGPT's names for a turn that is one call, or a list of them."""

_QUOTED = re.compile(r"""("(?:arguments|parameters)"\s*:\s*)'""")
_OPENS_JSON = re.compile(r"[\[{]")
_PART_KINDS = {"input_text": "text", "output_text": "text"}
_LONGEST = 100_000
"""Characters of what is read as something like JSON: Python's parser is not made for more."""
_MOST_TRIES = 1000
"""Brackets in a text that begin no JSON, after which it is taken for a text without."""


def turns_of(value: Any) -> list[Any] | None:
    """The turns of a row as mappings with `role` or `from`, or as plain texts; None where it is no list of turns.

    Args:
        value: a list; JSON text of one; a mapping of equally long lists, as older `datasets` write a list of objects.
    """
    turns = listed(_decoded(value))
    if turns is None:
        return None
    if all(isinstance(turn, str) for turn in turns):
        decoded = [_decoded(turn) for turn in turns]
        turns = decoded if all(_is_turn(turn) for turn in decoded) else turns
    return [one for turn in turns for one in (_spread(turn) if isinstance(turn, Mapping) else [turn])]


def calls_in(text: str) -> tuple[str, list[Any]] | None:
    """What is said, and the calls behind it, of an answer that ends with <tool_call> blocks; None for another.

    Each block must be one call in JSON, or as Python writes it (Hermes).
    """
    found = _blocks(text, "tool_call")
    calls = [loose_json(block) for block in found[1]] if found else []
    return (found[0], calls) if found and all(map(_is_call, calls)) else None


def results_in(text: str) -> list[str] | None:
    """The results in a turn that is <tool_response> blocks and nothing else; None for another."""
    found = _blocks(text, "tool_response")
    return found[1] if found and not found[0] else None


def _blocks(text: str, tag: str) -> tuple[str, list[str]] | None:
    """The text before the first block, and what stands in each; None where anything else follows."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    said, found, rest = text.partition(opening)
    if not found or not text.rstrip().endswith(closing):
        return None
    blocks = []
    while rest:
        block, closed, rest = rest.partition(closing)
        rest = rest.lstrip()
        if not closed or (rest and not rest.startswith(opening)):
            return None
        blocks.append(block.strip())
        rest = rest.removeprefix(opening)
    return said.rstrip(), blocks


def names_in_tools_block(text: str) -> frozenset[str]:
    """Names of the tools that a system prompt describes between <tools> and </tools>, in JSON."""
    _, opened, rest = text.partition("<tools>")
    inside, closed, _ = rest.partition("</tools>")
    values = list(json_objects(inside)) if opened and closed else []
    return frozenset(name for value in values if isinstance(name := _function(value).get("name"), str))


def json_objects(text: str) -> Iterator[Mapping[str, Any]]:
    """The objects in a text, one behind the other, or inside lists; nothing of a text that is something else, too."""
    for value, _, _ in found_json(text):
        yield from (one for one in (listed(value) or [value]) if isinstance(one, Mapping))


def found_json(text: str) -> Iterator[tuple[Any, int, int]]:
    """Each JSON object or list in a text that is not inside another: value, start, end."""
    decoder, place, tries = json.JSONDecoder(), 0, 0
    while tries < _MOST_TRIES and (start := _OPENS_JSON.search(text, place)) is not None:
        try:
            value, place = decoder.raw_decode(text, start.start())
            yield value, start.start(), place
        except ValueError:
            place, tries = start.end(), tries + 1
        except RecursionError:
            return


def loose_json(text: str) -> Any:
    """The value of a JSON text, or of one that a language model or Python's `str` wrote for JSON; None for another.

    Glaive writes the arguments of a call as JSON between single quotes; Hermes writes whole calls as Python does.
    """
    text = text.strip()
    for read in (json.loads, _with_quoted_arguments, _as_python):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None


def _with_quoted_arguments(text: str) -> Any:
    found, end = _QUOTED.search(text), text.rfind("'")
    if found is None or end < found.end() or len(text) > _LONGEST:
        raise ValueError("no arguments between single quotes")
    inside = text[found.end() : end].replace("\\'", "'")
    arguments = json.loads(inside) if inside.strip() else {}
    return json.loads(f"{text[: found.start()]}{found[1]}{json.dumps(arguments)}{text[end + 1 :]}")


def _as_python(text: str) -> Any:
    if len(text) > _LONGEST:
        raise ValueError("too long")
    value = ast.literal_eval(text)
    return json.loads(json.dumps(value))  # a set, or bytes, is no JSON


def _decoded(value: Any) -> Any:
    """A list or an object that was written as JSON text, or as lists by key."""
    if isinstance(value, str):
        if not value.lstrip().startswith(("[", "{")):
            return value
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return value
    columns = {key: listed(inner) for key, inner in value.items()} if isinstance(value, Mapping) else {}
    lists = [inner for inner in columns.values() if inner is not None]
    if _is_turn(value) and len(lists) == len(columns) and len({len(inner) for inner in lists}) == 1:
        return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]
    return value


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and ("role" in value or "from" in value)


def _is_call(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(_function(value).get("name"), str)


def _function(value: Mapping[str, Any]) -> Mapping[str, Any]:
    inside = value.get("function", value)
    return inside if isinstance(inside, Mapping) else {}


def _spread(turn: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A turn as one or several of OpenAI's or ShareGPT's."""
    if "from" in turn and "role" not in turn:
        return [_of_sharegpt(turn)]
    if "role" in turn:
        return _of_roles(turn)
    for asked, said in PAIRS:
        if isinstance(turn.get(asked), str) and isinstance(turn.get(said), str):
            return _of_pair(turn, asked, said)
    return [turn]


def _of_pair(turn: Mapping[str, Any], asked: str, said: str) -> list[Mapping[str, Any]]:
    rest = {key: value for key, value in turn.items() if key not in (asked, said, "system")}
    if "output_with_loss" in rest:  # XTuner
        rest["loss"] = rest.pop("output_with_loss")
    system = [{"role": "system", "content": turn["system"]}] if is_filled(turn.get("system")) else []
    return [*system, {"role": "user", "content": turn[asked]}, {"role": "assistant", "content": turn[said], **rest}]


def _of_sharegpt(turn: Mapping[str, Any]) -> Mapping[str, Any]:
    turn = _renamed(turn, ("content", "text"), "value")
    value = turn.get("value")
    if isinstance(value, str) and turn["from"] in CALLING:
        loose = loose_json(value)
        return {**turn, "value": loose} if listed(loose) or isinstance(loose, Mapping) else turn
    return turn


def _of_roles(turn: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A turn with a role: its text under `content`, and each result of a tool in a turn of its own."""
    turn = _renamed(turn, ("parts", "value", "text"), "content")
    parts = listed(turn.get("content"))
    if parts is None:
        return [turn]
    kept: list[Any] = []
    calls: list[Any] = []
    results: list[Mapping[str, Any]] = []
    rest = {key: value for key, value in turn.items() if key != "content"}
    for part in map(_part, parts):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in _USES:
            call, more = _use(part)
            calls.append(call)
            rest = more | rest
        elif kind in _RESULTS_OF_TOOLS:
            results.append(_result(part))
        else:
            kept.append(part)
    if calls:
        rest["tool_calls"] = [*(listed(turn.get("tool_calls")) or []), *calls]
    return [*results, *([{**rest, "content": kept}] if kept or calls or not results else [])]


def _renamed(turn: Mapping[str, Any], names: Iterable[str], name: str) -> Mapping[str, Any]:
    """A turn with what it holds under one of several names under the one that is read, where nothing stands there."""
    other = next((key for key in names if is_filled(turn.get(key))), None)
    if other is None or is_filled(turn.get(name)):
        return turn
    return {name if key == other else key: value for key, value in turn.items() if key != name}


def _part(part: Any) -> Any:
    """A part of a content with its type; Gemini and Bedrock say it by the name of the key."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        return part
    if "type" not in part:
        filled = [key for key, value in part.items() if is_filled(value)]
        if part.get("thought") is True and isinstance(part.get("text"), str):
            return {"type": "reasoning", "text": part["text"]}
        kind = filled[0] if filled else "text"
        return {"type": kind, **part} if len(filled) <= 1 and isinstance(kind, str) else part
    kind = part["type"]
    known = _PART_KINDS.get(kind) if isinstance(kind, str) else None
    return {"type": known, "text": part.get("text")} if known else part


def _use(part: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """A call, and keys of its part that no layout knows.

    Anthropic: {id, name, input}; Bedrock: {toolUse: {toolUseId, name, input}}; Gemini: {functionCall: {name, args}}.
    """
    inside, rest = _inside(part, ("id", "toolUseId", "name", "input", "args", "arguments"))
    given = next((inside[key] for key in ("input", "args", "arguments") if key in inside), None)
    return {
        "id": inside.get("id", inside.get("toolUseId")),
        "function": {"name": inside.get("name"), "arguments": given},
    }, rest


def _result(part: Mapping[str, Any]) -> dict[str, Any]:
    """Anthropic: {tool_use_id, content}; Bedrock: {toolResult: {toolUseId, content}}; Gemini: {functionResponse}."""
    inside, rest = _inside(part, ("id", "tool_use_id", "toolUseId", "name", "content", "response"))
    held = inside.get("content", inside.get("response"))
    given = listed(held)
    parts = [held] if given is None else [_held(one) for one in given]
    texts = (one if isinstance(one, str) else json.dumps(one, ensure_ascii=False, default=str) for one in parts)
    identity = inside.get("tool_use_id", inside.get("toolUseId", inside.get("id")))
    return rest | {"role": "tool", "content": "".join(texts), "name": inside.get("name"), "tool_call_id": identity}


def _inside(part: Mapping[str, Any], known: Collection[str]) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """What a part of a tool says, and the filled keys of it that are not known."""
    kind = part["type"]
    inside = inner if isinstance(inner := part.get(kind), Mapping) else part
    rest = {key: value for key, value in inside.items() if key not in (*known, "type") and is_filled(value)}
    return inside, rest


def _held(part: Any) -> Any:
    return part.get("text", part.get("json", part)) if isinstance(part, Mapping) else part


_USES = ("tool_use", "toolUse", "functionCall")
_RESULTS_OF_TOOLS = ("tool_result", "toolResult", "functionResponse")
