"""A conversation -> the text of its chat template, as `apply_chat_template` of transformers writes it.

Templates are code from strangers: they run in Jinja's sandbox, see plain JSON values only, and no clock.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dist_sft.chat.conversation import Conversation, Message
from dist_sft.core.errors import RowError, TemplateError

TODAY = datetime(2024, 7, 26, tzinfo=UTC)
"""What templates get as the current date: a prompt that changes overnight would make runs impossible to repeat.
It is the date that Llama's own templates fall back to."""

GENERATION_OPEN, GENERATION_CLOSE = "\U0010fffc", "\U0010fffd"


@dataclass(frozen=True, slots=True)
class Part:
    """Which string of a row: kind says what it is, message the index of its turn (-1: the tools)."""

    message: int
    kind: Literal["content", "reasoning", "call", "argument", "key", "schema"]


Mark = Callable[[str, Part], str]


class Renderer:
    """A compiled template. `marked`: {% generation %} regions are written between GENERATION_OPEN and _CLOSE."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Raises: TemplateError: the source is not Jinja."""
        try:
            self._plain = _environment(_GenerationTag).from_string(source)
            self._marked = _environment(_MarkedGenerationTag).from_string(source)
        except jinja2.TemplateSyntaxError as error:
            what, where = f"the chat template is not Jinja: {error.message}", f"line {error.lineno}"
            raise TemplateError(what, where=where, fix="choose another data.template") from None
        self._special_tokens = dict(special_tokens)
        self.literals = _literals(source)

    def render(self, conversation: Conversation, mark: Mark | None = None, prompt: bool = False) -> str:
        """The text of a conversation.

        Args:
            mark: applied to each string of the row before the template sees it; generation regions are marked too.
            prompt: add the generation prompt.
        Raises:
            RowError: template_refused, with the template's own words.
        """
        try:
            return (self._marked if mark else self._plain).render(
                self._special_tokens, **template_input(conversation, mark), documents=None, add_generation_prompt=prompt
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise RowError(
                f"the chat template refuses this row: {error}",
                reason="template_refused",
                fix="change the row, or choose another data.template",
            ) from None


def template_input(conversation: Conversation, mark: Mark | None = None) -> dict[str, Any]:
    """messages and tools as transformers hands them to a template."""
    tools: list[Any] | None = list(conversation.tools) or None
    if tools and mark:
        tools = [_marked_json(tool, mark, Part(-1, "schema"), Part(-1, "schema")) for tool in tools]
    return {"messages": [_message(message, i, mark) for i, message in enumerate(conversation.messages)], "tools": tools}


def _message(message: Message, i: int, mark: Mark | None) -> dict[str, Any]:
    write = mark or _as_is
    turn: dict[str, Any] = {"role": message.role, "content": write(message.content, Part(i, "content"))}
    if message.reasoning is not None:
        turn["reasoning_content"] = turn["thinking"] = write(message.reasoning, Part(i, "reasoning"))
    if message.name is not None:
        turn["name"] = message.name
    if message.call_id is not None:
        turn["tool_call_id"] = message.call_id
    if message.tool_calls:
        turn["tool_calls"] = [
            ({} if call.id is None else {"id": call.id}) | {"type": "function", "function": {
                "name": write(call.name, Part(i, "call")),
                "arguments": call.arguments if mark is None
                else _marked_json(call.arguments, mark, Part(i, "argument"), Part(i, "key")),
            }}
            for call in message.tool_calls
        ]  # fmt: skip
    return turn


def _as_is(text: str, _: Part) -> str:
    return text


def _marked_json(value: Any, mark: Mark, leaf: Part, key: Part) -> Any:
    if isinstance(value, str):
        return mark(value, leaf)
    if isinstance(value, Mapping):
        return {mark(name, key): _marked_json(inner, mark, leaf, key) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_marked_json(inner, mark, leaf, key) for inner in value]
    return value


def _literals(source: str) -> frozenset[str]:
    """Every text that the template itself holds."""
    tree = _environment(_GenerationTag).parse(source)
    texts = {node.data for node in tree.find_all(nodes.TemplateData)}
    return frozenset(texts | {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)})


class _GenerationTag(Extension):
    """{% generation %}...{% endgeneration %}: what TRL's templates put around the assistant's words."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own name and type)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller: Macro) -> str:
        return caller()


class _MarkedGenerationTag(_GenerationTag):
    def _write(self, caller: Macro) -> str:
        return f"{GENERATION_OPEN}{caller()}{GENERATION_CLOSE}"


class _Namespace(jinja2.utils.Namespace):
    """As transformers has it: no name that begins with an underscore, so no way to Python's internals."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a chat template may not set {name!r}")
        super().__setitem__(name, value)


_NOTHING = object()
_OF_DICT = frozenset(dir(dict))
_OF_TEXT = frozenset(name for name in dir(str) if not name.startswith("_")) - {"format", "format_map"}
"""Methods of a text that the sandbox lets pass as they are; the two others could reach into Python's objects."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with short ways to what templates do most: `message.role` of a plain dict, be it there or not,
    `content.startswith("x")` of a plain text, `loop.first`, `ns.seen`. The long ways end at the same place, and take
    most of a render's time."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        kind = type(obj)
        if kind is dict and attribute not in _OF_DICT:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if kind is str and attribute in _OF_TEXT:
            return getattr(obj, attribute)
        if (kind is LoopContext or kind is _Namespace) and not attribute.startswith("_"):
            value = getattr(obj, attribute, _NOTHING)
            if value is not _NOTHING:
                return value
        return super().getattr(obj, attribute)


def _environment(tag: type[Extension]) -> ImmutableSandboxedEnvironment:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[tag, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = TODAY.strftime
    environment.globals["namespace"] = _Namespace
    return environment


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
