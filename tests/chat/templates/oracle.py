"""What a row teaches under a template, worked out from what inference sees and does, without a line of dist_sft.

    begins   where that ends which inference is given, `apply_chat_template(messages[:i], add_generation_prompt=True)`, as
             far as the whole text holds the same behind message i-1. An empty thought that no message holds, and the
             white space around it, is given, too.
    ends     behind every token on which generation stops, in a row. A stop that the template writes only when the next
             turn follows ends the last answer as well.

Which tokens stop generation is data of the listing, for a person to check. All else is found by looking for the row's
own words, each of which stands once in it.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from os.path import commonprefix
from typing import Any

from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

TODAY = datetime(2024, 7, 26)
"""The date that dist_sft gives to every template."""

Turn = dict[str, Any]
ASK: list[Turn] = [{"role": "user", "content": "zq"}]


class Refused(Exception):
    """The template itself raises, drops a string of the row, or writes nothing that ends an answer."""


@dataclass(frozen=True)
class Learned:
    """whole: all of the text.  texts: the pieces of it that are learned, in order; none touches the next."""

    whole: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Expected:
    """right: any of these is.  refusal: why the row may be refused, too; None: it may not."""

    right: tuple[Learned, ...]
    refusal: str | None


@dataclass(frozen=True)
class Template:
    """A chat template, and what a person knows of it.

    named     bos_token and eos_token, as the template sees them
    stops     tokens on which generation stops
    thought   how a thought opens and closes
    controls  tokens that are one whole: no answer begins inside one
    """

    source: str
    named: dict[str, str]
    stops: tuple[str, ...]
    thought: tuple[str, str] = ("<think>", "</think>")
    controls: tuple[str, ...] = ()

    def render(self, turns: Sequence[Turn], tools: list[Any] | None, prompt: bool = False) -> str:
        _compile_jinja_template(self.source).globals["strftime_now"] = TODAY.strftime
        try:
            texts, _ = render_jinja_template(
                [list(turns)], tools=tools, chat_template=self.source, add_generation_prompt=prompt, **self.named
            )
        except Exception as error:  # a template may raise whatever it likes
            raise Refused(f"the template raises: {' '.join(str(error).split())[:90]}") from None
        return str(texts[0])

    def expected(self, row: dict[str, Any]) -> Expected:
        """What the row teaches. A template may want the arguments of a call as text; parts may be joined before it sees
        them, and a thought inside a content may be given apart from it."""
        tools, turns = row.get("tools"), row["messages"]
        right, refusals = self._first_whole([_forms(turns), _forms(_joined(turns))], tools)
        others, _ = self._first_whole([_forms(_thought_apart(turns)), _forms([] if right else _emptied(turns))], tools)
        return Expected(right + others, None if right else refusals[0])

    def _first_whole(
        self, ways: list[tuple[list[Turn], ...]], tools: list[Any] | None
    ) -> tuple[tuple[Learned, ...], list[str]]:
        """Of each group of forms the first that the template writes whole; why the others were not."""
        right: list[Learned] = []
        refusals: list[str] = []
        for forms in ways:
            for turns in filter(None, forms):
                try:
                    right.append(Talk(self, turns, tools).learned())
                    break
                except Refused as error:
                    refusals.append(str(error))
        return tuple(right), refusals


@dataclass(frozen=True)
class Talk:
    """One conversation in the one form in which the template sees it."""

    template: Template
    turns: list[Turn]
    tools: list[Any] | None

    def learned(self) -> Learned:
        """Raises: Refused."""
        whole = self._render(self.turns)
        self._nothing_is_dropped(whole)
        whole, spans = self._closed(whole), []
        for i, turn in enumerate(self.turns):
            if turn["role"] == "assistant" and turn.get("loss", True):
                begin, end = self._begin(whole, i), self._end(whole, i)
                if spans and spans[-1][1] == begin:
                    begin = spans.pop()[0]
                spans.append((begin, end))
        return Learned(whole, tuple(whole[a:b] for a, b in spans))

    def _render(self, turns: Sequence[Turn], prompt: bool = False) -> str:
        plain = [{key: value for key, value in turn.items() if key != "loss"} for turn in turns]
        return self.template.render(plain, self.tools, prompt)

    # what is dropped

    def _nothing_is_dropped(self, whole: str) -> None:
        """A thought of an earlier turn may be missing, if it was there when its turn was the newest."""
        for text in _schema_texts(self.tools):
            if not _ends(whole, text):
                raise Refused(f"the template drops {text!r} of the tools")
        for i, turn in enumerate(self.turns):
            for text in _texts(turn):
                if not _ends(whole, text) and not (text in _thoughts(turn) and self._was_written(text, i)):
                    raise Refused(f"the template drops {text!r} of messages[{i}]")
            calls = [_arguments(call).items() for call in turn.get("tool_calls", ())]
            if any(f"'{name}': '{value}'" in whole for arguments in calls for name, value in arguments):
                raise Refused("the template writes the arguments as Python does, not as JSON")
            if isinstance(turn["content"], list) and "{'type'" in whole:
                raise Refused("the template writes parts as Python does")
            if turn["content"] is None and re.search(r"\bNone\b", whole):
                raise Refused("the template writes None for a content that is empty")

    def _was_written(self, text: str, i: int) -> bool:
        try:
            return bool(_ends(self._render(self.turns[: i + 1]), text))
        except Refused:
            return False

    # where an answer begins

    def _begin(self, whole: str, i: int) -> int:
        before = self._behind(whole, i - 1)
        words = min((at for text in _texts(self.turns[i]) if (at := _starts(whole[before:], text)) >= 0), default=0)
        begin = before + self._given(whole[before:], words, i)
        return self._behind_empty_thought(whole, begin, before, i)

    def _given(self, gap: str, words: int, i: int) -> int:
        """How much of the text behind message i-1 inference is given. words: where those of the answer begin in it."""
        given, opening = self._prompt(i)
        usual = self._usual_opening()
        if given and gap.startswith(given) and (opening or not usual):
            return len(given)
        for text in filter(None, (opening, usual, opening.lstrip(), usual.lstrip())):
            if text in gap[:words]:
                return gap.index(text) + len(text)
        closing = given.removesuffix(opening)
        if opening and gap.startswith(closing):
            return len(closing) + self._same(opening, gap[len(closing) :])
        return self._behind_part(usual, gap[:words]) or self._same(given, gap) or self._behind_preamble(gap, words)

    def _prompt(self, i: int) -> tuple[str, str]:
        """What inference is given behind message i-1, and what of it the generation prompt adds; nothing if it raises."""
        try:
            prompted = self._render(self.turns[:i], prompt=True)
            return prompted[self._behind(prompted, i - 1) :], self._opening(self.turns[:i], prompted)
        except Refused:
            return "", ""

    def _same(self, given: str, gap: str) -> int:
        """How far two texts are the same, in whole control tokens."""
        same = len(commonprefix([given, gap]))
        return min(self._whole_tokens(given, same), self._whole_tokens(gap, same))

    def _behind_part(self, opening: str, gap: str) -> int:
        """Behind as much of the opening as stands there, in whole control tokens; 0 if nothing does."""
        for length in range(len(opening) - 1, 0, -1):
            if opening[:length].strip() and opening[:length] in gap and self._whole_tokens(opening, length) == length:
                return gap.index(opening[:length]) + length
        return 0

    def _behind_preamble(self, gap: str, words: int) -> int:
        """Of a template that opens all answers alike, asked for or not: behind as much as stands there of what is written
        behind a question; else behind what stands before any first message."""
        asked = self._render(ASK, prompt=True)
        behind = asked.rpartition("zq")[2]
        for start in range(len(behind)):
            if behind[start:].strip() and behind[start:] in gap[:words] and self._whole_tokens(behind, start) == start:
                return gap.index(behind[start:]) + len(behind) - start
        return self._same(asked, gap)

    def _whole_tokens(self, text: str, place: int) -> int:
        """The place, or where the control token begins that it lies inside."""
        for token in self.template.controls:
            at = text.rfind(token, 0, place + len(token) - 1)
            if 0 <= at < place < at + len(token):
                return at
        return place

    def _opening(self, turns: Sequence[Turn], prompted: str) -> str:
        """What the generation prompt adds."""
        asked = self._render(turns)
        return prompted[self._same(prompted, asked) :]

    def _usual_opening(self) -> str:
        try:
            return self._opening(ASK, self._render(ASK, prompt=True))
        except Refused:
            return ""

    def _behind_empty_thought(self, whole: str, begin: int, before: int, i: int) -> int:
        found = self._empty_thought(whole, begin, before)
        if not found:
            return begin
        return max(begin, found.end(1) + self._blanks_of_template(i, len(found[2])))

    def _empty_thought(self, whole: str, begin: int, before: int) -> re.Match[str] | None:
        """One over or beside a place; of one that the prompt opens, the rest."""
        opens, closes = map(re.escape, self.template.thought)
        for found in re.compile(rf"(\s*{opens}\s*{closes})(\s*)").finditer(whole, before):
            if found.start() <= begin <= found.end():
                return found
        return re.compile(rf"(\s*{closes})(\s*)").match(whole, begin)

    def _blanks_of_template(self, i: int, most: int) -> int:
        """Behind an empty thought: how many blanks are the template's own, not the answer's."""
        content = self.turns[i]["content"]
        if not isinstance(content, str) or content == content.lstrip():
            return most
        stripped = [*self.turns[:i], self.turns[i] | {"content": content.strip()}, *self.turns[i + 1 :]]
        whole = self._render(stripped)
        before = self._behind(whole, i - 1)
        found = re.compile(rf"{re.escape(self.template.thought[1])}(\s*)").search(whole, before)
        return min(most, len(found[1])) if found else most

    # where it ends

    def _end(self, whole: str, i: int) -> int:
        """Behind the stops that follow the answer's own words."""
        words = self._behind(whole, i)
        begun = min(_starts(whole, text) for text in _texts(self.turns[i], names=False))
        later = [_starts(whole, text) for turn in self.turns[i + 1 : i + 2] for text in _texts(turn, names=False)]
        if any(begun < at < words for at in later):
            raise Refused(f"the template writes messages[{i + 1}] inside messages[{i}]")
        end = self._behind_stops(whole, words, min((at for at in later if at >= words), default=len(whole)))
        if end is None:
            raise Refused(f"the template writes nothing on which generation stops behind messages[{i}]")
        return end

    def _behind_stops(self, whole: str, words: int, limit: int) -> int | None:
        places = [(at, stop) for stop in self.template.stops if 0 <= (at := whole.find(stop, words, limit))]
        if not places:
            return None
        end = min(places)[0]
        while stop := next((stop for stop in self.template.stops if whole.startswith(stop, end)), None):
            end += len(stop)
        return end

    def _closed(self, whole: str) -> str:
        """The text with the stop of a last answer that the template closes only when the next turn follows."""
        last = len(self.turns) - 1
        words = self._behind(whole, last)
        if self.turns[last]["role"] != "assistant" or self._behind_stops(whole, words, len(whole)) is not None:
            return whole
        called = [call.get("id", "") for call in self.turns[last].get("tool_calls", [])]
        then = [{"role": "tool", "content": "zq", "tool_call_id": called[0]}] if called else ASK
        more = self._render([*self.turns, *then])
        behind = self._behind(more, last)
        end = self._behind_stops(more, behind, len(more))
        if end is None:
            raise Refused("the template writes nothing on which generation stops")
        return whole[:words] + more[behind:end]

    # where words stand

    def _behind(self, whole: str, i: int) -> int:
        """The end of the last words of message i; 0 before the first."""
        if i < 0:
            return 0
        ends = [_ends(whole, text) for text in _texts(self.turns[i], names=False)]
        return max(ends, default=0) or self._behind(whole, i - 1)


