"""A row of a file -> what it means, whatever format it came in.

file row (a mapping, from any reader) ─ parse_row ─> Conversation | Document
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from dist_sft.chat.conversation import RESERVED_KWARGS, Conversation, Document, Message, Role
from dist_sft.chat.fields import Fields, is_filled
from dist_sft.chat.messages import (
    answer,
    bad_row,
    from_json,
    parse_alternating,
    parse_calls,
    parse_messages,
    parse_sharegpt,
    weight_of,
)
from dist_sft.core.errors import RowError

Row = Mapping[str, Any]
Roles = Mapping[str, Role]


def parse_row(
    row: Row,
    format: str = "auto",
    role_names: Roles = {},  # noqa: B006
    columns: Mapping[str, str] = {},
) -> Conversation | Document:
    """What a row means.

    Args:
        row: as the reader gave it.
        format: one of config.sections.Source.format; auto looks at the row's keys.
        role_names: what a role is called in these files, e.g. {"bot": "assistant"}.
        columns: which column holds which part, e.g. {"prompt": "query"}; see config.sections.Source.columns.
    Raises:
        RowError: unknown_format, bad_row, wrong_role, key_not_read or bad_unicode; says which part of the row, not
            which row.
    """
    unread = set[str]()
    if columns:
        row, unread = _by_part(row, columns)
    fields = Fields(row)
    item = _FORMATS[_recognise(row) if format == "auto" else format](fields, role_names, unread)
    for text in _texts(item):
        _check_unicode(text)
    unread.update(fields.rest())
    return replace(item, unread=frozenset(unread)) if unread else item


MOST_NESTED = 100
"""Objects and lists inside one another, in the schemas and arguments of tools."""
TURNS = ("messages", "conversations", "conversation")
QUESTIONS = {
    "instruction": ("output", "response", "completion", "answer"),
    "prompt": ("completion", "response", "output", "answer"),
    "question": ("answer", "response", "output", "completion"),
    "query": ("response", "answer", "answers", "output"),
    "problem": ("solution", "answer", "response"),
}
"""What a question is called, and what its answer is called beside it."""
PARTNERS = {"question": "answer", "query": "response", "problem": "solution", "prompt": "completion"}
"""Names that belong together: an answer of another name beside them is something else."""


def _by_part(row: Row, columns: Mapping[str, str]) -> tuple[Row, set[str]]:
    """The row with its parts under their names; the columns that nobody reads for being called as a part is."""
    parts = {part: _column(row, column, part) for part, column in columns.items()}
    taken = {column.partition(".")[0] for column in columns.values()}
    rest = {key: value for key, value in row.items() if key not in taken}
    hidden = {key for key, value in rest.items() if key in parts and is_filled(value)}
    return rest | parts, hidden


def _column(row: Row, column: str, part: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    for name in column.split("."):
        if not isinstance(value, Mapping) or name not in value:
            if part in ("system", "tools", "weight"):  # not every row must have them
                return None
            keys = ", ".join(map(repr, value)) if isinstance(value, Mapping) else "none"
            raise bad_row(
                f"there is no column {column!r} for its {part}; there are {keys}", "mend columns of the source"
            )
        value = value[name]
    return value


def is_row(value: Row) -> bool:
    """Whether an object has the keys of a row."""
    try:
        _recognise(value)
    except RowError:
        return False
    return True


def _recognise(row: Row) -> str:
    have = {key for key, value in row.items() if value is not None}
    if have & set(TURNS):
        plain = _plain_texts(row.get("messages"))
        return "messages" if "messages" in have and "conversations" not in have and len(plain) < 2 else "sharegpt"
    for question, answers in QUESTIONS.items():
        if question in have and have & set(answers):
            return _FORMAT_OF[question]
    if "text" in have:
        return "text"
    raise RowError(
        f"the row's keys are {', '.join(map(repr, sorted(map(str, have)))) or 'none'}", reason="unknown_format",
        fix="use messages, conversations, instruction + output, prompt + completion, question + answer, or text",
    )  # fmt: skip


def _messages(row: Fields, role_names: Roles, unread: set[str]) -> Conversation:
    key = row.one_of(TURNS) or "messages"
    return _talk(row, parse_messages(row.take(key), key, role_names, unread))


def _sharegpt(row: Fields, role_names: Roles, unread: set[str]) -> Conversation:
    key = row.one_of(TURNS) or "conversations"
    turns = row.take(key)
    if plain := _plain_texts(turns):
        return _talk(row, parse_alternating(plain))
    openai = isinstance(turns, Iterable) and all(isinstance(turn, Mapping) and "role" in turn for turn in turns)
    parse = parse_messages if openai else parse_sharegpt
    return _talk(row, parse(turns, key, role_names, unread))


def _plain_texts(turns: Any) -> list[str]:
    """The turns, where all of them are plain texts."""
    listed = _listed(turns) or []
    return listed if all(isinstance(turn, str) for turn in listed) else []


def _listed(value: Any) -> list[Any] | None:
    """The items of a list, or of what a table has in place of one."""
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping) else None


def _alpaca(row: Fields, _: Roles, __: set[str]) -> Conversation:
    earlier: list[Message] = []
    history = row.take("history")
    pairs = _listed(history)
    if history is not None and pairs is None:
        raise bad_row("history is not a list of pairs")
    for i, pair in enumerate(pairs or ()):
        texts = _plain_texts(pair)
        if len(texts) != 2:
            raise bad_row(f"history[{i}] is not a pair of texts")
        earlier += [Message("user", texts[0]), answer("assistant", texts[1], None)]
    return _talk(row, (*earlier, *_pair(row, "instruction")))


def _prompt_completion(row: Fields, role_names: Roles, unread: set[str]) -> Conversation:
    prompt, key = row.values.get("prompt"), _answer_key(row, "prompt")
    if isinstance(prompt, str) and isinstance(row.values.get(key), str):
        return _talk(row, _pair(row, "prompt"))
    before, after = (parse_messages(row.take(each), each, role_names, unread) for each in ("prompt", key))
    return _talk(row, before + after)


def _question_answer(row: Fields, _: Roles, __: set[str]) -> Conversation:
    return _talk(row, _pair(row, row.one_of([key for key in QUESTIONS if _FORMAT_OF[key] == "question_answer"])))


def _document(row: Fields, _: Roles, __: set[str]) -> Document:
    return Document(_text(row, "text"))


def _pair(row: Fields, question: str | None) -> tuple[Message, Message]:
    """A question with what is given beside it, and its answer: text, or the calls of tools."""
    question = question or "question"
    given = [_text(row, question), *(_text(row, key, default="") for key in ("input", "context"))]
    asked, key = "\n\n".join(text for text in given if text), _answer_key(row, question)
    if key == "answers":
        return Message("user", asked), answer("assistant", "", None, parse_calls(row.take(key), key))
    return Message("user", asked), answer("assistant", _text(row, key), None)


def _answer_key(row: Fields, question: str) -> str:
    partner = PARTNERS.get(question)
    if partner and is_filled(row.values.get(partner)):
        return partner
    return row.one_of(QUESTIONS[question]) or QUESTIONS[question][0]


def _talk(row: Fields, turns: tuple[Message, ...]) -> Conversation:
    """Turns, with what the row says of all of them: a system prompt, tools, how much its answers weigh."""
    key = row.one_of(("system", "system_prompt", "system_message"))
    if key and (text := _text(row, key, default="")):
        if turns[0].role == "system" and turns[0].content.strip() != text.strip():
            raise bad_row(f"{key} and the first message are two system prompts", "remove one of them")
        turns = turns if turns[0].role == "system" else (Message("system", text), *turns)
    weight = weight_of(row, "assistant")
    if weight is not None:
        turns = tuple(
            replace(turn, weight=weight) if turn.role == "assistant" and turn.weight is None else turn for turn in turns
        )
    return Conversation(turns, _tools(row), _template_kwargs(row))


_FORMATS: dict[str, Callable[[Fields, Roles, set[str]], Conversation | Document]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "question_answer": _question_answer,
    "text": _document,
}
_FORMAT_OF = {
    "instruction": "alpaca", "prompt": "prompt_completion",
    "question": "question_answer", "query": "question_answer", "problem": "question_answer",
}  # fmt: skip


def _text(row: Fields, key: str, default: str | None = None) -> str:
    value = row.take(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise bad_row(f"{key} is {'missing' if value is None else type(value).__name__}, not text")
    return value


def _tools(row: Fields) -> tuple[dict[str, Any], ...]:
    """Schemas of the row's tools, all in OpenAI's form: {"type": "function", "function": {name, ...}}."""
    key = row.one_of(("tools", "functions")) or "tools"
    tools = row.take(key)
    if isinstance(tools, str):
        tools = from_json(tools, key) if tools.strip() else None
    if tools is None:
        return ()
    if isinstance(tools, Mapping | str) or not isinstance(tools, Iterable):
        raise bad_row(f"{key} is not a list of schemas")
    schemas = list(tools)
    for i, tool in enumerate(schemas):
        if not isinstance(tool, Mapping) or not isinstance(tool.get("function", tool), Mapping):
            raise bad_row(f"{key}[{i}] is not a schema", 'use {"type": "function", "function": {"name": ...}}')
    return tuple(dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)} for tool in schemas)


def _template_kwargs(row: Fields) -> dict[str, Any]:
    """What the row says to the chat template: {"enable_thinking": false}."""
    value = row.take("chat_template_kwargs")
    value = from_json(value, "chat_template_kwargs") if isinstance(value, str) and value.strip() else value
    if not value:
        return {}
    if not isinstance(value, Mapping):
        raise bad_row("chat_template_kwargs is not an object", 'use {"enable_thinking": false} or the like')
    if reserved := sorted(set(map(str, value)) & RESERVED_KWARGS):
        raise bad_row(f"chat_template_kwargs holds {', '.join(reserved)}", "the row has keys of its own for that")
    return dict(value)


def _texts(value: Any, depth: int = 0) -> Iterator[str]:
    """Every text inside an item, keys of objects too. Raises RowError for what no honest JSON holds."""
    if depth > MOST_NESTED:
        raise bad_row(f"an object in it is nested more than {MOST_NESTED} deep")
    match value:
        case str():
            yield value
        case float() if not math.isfinite(value):
            raise bad_row(
                f"a tool's schema or arguments hold {value}, which JSON has no word for", "use null or a text"
            )
        case Document(text):
            yield text
        case Conversation(messages, tools, template_kwargs):
            yield from _texts(template_kwargs, depth + 1)
            for message in messages:
                yield message.content
                yield message.reasoning or ""
                for call in message.tool_calls:
                    yield call.name
                    yield from _texts(call.arguments, depth + 1)
            yield from _texts(tools, depth + 1)
        case Mapping():
            for key, inner in value.items():
                yield from _texts(key, depth + 1)
                yield from _texts(inner, depth + 1)
        case list() | tuple():
            for inner in value:
                yield from _texts(inner, depth + 1)


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
