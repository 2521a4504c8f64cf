"""A row of a file -> what it means, whatever format it came in.

file row (a mapping, from any reader) ─ parse_row ─> Conversation | Document
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from dist_sft.chat.conversation import Conversation, Document, Message, Role
from dist_sft.chat.fields import KNOWN, REASONINGS, SYSTEMS, Fields, is_filled, is_flag, listed
from dist_sft.chat.glaive import glaive_system, glaive_turns, is_glaive
from dist_sft.chat.layouts import names_in_tools_block
from dist_sft.chat.messages import answer, bad_row, from_json, parse_calls, parse_turns, weight_of
from dist_sft.chat.recognise import (
    GLAIVE,
    MAYBE_TURNS,
    PARTNERLESS,
    QUESTIONS,
    QUESTIONS_OF,
    TURNS,
    UNSURE,
    Row,
    are_turns,
    by_part,
    plain_texts,
    recognised,
    refuse_preferences,
)  # fmt: skip
from dist_sft.chat.tools import schema_of, tools_of, with_calls
from dist_sft.config.section import RESERVED_KWARGS
from dist_sft.core.errors import RowError

Roles = Mapping[str, Role]


class Native(Protocol):
    """What the run's own template makes of a row's text.

    writes_calls  it has a place for calls of tools
    """

    writes_calls: bool

    def reread(self, prompt: str, completion: str | None) -> Conversation | None:
        """The turns of a text that the template itself could have written; None for any other text.

        completion: what follows the prompt, where they stand apart. Raises RowError, as the source's control_tokens
        says.
        """
        ...

    def own_stop(self, message: Message, place: str) -> Message:
        """An answer without a stop token of the template's at its end. Raises RowError likewise."""
        ...


def parse_row(
    row: Row,
    format: str = "auto",
    role_names: Roles = {},  # noqa: B006
    columns: Mapping[str, str] = {},
    native: Native | None = None,
) -> Conversation | Document:
    """What a row means.

    Args:
        row: as the reader gave it.
        format: one of config.data.Source.format; auto looks at the row's keys.
        role_names: what a role is called in these files, e.g. {"bot": "assistant"}.
        columns: which column holds which part, e.g. {"prompt": "query"}; see config.data.Source.columns.
        native: what the run's template makes of it; None: it is not asked.
    Raises:
        RowError: unknown_format, bad_row, wrong_role, key_not_read or bad_unicode, or what `native` raises; says which
            part of the row, not which row.
    """
    try:
        return _parsed(row, format, role_names, columns, native)
    except RecursionError:
        raise bad_row("it is nested too deeply to read", "remove the row") from None


def _parsed(
    row: Row, format: str, role_names: Roles, columns: Mapping[str, str], native: Native | None
) -> Conversation | Document:
    unread = set[str]()
    if not {"messages", "completion", "text"} & set(columns):
        refuse_preferences(row)
    if columns:
        row, unread = by_part(row, columns)
    if format == "auto":
        row, format = recognised(row)
    fields = Fields(row)
    item = FORMATS[format](fields, _Reading(role_names, unread, native))
    for text in _texts(item):
        _check_unicode(text)
    unread.update(key for key in fields.rest() if key in KNOWN or not _says_again(row.get(key), fields, item))
    return replace(item, unread=frozenset(unread)) if unread else item