def _ends(whole: str, text: str) -> int:
    """Behind a text, as it is or as JSON writes it; of a JSON object behind its last leaf. 0: it is not there."""
    at = _starts(whole, text)
    if at >= 0:
        return at + len(next(form for form in _written(text) if whole.startswith(form, at)))
    try:
        value = json.loads(text)
    except ValueError:
        return 0
    ends = [_ends(whole, leaf) for leaf in _leaves(value)]
    return max(ends) if ends and all(ends) else 0


def _starts(whole: str, text: str) -> int:
    return next((at for form in _written(text) if (at := whole.find(form)) >= 0), -1)


def _written(text: str) -> tuple[str, ...]:
    return text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]


def _texts(turn: Turn, names: bool = True) -> Iterator[str]:
    """The texts of a turn without blanks at their ends; names: and the names in its calls, which stand elsewhere too."""
    yield from _thoughts(turn)
    content = turn["content"]
    for text in content if isinstance(content, list) else [content or ""]:
        text = text["text"] if isinstance(text, dict) else text
        yield from (piece.strip() for piece in re.split(r"</?think>", text) if piece.strip())
    for call in turn.get("tool_calls", ()):
        yield from (call["function"]["name"], *_arguments(call)) if names else ()
        yield from map(str, _arguments(call).values())


