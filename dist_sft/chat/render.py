"""A conversation -> the text of its chat template, as `apply_chat_template` of transformers writes it.

Templates are code from strangers: they run in Jinja's sandbox, see plain JSON values only, no clock and no dice, and
their work is counted: one that would loop without end, or fill the memory, is an error of the row, on every machine the
same.
"""

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Literal

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dist_sft.chat.conversation import Conversation, Message, ToolCall
from dist_sft.core.errors import RowError, TemplateError

TODAY = datetime(2024, 7, 26, tzinfo=UTC)
"""What templates get as the current date: a prompt that changes overnight would make runs impossible to repeat.
It is the date that Llama's own templates fall back to."""

MOST_STEPS = 2_000_000
"""Turns of loops in the rendering of one row, and calls, which count as several."""
CALL = 20
"""Turns of a loop that take as long as a call."""
MOST_TEXT = 1 << 26
"""Characters (or items) of what a template multiplies, and of what it writes."""
MOST_SAID = 500
"""Characters of a template's own words that an error repeats."""

GENERATION_OPEN, GENERATION_CLOSE = "\U0010fffc", "\U0010fffd"


@dataclass(frozen=True, slots=True)
class Part:
    """Which string of a row: kind says what it is, message the index of its turn (-1: the tools)."""

    message: int
    kind: Literal["content", "reasoning", "call", "argument", "key", "schema"]


Mark = Callable[[str, Part], str]


@dataclass(frozen=True, slots=True)
class _Forms:
    """In which form a template wants what a row says.

    parts              a content as a list of parts, [{"type": "text", "text": ...}], as models that see images do
    arguments_as_text  the arguments of a call as JSON text, not as an object
    """

    parts: bool = False
    arguments_as_text: bool = False


_TALK = Conversation((Message("user", "zq1"), Message("assistant", "zq2")))
_CALLING = Conversation(
    (Message("user", "zq1"), Message("assistant", "", tool_calls=(ToolCall("zq2", {"zq3": "zq4"}, "call00100"),)))
)
_SCHEMAS = ({"type": "function", "function": {
    "name": "zq5", "description": "zq6", "parameters": {"type": "object", "properties": {}}}},)  # fmt: skip


class Renderer:
    """A compiled template. `marked`: {% generation %} regions are written between GENERATION_OPEN and _CLOSE."""

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        with_tools: str | None = None,
        template_kwargs: Mapping[str, Any] = {},
    ) -> None:
        """
        Args:
            source: Jinja.
            with_tools: the source for rows with tools, where the tokenizer has one for them (`tool_use`).
            template_kwargs: what the template sees beside the rows; a row's own come before these.
        Raises:
            TemplateError: a source is not Jinja.
        """
        sources = [source, *([with_tools] if with_tools else [])]
        try:
            self._plain = [_environment(_GenerationTag).from_string(each) for each in sources]
            self._marked = [_environment(_MarkedGenerationTag).from_string(each) for each in sources]
        except jinja2.TemplateSyntaxError as error:
            what, where = f"the chat template is not Jinja: {error.message}", f"line {error.lineno}"
            raise TemplateError(what, where=where, fix="choose another data.template") from None
        self._seen = {**special_tokens, **template_kwargs}
        self._forms = [_Forms()] * len(sources)
        self._forms = [self._asked_for(which) for which in range(len(sources))]
        self.literals = frozenset().union(*map(_literals, sources))

    def render(self, conversation: Conversation, mark: Mark | None = None, prompt: bool = False) -> str:
        """The text of a conversation.

        Args:
            mark: applied to each string of the row before the template sees it; generation regions are marked too.
            prompt: add the generation prompt.
        Raises:
            RowError: template_refused, with the template's own words.
        """
        which = -1 if conversation.tools else 0
        template = (self._marked if mark else self._plain)[which]
        template.environment.work.steps = 0  # type: ignore[attr-defined]
        try:
            given = template_input(conversation, mark, self._forms[which])
            return template.render(
                self._seen | conversation.template_kwargs | given, documents=None, add_generation_prompt=prompt
            )
        except (
            jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError, MemoryError
        ) as error:  # fmt: skip
            raise RowError(
                f"the chat template refuses this row: {_plainly(error)}",
                reason="template_refused",
                fix="change the row, or choose another data.template",
            ) from None

    def _asked_for(self, which: int) -> _Forms:
        """The forms that one of the templates can write, where it cannot write those that most can."""
        plain, parts = _Forms(), _Forms(parts=True)
        forms = next((each for each in (plain, parts) if self._writes(which, each, _TALK, "zq1", "zq2")), plain)
        as_text = replace(forms, arguments_as_text=True)
        as_python = self._writes(which, forms, _CALLING, "{'zq3': 'zq4'}")
        refuses = as_python or not self._writes(which, forms, _CALLING)
        return as_text if refuses and self._writes(which, as_text, _CALLING, '{"zq3": "zq4"}') else forms

    def _writes(self, which: int, forms: _Forms, talk: Conversation, *texts: str) -> bool:
        """Whether one of the templates can write a conversation, and all texts are in what it writes."""
        self._forms[which] = forms
        with_tools = which == len(self._plain) - 1
        for tools in (*([()] if which == 0 else []), *([_SCHEMAS] if with_tools else [])):
            try:
                written = self.render(replace(talk, tools=tools))
            except RowError:
                continue
            if all(text in written for text in texts):
                return True
        return False


