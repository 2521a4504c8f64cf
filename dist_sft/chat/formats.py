"""A row of a file -> what it means, whatever format it came in.

file row (a mapping, from any reader) ─ parse_row ─> Conversation | Document
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from dist_sft.chat.conversation import Conversation, Document, Message, Role
from dist_sft.chat.messages import answer, bad_row, from_json, parse_messages, parse_sharegpt
from dist_sft.core.errors import RowError

Row = Mapping[str, Any]
Roles = Mapping[str, Role]


def parse_row(row: Row, format: str = "auto", role_names: Roles = {}) -> Conversation | Document:  # noqa: B006
    """What a row means.

    Args:
        row: as the reader gave it.
        format: one of config.sections.Source.format; auto looks at the row's keys.
        role_names: what a role is called in these files, e.g. {"bot": "assistant"}.
    Raises:
        RowError: unknown_format, bad_row, wrong_role or bad_unicode; says which part of the row, not which row.
    """
    item = _FORMATS[_recognise(row) if format == "auto" else format](row, role_names)
    for text in _texts(item):
        _check_unicode(text)
    return item


def _recognise(row: Row) -> str:
    have = {key for key, value in row.items() if value is not None}
    for name, keys in _KEYS:
        if all(have & set(key.split("|")) for key in keys):
            return name
    raise RowError(
        f"the row's keys are {', '.join(map(repr, sorted(map(str, have)))) or 'none'}", reason="unknown_format",
        fix="use messages, conversations, instruction + output, prompt + completion, question + answer, or text",
    )  # fmt: skip


def _messages(row: Row, role_names: Roles) -> Conversation:
    key = "messages" if row.get("messages") is not None else "conversations"
    return Conversation(parse_messages(row.get(key), key, role_names), _tools(row))


def _sharegpt(row: Row, role_names: Roles) -> Conversation:
    key = "conversations" if row.get("conversations") is not None else "messages"
    turns = row.get(key)
    openai = isinstance(turns, Iterable) and all(isinstance(turn, Mapping) and "role" in turn for turn in turns)
    parse = parse_messages if openai else parse_sharegpt
    return Conversation(_system(row) + parse(turns, key, role_names), _tools(row))


def _alpaca(row: Row, _: Roles) -> Conversation:
    question = _text(row, "instruction")
    if extra := _text(row, "input", default=""):
        question = f"{question}\n\n{extra}" if question else extra
    earlier: list[Message] = []
    for i, pair in enumerate(row.get("history") or ()):
        if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise bad_row(f"history[{i}] is not a pair of texts")
        earlier += [Message("user", pair[0]), answer("assistant", pair[1], None)]
    reply = answer("assistant", _text(row, "output" if row.get("output") is not None else "response"), None)
    return Conversation((*_system(row), *earlier, Message("user", question), reply), _tools(row))


def _prompt_completion(row: Row, role_names: Roles) -> Conversation:
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        turns = Message("user", prompt), answer("assistant", completion, None)
        return Conversation(_system(row) + turns, _tools(row))
    before, after = (parse_messages(row.get(key), key, role_names) for key in ("prompt", "completion"))
    return Conversation(before + after, _tools(row))


def _question_answer(row: Row, _: Roles) -> Conversation:
    turns = Message("user", _text(row, "question")), answer("assistant", _text(row, "answer"), None)
    return Conversation(_system(row) + turns, _tools(row))


def _document(row: Row, _: Roles) -> Document:
    return Document(_text(row, "text"))


_FORMATS: dict[str, Callable[[Row, Roles], Conversation | Document]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "question_answer": _question_answer,
    "text": _document,
}

_KEYS = (
    ("sharegpt", ("conversations",)),
    ("messages", ("messages",)),
    ("alpaca", ("instruction", "output|response")),
    ("prompt_completion", ("prompt", "completion")),
    ("question_answer", ("question", "answer")),
    ("text", ("text",)),
)


def _text(row: Row, key: str, default: str | None = None) -> str:
    value = row.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise bad_row(f"{key} is {'missing' if value is None else type(value).__name__}, not text")
    return value


def _system(row: Row) -> tuple[Message, ...]:
    text = _text(row, "system", default="")
    return (Message("system", text),) if text else ()


def _tools(row: Row) -> tuple[dict[str, Any], ...]:
    """Schemas of the row's tools, all in OpenAI's form: {"type": "function", "function": {name, ...}}."""
    tools = row.get("tools")
    if isinstance(tools, str):
        tools = from_json(tools, "tools") if tools.strip() else None
    if tools is None:
        return ()
    if isinstance(tools, Mapping | str) or not isinstance(tools, Iterable):
        raise bad_row("tools is not a list of schemas")
    schemas = list(tools)
    for i, tool in enumerate(schemas):
        if not isinstance(tool, Mapping) or not isinstance(tool.get("function", tool), Mapping):
            raise bad_row(f"tools[{i}] is not a schema", 'use {"type": "function", "function": {"name": ...}}')
    return tuple(dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)} for tool in schemas)


def _texts(value: Any) -> Iterator[str]:
    """Every text inside an item, keys of objects too."""
    match value:
        case str():
            yield value
        case Document(text):
            yield text
        case Conversation(messages, tools):
            for message in messages:
                yield message.content
                yield message.reasoning or ""
                for call in message.tool_calls:
                    yield call.name
                    yield from _texts(call.arguments)
            yield from _texts(tools)
        case Mapping():
            for key, inner in value.items():
                yield from _texts(key)
                yield from _texts(inner)
        case list() | tuple():
            for inner in value:
                yield from _texts(inner)


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        near = text[max(0, error.start - 20) : error.start]
        raise RowError(
            f"a text holds half a character ({text[error.start]!a}) after {near!a}",
            reason="bad_unicode",
            fix="write the file as valid UTF-8; a JSON escape above \\uffff needs both surrogates",
        ) from None