def _arguments(call: Turn) -> dict[str, Any]:
    arguments = call["function"]["arguments"]
    return json.loads(arguments) if isinstance(arguments, str) else arguments


def _thoughts(turn: Turn) -> list[str]:
    content = turn["content"]
    inside = re.findall(r"<think>(.*?)</think>", content, re.DOTALL) if isinstance(content, str) else []
    return [text.strip() for text in (turn.get("reasoning_content"), *inside) if text and text.strip()]


def _schema_texts(tools: list[Any] | None) -> Iterator[str]:
    for tool in tools or ():
        function = tool["function"]
        yield from (function["name"], function["description"])
        for name, described in function["parameters"]["properties"].items():
            yield from (name, described["description"])


def _leaves(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        return [leaf for inner in (value.values() if isinstance(value, dict) else value) for leaf in _leaves(inner)]
    return [value if isinstance(value, str) else json.dumps(value)]


# forms of a row


def _joined(turns: list[Turn]) -> list[Turn]:
    """Parts of a content joined to one text."""
    return [
        turn | {"content": "".join(part["text"] for part in turn["content"])} if isinstance(turn["content"], list) else turn
        for turn in turns
    ]


def _forms(turns: list[Turn]) -> tuple[list[Turn], ...]:
    """As it is, and with the arguments of calls as JSON text, as OpenAI's interface has them."""

    def call(one: Turn) -> Turn:
        return one | {"function": one["function"] | {"arguments": json.dumps(one["function"]["arguments"])}}

    return turns, [
        turn | {"tool_calls": list(map(call, turn["tool_calls"]))} if "tool_calls" in turn else turn for turn in turns
    ]


def _emptied(turns: list[Turn]) -> list[Turn]:
    """An empty content beside calls written the other way: None for "", "" for None."""
    other = {"": None, None: ""}
    swapped = [
        turn | {"content": other[turn["content"]]} if turn.get("tool_calls") and not turn["content"] else turn
        for turn in turns
    ]
    return swapped if swapped != turns else []


def _thought_apart(turns: list[Turn]) -> list[Turn]:
    """A thought that opens a content given to the template as reasoning_content."""

    def apart(turn: Turn) -> Turn:
        content = turn["content"]
        found = re.match(r"<think>\s*(.*?)\s*</think>\s*", content, re.DOTALL) if isinstance(content, str) else None
        return turn | {"content": content[found.end() :], "reasoning_content": found[1]} if found else turn

    moved = [apart(turn) for turn in turns]
    return moved if moved != turns else []
