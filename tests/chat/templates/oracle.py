"""What a row teaches under a template, worked out from what inference sees and does, without a line of dist_sft.

An answer begins where that ends which inference is given (`apply_chat_template` of transformers, on messages[:i], with
the generation prompt), as far as the whole text holds the same behind message i-1. An empty thought that no message
holds is given, too, with the blanks around it. An answer ends behind every token on which generation stops, in a row; a
stop that the template writes only when the next turn follows ends the last answer as well.

Which tokens stop generation is data of the listing, for a person to check. All else is found by looking for the row's
own words, each of which stands once in it (conversations.py).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from tests.chat.templates.rowtexts import (
    Turn,
    arguments_of,
    begin_of,
    end_of,
    names_of,
    schema_texts,
    thoughts_of,
    with_arguments_as_text,
    with_joined_parts,
    with_other_emptiness,
    with_parts,
    with_thoughts_apart,
    words_of,
)

TODAY = datetime(2024, 7, 26)
"""The date that dist_sft gives to every template."""

ASK: list[Turn] = [{"role": "user", "content": "zq"}]


class Refused(Exception):
    """The template itself raises, drops a text of the row, or writes nothing that ends an answer."""


@dataclass(frozen=True)
class Learned:
    """whole: all of the text.  texts: the pieces of it that are learned, in order; none touches the next.  end: of the
    last of them, in the text."""

    whole: str
    texts: tuple[str, ...]
    end: int


@dataclass(frozen=True)
class Expected:
    """right: any of these is.  refusal: why the row may be refused as well; None: it may not."""

    right: tuple[Learned, ...]
    refusal: str | None


@dataclass(frozen=True)
class Template:
    """A chat template, and what a person knows of it.

    named     bos_token and eos_token, as the template sees them
    stops     tokens on which generation stops
    thought   how a thought opens and closes
    controls  tokens that are one whole: no answer begins inside one
    rstrip    tokens to which the blanks behind them belong
    """

    source: str
    named: dict[str, str]
    stops: tuple[str, ...]
    thought: tuple[str, str] = ("<think>", "</think>")
    controls: tuple[str, ...] = ()
    rstrip: tuple[str, ...] = ()

    def render(self, turns: Sequence[Turn], tools: list[Any] | None = None, prompt: bool = False) -> str:
        """As apply_chat_template of transformers. Raises: Refused."""
        _compile_jinja_template(self.source).globals["strftime_now"] = TODAY.strftime
        try:
            texts, _ = render_jinja_template(
                [list(turns)], tools=tools, chat_template=self.source, add_generation_prompt=prompt, **self.named
            )
        except Exception as error:  # noqa: BLE001 (a template may raise whatever it likes)
            raise Refused(f"the template raises: {' '.join(str(error).split())[:90]}") from None
        return str(texts[0])

    def expected(self, row: dict[str, Any]) -> Expected:
        """What the row teaches. Parts of a content may be joined before the template sees them, or a text be given as a
        part where it takes no other; a thought inside a content, and a content that is empty beside calls, may be given
        in another way."""
        turns, tools = row["messages"], row.get("tools")
        given = self._learned([turns, with_joined_parts(turns)], tools)
        if all(isinstance(one, Refused) for one in given):
            given += self._learned([with_parts(turns)], tools)
        right = [one for one in given if isinstance(one, Learned)]
        others = [with_thoughts_apart(turns), *([] if right else [with_other_emptiness(turns)])]
        other = self._learned([form for form in others if form != turns], tools)
        refusal = None if right else str(given[0])
        return Expected((*right, *(one for one in other if isinstance(one, Learned))), refusal)

    def _learned(self, forms: list[list[Turn]], tools: list[Any] | None) -> list[Learned | Refused]:
        """What each form of a row teaches, or why it does not. A template may want the arguments of calls as text."""
        different = [form for i, form in enumerate(forms) if form not in forms[:i]]
        return [self._first_learned((form, with_arguments_as_text(form)), tools) for form in different]

    def _first_learned(self, forms: Iterable[list[Turn]], tools: list[Any] | None) -> Learned | Refused:
        refused: list[Refused] = []
        for form in forms:
            try:
                return Talk(self, form, tools).learned()
            except Refused as error:
                refused.append(error)
        return refused[0]


@dataclass(frozen=True)
class Talk:
    """One conversation in the one form in which the template sees it."""

    template: Template
    turns: list[Turn]
    tools: list[Any] | None

    def learned(self) -> Learned:
        """Raises: Refused."""
        whole = self._render(self.turns)
        self._refuse_loss(whole)
        whole = self._closed(whole)
        texts: list[str] = []
        last = -1
        for i, turn in enumerate(self.turns):
            if turn["role"] == "assistant" and turn.get("loss", True):
                begin, end = self._begin(whole, i), self._end(whole, i)
                touches = last == begin or (whole[:last].endswith(self.template.rstrip) and whole[last:begin].isspace())
                texts.append((texts.pop() if texts and touches else "") + whole[begin:end])
                last = end
        return Learned(whole, tuple(texts), last)

    def _render(self, turns: Sequence[Turn], prompt: bool = False) -> str:
        plain = [{key: value for key, value in turn.items() if key != "loss"} for turn in turns]
        return self.template.render(plain, self.tools, prompt)

    def _behind(self, whole: str, i: int) -> int:
        """The end of the last words of message i, or of one before it; 0 before the first."""
        if i < 0:
            return 0
        return max((end_of(text, whole) for text in words_of(self.turns[i])), default=0) or self._behind(whole, i - 1)

    # what is lost

    def _refuse_loss(self, whole: str) -> None:
        """Raises: Refused. An earlier turn's thought may be missing, if it was there when its turn was the newest."""
        for text in schema_texts(self.tools):
            if not end_of(text, whole):
                raise Refused(f"the template drops {text!r} of the tools")
        for i, turn in enumerate(self.turns):
            for text in (*words_of(turn), *names_of(turn)):
                if not end_of(text, whole) and not (text in thoughts_of(turn) and self._was_written(text, i)):
                    raise Refused(f"the template drops {text!r} of messages[{i}]")
            arguments = [item for call in turn.get("tool_calls", ()) for item in arguments_of(call).items()]
            if any(f"'{name}': '{value}'" in whole for name, value in arguments):
                raise Refused("the template writes the arguments as Python does, not as JSON")
            if isinstance(turn["content"], list) and "{'type'" in whole:
                raise Refused("the template writes parts as Python does")
            if turn["content"] is None and re.search(r"\bNone\b", whole):
                raise Refused("the template writes None for a content that is empty")

    def _was_written(self, text: str, i: int) -> bool:
        try:
            return bool(end_of(text, self._render(self.turns[: i + 1])))
        except Refused:
            return False

    # where an answer begins

    def _begin(self, whole: str, i: int) -> int:
        before = self._behind(whole, i - 1)
        gap = whole[before:]
        words = min((at for text in words_of(self.turns[i]) if (at := begin_of(text, gap)) >= 0), default=0)
        return self._behind_empty_thought(whole, before + self._given(gap, words, i), before, i)

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
        """What inference is given behind message i-1, and what of it the prompt adds; "" if the template raises."""
        try:
            prompted = self._render(self.turns[:i], prompt=True)
            return prompted[self._behind(prompted, i - 1) :], self._opening(self.turns[:i], prompted)
        except Refused:
            return "", ""

    def _opening(self, turns: Sequence[Turn], prompted: str) -> str:
        """What the generation prompt adds."""
        return prompted[self._same(prompted, self._render(turns)) :]

    def _usual_opening(self) -> str:
        try:
            return self._opening(ASK, self._render(ASK, prompt=True))
        except Refused:
            return ""

    def _behind_part(self, opening: str, gap: str) -> int:
        """Behind as much of the opening as stands there, in whole control tokens; 0 if nothing does."""
        for length in range(len(opening) - 1, 0, -1):
            if opening[:length].strip() and opening[:length] in gap and self._outside(opening, length) == length:
                return gap.index(opening[:length]) + length
        return 0

    def _behind_preamble(self, gap: str, words: int) -> int:
        """Of a template that writes the same whether an answer is awaited or not: behind as much as stands there of
        what it writes behind a question, else behind what it writes before any message."""
        asked = self._render(ASK, prompt=True)
        behind = asked.rpartition("zq")[2]
        for start in range(len(behind)):
            if behind[start:].strip() and behind[start:] in gap[:words] and self._outside(behind, start) == start:
                return gap.index(behind[start:]) + len(behind) - start
        return self._same(asked, gap)

    def _same(self, given: str, gap: str) -> int:
        """How far two texts are the same, in whole control tokens."""
        pairs = zip(given, gap, strict=False)
        same = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(given), len(gap)))
        return min(self._outside(given, same), self._outside(gap, same))

    def _outside(self, text: str, place: int) -> int:
        """The place, or where the control token begins that it lies inside."""
        for token in self.template.controls:
            at = text.rfind(token, 0, place + len(token) - 1)
            if 0 <= at < place < at + len(token):
                return at
        return place

    # an empty thought

    def _behind_empty_thought(self, whole: str, begin: int, before: int, i: int) -> int:
        found = self._empty_thought(whole, begin, before)
        return max(begin, found.end(1) + self._blanks_of_template(i, len(found[2]))) if found else begin

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
        whole = self._render([*self.turns[:i], self.turns[i] | {"content": content.strip()}, *self.turns[i + 1 :]])
        closes = re.compile(rf"{re.escape(self.template.thought[1])}(\s*)")
        found = closes.search(whole, self._behind(whole, i - 1))
        return min(most, len(found[1])) if found else most

    # where an answer ends

    def _end(self, whole: str, i: int) -> int:
        """Behind the stops that follow the answer's own words. Raises: Refused."""
        words = self._behind(whole, i)
        begun = min(begin_of(text, whole) for text in words_of(self.turns[i]))
        later = [begin_of(text, whole) for turn in self.turns[i + 1 : i + 2] for text in words_of(turn)]
        if any(begun < at < words for at in later):
            raise Refused(f"the template writes messages[{i + 1}] inside messages[{i}]")
        end = self._behind_stops(whole, words, (at for at in later if at >= words))
        if end is None:
            raise Refused(f"the template writes nothing on which generation stops behind messages[{i}]")
        return end

    def _behind_stops(self, whole: str, words: int, later: Iterable[int] = ()) -> int | None:
        """Behind the first stop that follows the words, and those that follow it; None if none comes before `later`."""
        limit = min(later, default=len(whole))
        end = min((at for stop in self.template.stops if (at := whole.find(stop, words, limit)) >= 0), default=None)
        while end is not None and (stop := self._stop_at(whole, end)):
            end += len(stop)
        return end

    def _stop_at(self, whole: str, place: int) -> str | None:
        return next((stop for stop in self.template.stops if whole.startswith(stop, place)), None)

    def _closed(self, whole: str) -> str:
        """The text with the stop of a last answer that the template closes only when the next turn follows.

        Raises: Refused.
        """
        last = len(self.turns) - 1
        words = self._behind(whole, last)
        if self.turns[last]["role"] != "assistant" or self._behind_stops(whole, words) is not None:
            return whole
        called = [call["id"] for call in self.turns[last].get("tool_calls", ())]
        then = [{"role": "tool", "content": "zq", "tool_call_id": called[0]}] if called else ASK
        more = self._render([*self.turns, *then])
        behind = self._behind(more, last)
        end = self._behind_stops(more, behind)
        if end is None:
            raise Refused("the template writes nothing on which generation stops")
        return whole[:words] + more[behind:end]
