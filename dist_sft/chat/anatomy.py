"""What a template does, learned once from small conversations: how answers open and stop, what it leaves out."""

import re
from dataclasses import dataclass
from typing import Literal

from dist_sft.chat.conversation import Conversation, Message, ToolCall
from dist_sft.chat.marks import Located, render_marked
from dist_sft.chat.render import Renderer
from dist_sft.chat.turns import ASK, NOTHING, SAY, SCHEMA, Kind, Stops, Turns, call_id_at
from dist_sft.chat.vocabulary import Vocabulary
from dist_sft.core.errors import RowError, TemplateError

IdStyle = Literal["none", "plain", "named"]
"""Ids of tool calls that a template must have: none; any; or such that say the function's name."""
_ANY_EMPTY_THOUGHT = (
    r"<(?P<tag>[\w:]+)>\s*</(?P=tag)>|\[(?P<box>\w+)\]\s*\[/(?P=box)\]|</think>"
    r"|<\|START_(?P<part>\w+)\|>\s*<\|END_(?P=part)\|>"
)
_THOUGHT, _ANSWER = "<think>\n3\n</think>\n\n", "2"


@dataclass(frozen=True)
class Anatomy:
    """A template, taken apart.

    turns          how its answers open and stop
    stops          special tokens, one of which ends each answer; the template's own first
    reasons        it writes reasoning that is given apart from the answer
    keeps_thoughts it writes a thought inside a content as it stands, and does not look for it
    empty_thought  what it writes before an answer that has none, with the blanks around it
    ids            see IdStyle
    has_tools      it writes schemas of tools
    tagged         it has {% generation %} regions
    borders        an answer's opening and stop as the template writes them, where they are not the generation prompt
                   (with an empty thought) and the first special token; else ()
    words          all text that it wrote by itself
    """

    turns: Turns
    stops: tuple[str, ...]
    reasons: bool
    keeps_thoughts: bool
    empty_thought: re.Pattern[str]
    ids: IdStyle
    has_tools: bool
    tagged: bool
    borders: tuple[str, ...]
    words: frozenset[str]


def study(renderer: Renderer, vocabulary: Vocabulary) -> Anatomy:
    """Take a template apart.

    Raises:
        TemplateError: it refuses one question and one answer, has no generation prompt, writes no stop token, or its
            {% generation %} regions leave out the answer or its stop token.
    """
    special = [token.content for token in vocabulary.added_tokens if token.special]
    turns = Turns(renderer, special, vocabulary.special_tokens.get("eos_token"))
    one = turns.written((ASK, SAY), turns.base)
    if one is None:
        raise _refused(renderer)
    if len(one.spans) != 2:
        raise TemplateError(
            "the chat template leaves out the question or the answer, or writes it twice",
            fix="choose another data.template",
        )
    stop = _stop(turns)
    begin = _check_opening(turns, one, stop)
    _check_regions(one, stop)
    empty_thought = _empty_thought(turns)
    more = (
        turns.written(kinds, turns.base, prompt) for kinds, prompt in (((ASK, SAY, ASK, SAY), False), ((ASK,), True))
    )
    eos = vocabulary.special_tokens.get("eos_token", stop)
    return Anatomy(
        turns=turns,
        stops=tuple(dict.fromkeys((*turns.stop_tokens, eos))),
        reasons=_writes_reasoning(turns),
        keeps_thoughts=_keeps_thoughts(renderer, turns),
        empty_thought=empty_thought,
        ids=_id_style(renderer),
        has_tools=_writes_tools(renderer),
        tagged=bool(one.generation),
        borders=_borders(turns, one, begin, stop, empty_thought),
        words=renderer.literals | {one.text} | {found.text for found in more if found} | {stop},
    )


def _refused(renderer: Renderer) -> TemplateError:
    talk = Conversation((Message("user", "1"), Message("assistant", "2")))
    try:
        renderer.render(talk)
    except RowError as error:
        why = error.what
    else:
        why = "it refuses the same with its words marked"
    return TemplateError(
        f"the chat template cannot write a question and an answer: {why}", fix="choose another data.template"
    )


def _talk(turns: Turns) -> Conversation:
    messages = (Message("user", "1"), Message("assistant", "2"))
    return Conversation(messages, turns.base.tools)


def _stop(turns: Turns) -> str:
    """The special token that ends a plain answer at the end of a text."""
    stops: Stops = turns.stops(_talk(turns), 1)
    if stops.last is None:
        raise TemplateError(
            "the chat template writes no special token after an answer: no model would learn to stop",
            fix="write {{ eos_token }} at the end of each assistant's turn",
        )
    return stops.last


