"""A conversation -> the text of its chat template, as `apply_chat_template` of transformers writes it.

Templates are code from strangers: they run in a sandbox (sandbox.py), see plain JSON values only, no clock and no dice,
and their work is counted: one that would loop without end, or fill the memory, is an error of the row, on every machine
the same.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro

from dist_sft.chat.conversation import Conversation, Message, ToolCall
from dist_sft.chat.sandbox import Sandbox
from dist_sft.core.errors import RowError, TemplateError

TODAY = datetime(2024, 7, 26, tzinfo=UTC)
"""What templates get as the current date: a prompt that changes overnight would make runs impossible to repeat.
It is the date that Llama's own templates fall back to."""

MOST_SAID = 500
"""Characters of a template's own words that an error repeats."""

_GIVEN = {"messages", "tools", "documents", "add_generation_prompt"}

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
    """A compiled template. `marked`: {% generation %} regions are written between GENERATION_OPEN and _CLOSE.

    literals   every text that the template itself holds
    variables  names that it reads and that nobody gives it
    """

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
            self._plain = [_environment(_GenerationTag).from_source(each) for each in sources]
            self._marked = [_environment(_MarkedGenerationTag).from_source(each) for each in sources]
        except jinja2.TemplateSyntaxError as error:
            what, where = f"the chat template is not Jinja: {_plainly(error.message)}", f"line {error.lineno}"
            raise TemplateError(what, where=where, fix="choose another data.template") from None
        except jinja2.TemplateError as error:
            what = f"the chat template is refused: {_plainly(error)}"
            raise TemplateError(what, fix="choose another data.template") from None
        self._seen = {**special_tokens, **template_kwargs}
        self._forms = [_Forms()] * len(sources)
        self._forms = [self._asked_for(which) for which in range(len(sources))]
        self.literals = frozenset().union(*map(_literals, sources))
        self.variables = frozenset().union(*map(_variables, sources)) - self._seen.keys() - _GIVEN

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
        except RowError:
            raise
        except Exception as error:  # noqa: BLE001  # a template is code: it raises whatever Python does
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


def _plainly(error: object) -> str:
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


def _variables(source: str) -> frozenset[str]:
    """Every name that the template reads and does not set."""
    environment = _environment(_GenerationTag)
    return frozenset(meta.find_undeclared_variables(environment.parse(source)) - environment.globals.keys())


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


def _environment(tag: type[Extension]) -> Sandbox:
    environment = Sandbox([tag, loopcontrols], {"tojson": _tojson})
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = TODAY.strftime
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