MOST_NESTED = 100
"""Objects and lists inside one another, in the schemas and arguments of tools."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """What a format needs besides the row. unread: gets the keys that say nothing here."""

    role_names: Roles
    unread: set[str]
    native: Native | None


def _turns(row: Fields, reading: _Reading) -> Conversation:
    key = row.one_of(TURNS) or next((key for key in MAYBE_TURNS if are_turns(row.values.get(key))), TURNS[0])
    return _talk(row, reading, parse_turns(row.take(key), key, reading.role_names, reading.unread))


def _glaive(row: Fields, reading: _Reading) -> Conversation:
    key = row.one_of(GLAIVE) or GLAIVE[0]
    if not is_glaive(row.values.get(key)):
        raise bad_row(f"{key} is not a text in which USER: and ASSISTANT: speak", "use another format")
    turns = glaive_turns(row.take(key))
    if turns[0]["role"] != "system" and (told := _text(row, "system", default="")):
        turns = [{"role": "system", "content": told}, *turns]
    tools: list[Mapping[str, Any]] = []
    if turns[0]["role"] == "system":
        turns[0]["content"], tools = glaive_system(turns[0]["content"])
        turns = turns if turns[0]["content"] else turns[1:]
    parsed = parse_turns(turns, key, reading.role_names, reading.unread)
    return _weighed(row, Conversation(parsed, tuple(schema_of(tool) for tool in tools)))


def _pair(question: str | None = None) -> Callable[[Fields, _Reading], Conversation]:
    """Reads a question and its answer, of whatever names the format has, and what came before."""

    def read(row: Fields, reading: _Reading) -> Conversation:
        asked = question or _question(row)
        if (found := _reread(row, asked, reading)) is not None:
            return found
        turns = (*_history(row, reading), *_asked(row, asked, reading), *_answered(row, asked, reading))
        return _talk(row, reading, turns)

    return read


def _question(row: Fields) -> str:
    """Which key holds the question: one that can be nothing else before one that is a name in many files."""
    keys = QUESTIONS_OF["question_answer"]
    sure = [key for key in keys if key not in UNSURE and is_filled(row.values.get(key))]
    return row.one_of(sure or [key for key in keys if key in UNSURE and key in row.values][:1]) or keys[0]


def _reread(row: Fields, asked: str, reading: _Reading) -> Conversation | None:
    """The turns of a question and an answer that the template itself could have written."""
    key = _answer_key(row, asked)
    prompt, completion = row.values.get(asked), row.values.get(key)
    if reading.native is None or not isinstance(prompt, str) or not isinstance(completion, str):
        return None
    found = reading.native.reread(prompt, completion)
    if found is None:
        return None
    row.take(asked)
    row.take(key)
    return _agreed(row, reading, found)


def _agreed(row: Fields, reading: _Reading, found: Conversation) -> Conversation:
    """A conversation that was read out of the template's own text, where the rest of the row says nothing else."""
    key = row.one_of(SYSTEMS)
    if key and (system := _system(row, key, reading).strip()):
        first = found.messages[0]
        if first.role != "system" or first.content.strip() != system:
            raise bad_row(f"{key} is not the system prompt of the text beside it", "remove one of them")
    if (tools := tools_of(row)) and tools != found.tools:
        raise bad_row("tools are not those that the text beside them tells of", "remove the key, or the text")
    return _weighed(row, found)


def _history(row: Fields, reading: _Reading) -> tuple[Message, ...]:
    """Turns before the question: pairs of texts, or messages."""
    history = row.take("history")
    if history is None:
        return ()
    pairs = listed(from_json(history, "history") if isinstance(history, str) and history[:1] == "[" else history)
    if pairs is None:
        raise bad_row("history is not a list of pairs")
    if all(isinstance(pair, Mapping) for pair in pairs):
        return parse_turns(pairs, "history", reading.role_names, reading.unread)
    turns: list[Message] = []
    for i, pair in enumerate(pairs):
        texts = plain_texts(pair)
        if len(texts) != 2:
            raise bad_row(f"history[{i}] is not a pair of texts")
        turns += [Message("user", texts[0]), answer("assistant", texts[1], None)]
    return tuple(turns)


def _asked(row: Fields, question: str, reading: _Reading) -> tuple[Message, ...]:
    """The question: a text with what is given beside it; or messages, of which no answer is learned."""
    if not isinstance(row.values.get(question), str) and listed(row.values.get(question)) is not None:
        turns = parse_turns(row.take(question), question, reading.role_names, reading.unread)
        return tuple(
            replace(turn, weight=0.0) if turn.role == "assistant" and turn.weight is None else turn for turn in turns
        )
    beside = (key for key in ("input", "context") if key != question)
    given = [_text(row, question), *(_text(row, key, default="") for key in beside)]
    return (Message("user", "\n\n".join(text for text in given if text)),)


