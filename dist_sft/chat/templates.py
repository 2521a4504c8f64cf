"""Which chat template a run uses: the tokenizer's own, one of three built in, or a file.

The built-in ones differ only in how a turn opens and closes; tools, tool calls and reasoning are written as Hermes and
Qwen write them.
"""

from dataclasses import dataclass
from pathlib import Path

from dist_sft.chat.vocabulary import Vocabulary
from dist_sft.core.errors import TemplateError


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A template.

    name        as in data.template
    source      Jinja, as saved with the model
    with_tools  the tokenizer's own for rows with tools, where it has two
    """

    name: str
    source: str
    with_tools: str | None = None

    @property
    def saved(self) -> str | dict[str, str]:
        """As the `chat_template` of a tokenizer of transformers, which chooses between two as `Renderer` does."""
        return {"default": self.source, "tool_use": self.with_tools} if self.with_tools else self.source


@dataclass(frozen=True, slots=True)
class _Style:
    """What tells one built-in template from another: Jinja expressions, and the tokens that must exist."""

    begin: str
    head: str
    stop: str
    tool_role: str
    trim: str
    tokens: tuple[str, ...]


_STYLES = {
    "chatml": _Style(
        begin="''",
        head="'<|im_start|>' ~ role ~ '\\n'",
        stop="'<|im_end|>\\n'",
        tool_role="user",
        trim="",
        tokens=("<|im_start|>", "<|im_end|>"),
    ),
    "llama3": _Style(
        begin="'<|begin_of_text|>'",
        head="'<|start_header_id|>' ~ role ~ '<|end_header_id|>\\n\\n'",
        stop="'<|eot_id|>'",
        tool_role="ipython",
        trim=" | trim",
        tokens=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "roles": _Style(
        begin="''",
        head="'<|' ~ role ~ '|>\\n'",
        stop="'<|end_of_text|>\\n'",
        tool_role="user",
        trim="",
        tokens=("<|system|>", "<|user|>", "<|assistant|>", "<|end_of_text|>"),
    ),
}

_BODY = """\
{%- macro head(role) -%}{{ HEAD }}{%- endmacro -%}
{%- set tool_guide = '' -%}
{%- if tools -%}
  {%- set ns = namespace(list='') -%}
  {%- for tool in tools -%}{%- set ns.list = ns.list ~ '\\n' ~ (tool | tojson) -%}{%- endfor -%}
  {%- set tool_guide = '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n'
      ~ 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' ~ ns.list
      ~ '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within '
      ~ '<tool_call></tool_call> XML tags:\\n<tool_call>\\n'
      ~ '{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call>' -%}
{%- endif -%}
{{- BEGIN -}}
{%- if tool_guide and (not messages or messages[0].role != 'system') -%}
  {{- head('system') ~ tool_guide ~ STOP -}}
{%- endif -%}
{%- for message in messages -%}
  {%- if message.role == 'system' -%}
    {{- head('system') ~ (message.content TRIM) -}}
    {%- if loop.first and tool_guide -%}{{- '\\n\\n' ~ tool_guide -}}{%- endif -%}
    {{- STOP -}}
  {%- elif message.role == 'user' -%}
    {{- head('user') ~ (message.content TRIM) ~ STOP -}}
  {%- elif message.role == 'assistant' -%}
    {{- head('assistant') -}}
    {%- if message.reasoning_content -%}
      {{- '<think>\\n' ~ message.reasoning_content ~ '\\n</think>\\n\\n' -}}
    {%- endif -%}
    {{- message.content TRIM -}}
    {%- for call in message.tool_calls or [] -%}
      {%- if not loop.first or message.content -%}{{- '\\n' -}}{%- endif -%}
      {{- '<tool_call>\\n{"name": "' ~ call.function.name ~ '", "arguments": ' -}}
      {%- if call.function.arguments is string -%}
        {{- call.function.arguments -}}
      {%- else -%}
        {{- call.function.arguments | tojson -}}
      {%- endif -%}
      {{- '}\\n</tool_call>' -}}
    {%- endfor -%}
    {{- STOP -}}
  {%- elif message.role == 'tool' -%}
    {%- if loop.first or loop.previtem.role != 'tool' -%}{{- head('TOOL_ROLE') -}}{%- else -%}{{- '\\n' -}}{%- endif -%}
    {{- '<tool_response>\\n' ~ message.content ~ '\\n</tool_response>' -}}
    {%- if loop.last or loop.nextitem.role != 'tool' -%}{{- STOP -}}{%- endif -%}
  {%- else -%}
    {{- raise_exception('no such role: ' ~ message.role) -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- head('assistant') -}}{%- endif -%}
"""


def choose(setting: str, vocabulary: Vocabulary) -> ChatTemplate:
    """The template that `data.template` names.

    Raises:
        TemplateError: the tokenizer has none, has not the tokens that a built-in one needs, or no such file.
    """
    if setting == "auto":
        if not vocabulary.chat_template:
            raise TemplateError(
                "the tokenizer has no chat template",
                where="data.template: auto",
                fix=f"choose one: data.template={'|'.join(_STYLES)}, or the path of a .jinja file",
            )
        return ChatTemplate("auto", vocabulary.chat_template, vocabulary.tool_template)
    if setting in _STYLES:
        return _built_in(setting, vocabulary)
    try:
        return ChatTemplate(setting, Path(setting).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(
            f"no such template: {error}",
            where=f"data.template: {setting}",
            fix=f"use auto, {', '.join(_STYLES)}, or the path of a .jinja file",
        ) from None


def _built_in(name: str, vocabulary: Vocabulary) -> ChatTemplate:
    style = _STYLES[name]
    special = {token.content for token in vocabulary.added_tokens if token.special}
    missing = [token for token in style.tokens if token not in special]
    if missing:
        raise TemplateError(
            f"the tokenizer has no special token {', '.join(missing)}",
            where=f"data.template: {name}",
            fix="choose a template made for this model (data.template=auto), or add the tokens to the "
            "tokenizer and the model's embeddings first",
        )
    source = _BODY
    for slot, text in (
        ("HEAD", style.head),
        ("STOP", style.stop),
        ("BEGIN", style.begin),
        ("TOOL_ROLE", style.tool_role),
        (" TRIM", style.trim),
    ):
        source = source.replace(slot, text)
    return ChatTemplate(name, source)