def _check_opening(turns: Turns, one: Located, stop: str) -> int:
    """Where the answer begins."""
    opening = turns.opening(_talk(turns), 1)
    prompt = "".join(opening.prompt) if opening else ""
    low, high = one.spans[0].end, one.spans[1].start
    begin = turns.begin(_talk(turns), 1, one.text, low, high)
    if begin is None:
        raise TemplateError(
            "the chat template opens an answer otherwise than its generation prompt does",
            fix=f"let each assistant's turn begin with {prompt!r}",
        )
    closes = turns.always_prompts and stop in prompt and not prompt.rpartition(stop)[2].strip()
    if not prompt.strip() or (closes and one.text[begin:high].strip()):
        raise TemplateError(
            "the chat template has no generation prompt, so nothing says where an answer begins",
            fix="let it write the opening of an assistant's turn `if add_generation_prompt`",
        )
    return begin


def _borders(turns: Turns, one: Located, begin: int, stop: str, empty_thought: re.Pattern[str]) -> tuple[str, ...]:
    header = one.text[begin : one.spans[1].start]
    behind = turns.units(one.text[one.spans[1].end :])
    first = next((unit for unit in behind if turns.is_special(unit)), None)
    within = turns.stops(_talk(turns), 1).within
    plain = not header.strip() or empty_thought.fullmatch(header) is not None
    return () if plain and first == stop == within else (header, stop, within or "")


def _check_regions(one: Located, stop: str) -> None:
    """The template's {% generation %} regions hold the answer and its stop token."""
    answer = one.spans[1]
    end = one.text.find(stop, answer.end) + len(stop)
    if one.generation and not any(a <= answer.start and end <= b for a, b in one.generation):
        raise TemplateError(
            f"the chat template's {{% generation %}} region leaves out the answer or its {stop}",
            fix=f"let {{% endgeneration %}} follow {stop}: the model must learn to stop",
        )


def _writes_reasoning(turns: Turns) -> bool:
    found = turns.written((ASK, Kind("assistant", reasoning=True)), turns.base)
    return found is not None and not found.lost


def _keeps_thoughts(renderer: Renderer, turns: Turns) -> bool:
    """Whether a content with a thought inside is written as it stands, and otherwise than a thought given apart."""
    question = Message("user", "1")
    inside = Message("assistant", _THOUGHT + _ANSWER)
    apart = Message("assistant", _ANSWER, reasoning="3")
    try:
        text = renderer.render(Conversation((question, inside), turns.base.tools))
    except RowError:
        return False
    try:
        same = text == renderer.render(Conversation((question, apart), turns.base.tools))
    except RowError:
        same = False
    return inside.content in text and not same


def _empty_thought(turns: Turns) -> re.Pattern[str]:
    """A thought's opening and its end with nothing between, as this template writes them or as others do."""
    forms = [_ANY_EMPTY_THOUGHT]
    found = turns.written((ASK, Kind("assistant", reasoning=True)), turns.base)
    if found and [span.part.kind for span in found.spans] == ["content", "reasoning", "content"]:
        asked, thought, answer = found.spans
        before = turns.units(found.text[asked.end : thought.start].rstrip())
        behind = turns.units(found.text[thought.end : answer.start].lstrip())
        tags = [n for n, unit in enumerate(before) if len(unit) > 1]
        alike = next((n for n in tags if before[n + 1 :] == behind[1 : len(before) - n] and len(before) - n > 1), None)
        last = next((n for n, unit in enumerate(behind) if len(unit) > 1), None)
        if alike is not None:  # <|open|>think<|sep|> ... <|close|>think<|sep|>
            opens, ends = "".join(before[alike:]), "".join(behind[: len(before) - alike])
        elif tags and last is not None:
            opens, ends = "".join(before[tags[-1] :]), "".join(behind[: last + 1])
        else:
            opens = ends = ""
        forms += [rf"{re.escape(opens)}\s*{re.escape(ends)}", re.escape(ends)] if ends else []
    return re.compile(rf"\s*(?P<core>{'|'.join(forms)})\s*")


def _id_style(renderer: Renderer) -> IdStyle:
    """The first way to make ids with which the template writes a call, all of it, and its result."""
    styles: tuple[IdStyle, ...] = ("none", "plain", "named")
    for style in styles:
        call_id = made_id(style, "f", 1, 0)
        call, result = (
            Message("assistant", "", tool_calls=(ToolCall("f", {"x": "4"}, call_id),)),
            Message("tool", "5", name="f", call_id=call_id),
        )
        talk = Conversation((Message("user", "1"), call, result, Message("assistant", "2")), (SCHEMA,))
        try:
            found = render_marked(renderer, talk, NOTHING)
        except RowError:
            continue
        if not any(part.kind == "call" for part in found.lost) or (
            call_id and "f" in call_id and call_id in found.text
        ):
            return style
    return "none"


def made_id(style: IdStyle, name: str, message: int, call: int) -> str | None:
    """An id for a call that has none, by its place. named: as Kimi K2 has it."""
    if style == "none":
        return None
    return call_id_at(message, call) if style == "plain" else f"functions.{name}:{call}"


def _writes_tools(renderer: Renderer) -> bool:
    talk = (Message("user", "1"), Message("assistant", "2"))
    try:
        with_tools = renderer.render(Conversation(talk, (SCHEMA,)))
    except RowError:
        return False
    try:
        return with_tools != renderer.render(Conversation(talk))
    except RowError:
        return True  # it writes nothing without them