def _answered(row: Fields, question: str, reading: _Reading) -> tuple[Message, ...]:
    """The answer, with the thought beside it: a text, calls of tools, or messages."""
    key = _answer_key(row, question)
    if key == "answers":
        return (answer("assistant", "", None, parse_calls(row.take(key), key)),)
    if not isinstance(row.values.get(key), str) and listed(row.values.get(key)) is not None:
        return parse_turns(row.take(key), key, reading.role_names, reading.unread)
    message = answer("assistant", _text(row, key), None)
    thought = row.one_of([name for name in REASONINGS if name in row.values and not is_flag(row.values[name])])
    if thought is None or not (text := row.take(thought)):
        return (message,)
    if not isinstance(text, str):
        raise bad_row(f"{thought} is {type(text).__name__}, not text")
    if message.reasoning is not None:
        raise bad_row(f"{thought} and the <think> in {key} are two thoughts of one answer", "remove one of them")
    return (replace(message, reasoning=text),)


def _answer_key(row: Fields, question: str) -> str:
    names = QUESTIONS[question]
    if question not in PARTNERLESS and is_filled(row.values.get(names[0])):
        return names[0]
    return row.one_of(names) or names[0]


def _document(row: Fields, reading: _Reading) -> Conversation | Document:
    text = _text(row, "text")
    found = reading.native.reread(text, None) if reading.native else None
    return Document(text) if found is None else _agreed(row, reading, found)


def _talk(row: Fields, reading: _Reading, turns: tuple[Message, ...]) -> Conversation:
    """Turns, with what the row says of all of them: a system prompt, tools, how much its answers weigh."""
    key = row.one_of(SYSTEMS)
    if key and (text := _system(row, key, reading)):
        if turns[0].role == "system" and turns[0].content.strip() != text.strip():
            raise bad_row(f"{key} and the first message are two system prompts", "remove one of them")
        turns = turns if turns[0].role == "system" else (Message("system", text), *turns)
    tools = tools_of(row)
    if tools and turns[0].role == "system":
        told = names_in_tools_block(turns[0].content)
        tools = () if {tool["function"].get("name") for tool in tools} <= told else tools  # Hermes tells them already
    native = reading.native
    if native is not None:
        turns = tuple(native.own_stop(turn, f"answer {i}") if turn.role == "assistant" else turn
                      for i, turn in enumerate(turns))  # fmt: skip
    if native is None or native.writes_calls:
        turns = tuple(with_calls(turns))
    return _weighed(row, Conversation(turns, tools, _template_kwargs(row)))


def _weighed(row: Fields, item: Conversation) -> Conversation:
    """With the weight that the row gives to its answers, where they have none of their own."""
    weight = weight_of(row, "assistant")
    if weight is None:
        return item
    return replace(
        item,
        messages=tuple(
            replace(turn, weight=weight) if turn.role == "assistant" and turn.weight is None else turn
            for turn in item.messages
        ),
    )


def _system(row: Fields, key: str, reading: _Reading) -> str:
    """A system prompt: a text; or parts, or a message of parts, as Gemini and Bedrock have it."""
    value = row.take(key)
    if value is None or isinstance(value, str):
        return value or ""
    inside = value.get("parts", value.get("content")) if isinstance(value, Mapping) else value
    (message,) = parse_turns([{"role": "system", "content": inside}], key, {}, reading.unread)
    return message.content


def _text(row: Fields, key: str, default: str | None = None) -> str:
    value = row.take(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise bad_row(f"{key} is {'missing' if value is None else type(value).__name__}, not text")
    return value


def _says_again(value: Any, fields: Fields, item: Conversation | Document) -> bool:
    """Whether a text repeats what was read: one turn (no_robots' prompt), or all that was (Alpaca's text)."""
    if not isinstance(value, str) or not isinstance(item, Conversation):
        return False
    if any(value.strip() == message.content.strip() for message in item.messages):
        return True
    read = [text.strip() for text in fields.taken.values() if isinstance(text, str) and text.strip()]
    texts, place = read or [message.content.strip() for message in item.messages], 0
    for text in texts:
        place = value.find(text, place) + len(text)
        if place < len(text):
            return False
    return len(texts) > 1


FORMATS: dict[str, Callable[[Fields, _Reading], Conversation | Document]] = {
    "messages": _turns,
    "sharegpt": _turns,
    "glaive": _glaive,
    "alpaca": _pair("instruction"),
    "prompt_completion": _pair("prompt"),
    "question_answer": _pair(),
    "text": _document,
}
"""What reads the rows of each format."""


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