def template_input(conversation: Conversation, mark: Mark | None = None, forms: _Forms = _Forms()) -> dict[str, Any]:
    """messages and tools as transformers hands them to a template."""
    tools: list[Any] | None = list(conversation.tools) or None
    if tools and mark:
        tools = [_marked_json(tool, mark, Part(-1, "schema"), Part(-1, "schema")) for tool in tools]
    messages = [_message(message, i, mark, forms) for i, message in enumerate(conversation.messages)]
    return {"messages": messages, "tools": tools}


def _message(message: Message, i: int, mark: Mark | None, forms: _Forms) -> dict[str, Any]:
    write = mark or _as_is
    content: Any = write(message.content, Part(i, "content"))
    if forms.parts:
        content = [{"type": "text", "text": content}] if content else []
    turn: dict[str, Any] = {"role": message.role, "content": content}
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
                "arguments": _arguments(call.arguments, i, mark, forms),
            }}
            for call in message.tool_calls
        ]  # fmt: skip
    return turn


def _arguments(arguments: Any, i: int, mark: Mark | None, forms: _Forms) -> Any:
    if mark is not None:
        arguments = _marked_json(arguments, mark, Part(i, "argument"), Part(i, "key"))
    if forms.arguments_as_text and not isinstance(arguments, str):
        return json.dumps(arguments, ensure_ascii=False)
    return arguments


def _plainly(error: BaseException) -> str:
    """The words of an error on one line; a template chose them, so they steer no terminal and forge no line of ours."""
    words = " ".join(str(error).split()) or type(error).__name__
    shown = "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in words)
    return shown if len(shown) <= MOST_SAID else f"{shown[:MOST_SAID]}..."


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
_COUNTED = "counted"
_OF_DICT = frozenset(dir(dict))
_OF_TEXT = frozenset(name for name in dir(str) if not name.startswith("_")) - {"format", "format_map"}
"""Methods of a text that the sandbox lets pass as they are; the two others could reach into Python's objects."""


class _Work(threading.local):
    """What the rendering of a row has cost so far."""

    steps = 0


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with a count of the work, and short ways to what templates do most: `message.role` of a plain
    dict, present or not, `content.startswith("x")` of a plain text, `loop.first`, `ns.seen`. The long ways end at the
    same place, and take most of a render's time."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.work = _Work()
        self.filters[_COUNTED] = self._counted
        for name in ("random", "lipsum"):
            self.filters.pop(name, None)
            self.globals.pop(name, None)

    def spend(self, steps: int) -> None:
        self.work.steps += steps
        if self.work.steps > MOST_STEPS:
            raise jinja2.exceptions.SecurityError(f"more than {MOST_STEPS:,} turns of its loops for one row")

    def _counted(self, items: Any) -> Any:
        """What a loop goes through, paid for before it begins."""
        if not isinstance(items, Sized):
            items = list(islice(iter(items), MOST_STEPS + 1))
        self.spend(len(items))
        return items

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, _COUNTED, [], [], None, None, lineno=loop.lineno)
        return tree

    def call(self, context: Context, obj: Any, *given: Any, **named: Any) -> Any:
        self.spend(CALL)
        return super().call(context, obj, *given, **named)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and isinstance(right, int | float) and abs(right) > 64:
            raise jinja2.exceptions.SecurityError("a power above 64")
        for items, times in ((left, right), (right, left)):
            if isinstance(items, Sized) and isinstance(times, int) and len(items) * times > MOST_TEXT:
                raise jinja2.exceptions.SecurityError(f"a text of more than {MOST_TEXT:,} characters")
        return super().call_binop(context, operator, left, right)

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """The text of a template, of which there may be no end."""
        kept, size = [], 0
        for piece in pieces:
            kept.append(piece)
            size += len(piece)
            if size > MOST_TEXT:
                raise jinja2.exceptions.SecurityError(f"a text of more than {MOST_TEXT:,} characters")
        return "".join(kept)

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
