"""Rows whose text is already written as the run's template writes: control tokens and all.

text ─ dialect ─> turns ─ render ─> the same text again? ─> Conversation, encoded as every other
                                    if not ─> RowError: control_tokens

Such a text is found by how it begins: with the opening of a turn, and a turn that ends. A text that only mentions a
control token is a text, in which it is spelled out in letters, and told (`Encoder.spelled`).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from dist_sft.chat.conversation import Conversation, Message, Role
from dist_sft.chat.dialect import Dialect, told_tools
from dist_sft.chat.layouts import calls_in
from dist_sft.chat.messages import answer, parse_calls
from dist_sft.chat.render import Renderer
from dist_sft.core.errors import RowError

Policy = Literal["refuse", "parse", "text"]
"""config.data.Source.control_tokens."""
CONTROL_TOKENS = "control_tokens"
"""Reason of a RowError: its text holds turns as the template writes them, and nobody said how to read that."""

_TAGS = re.compile(r"\s*(?:</?\w+>\s*)*")
_SHOWN = 40


@dataclass(frozen=True, slots=True)
class _Turn:
    """A turn of a text. content: text[start:end]; thoughtless: the template may add an empty thought before it."""

    role: Role
    start: int
    end: int
    thoughtless: bool


class Prerendered:
    """Finds such rows, and reads them. One for each policy of a source."""

    def __init__(self, dialect: Dialect, renderer: Renderer, suspect: re.Pattern[str], policy: Policy) -> None:
        """suspect: finds the template's control tokens."""
        self._dialect, self._renderer, self._suspect, self._policy = dialect, renderer, suspect, policy
        self.writes_calls = dialect.writes_calls
        self._ends = tuple(dict.fromkeys((*dialect.stops, *dialect.leads)))
        self._patterns = {role: _pattern(dialect, role) for role in ("system", "user", "assistant", "tool")}

    def reread(self, prompt: str, completion: str | None) -> Conversation | None:
        """The turns of a text that the template could have written; None for any other text.

        Args:
            completion: what follows the prompt, and is to be learned, where they stand apart.
        Raises:
            RowError: control_tokens: such a text, where the policy is to refuse it, or it cannot be read back.
        """
        if self._policy == "text" or not self._is_written(prompt, completion):
            return None
        if self._policy == "parse":
            return self._read(prompt, completion)
        try:
            turns = f"reads it as the {len(self._read(prompt, completion).messages)} turns that it is"
        except RowError as error:
            turns = f"would read it as turns, but {error.what}"
        found = self._suspect.search(prompt)
        raise RowError(
            f"its text is written with control tokens of this model's chat template ({found[0] if found else ''!r}), "
            "which would be spelled out in letters",
            reason=CONTROL_TOKENS,
            fix=f"set control_tokens of the source: parse {turns}; text keeps it as plain text",
        )

    def own_stop(self, message: Message, place: str) -> Message:
        """An answer without the token that it brings along to end itself: the template writes its own.

        Raises:
            RowError: control_tokens: it has one, and the policy is to refuse it.
        """
        bare = message.content.rstrip()
        if not bare.endswith(self._ends) or self._policy == "text":
            return message
        stop = next(stop for stop in self._ends if bare.endswith(stop))
        if self._policy == "parse":
            return replace(message, content=bare.removesuffix(stop).rstrip())
        raise RowError(
            f"{place} ends with {stop}, and the template ends it, too: the former would be learned in letters",
            reason=CONTROL_TOKENS,
            fix="set control_tokens of the source: parse takes it for the end of the answer, text keeps it as it is",
        )

    def _is_written(self, prompt: str, completion: str | None) -> bool:
        """Whether a text begins as the template's do; of a prompt, too, whether the assistant speaks where it ends."""
        if not self._begins(self._without_leads(prompt + (completion or ""))):
            return False
        if completion is None:
            return True
        ends = [at + len(text) for text in self._dialect.prompts if (at := prompt.rfind(text)) >= 0]
        speaks = bool(ends) and self._suspect.search(_TAGS.sub("", prompt[max(ends) :], 1)) is None
        return speaks or completion.lstrip().startswith(self._dialect.prompts)

    def _begins(self, text: str) -> bool:
        """Whether a text begins with a turn, and goes on as one: by a role that the template knows, or by another."""
        opening = next((opening for opening in self._dialect.openings if text.startswith(opening)), None)
        first = self._suspect.match(text)
        if opening is not None:
            return self._suspect.search(text, len(opening)) is not None
        if first is None or not any(opening.startswith(first[0]) for opening in self._dialect.openings):
            return False
        return first[0] in text[first.end() :] and any(stop in text for stop in self._dialect.stops)

    def _without_leads(self, text: str) -> str:
        """A text from the opening of its first turn on, if it has one."""
        text = text.lstrip()
        while not text.startswith(self._dialect.openings) and text.startswith(self._dialect.leads):
            lead = next(lead for lead in self._dialect.leads if text.startswith(lead))
            text = text[len(lead) :].lstrip()
        return text

    def _read(self, prompt: str, completion: str | None) -> Conversation:
        text = prompt + (completion or "")
        turns = self._turns(text, open_end=completion is not None or any(not end.strip() for end in self._dialect.ends))
        why = ""
        for conversation in self._candidates(text, turns):
            found = self._proved(text, turns, conversation)
            if isinstance(found, int):
                messages = conversation.messages
                if completion is not None:
                    messages = _completed(messages, turns, text, len(prompt))
                return replace(conversation, messages=messages, reread=found)
            why = why or found
        raise _unread(why)

    def _turns(self, text: str, open_end: bool) -> list[_Turn]:
        """How a text falls into turns. open_end: the last may end without a stop token. Raises RowError."""
        role, place = self._first(text)
        turns: list[_Turn] = []
        thoughtless = False
        while True:
            match = self._patterns[role].search(text, place)
            if match is None:
                if role != "assistant" or not open_end:
                    raise _unread(f"no turn follows {text[place : place + _SHOWN]!r}, and no end")
                return [*turns, _Turn(role, place, len(text.rstrip()), thoughtless)]
            turns.append(_Turn(role, place, match.start(), thoughtless))
            if match.lastgroup == "end":
                return turns
            gap = match[0]
            role = next(to for (was, to), gaps in self._dialect.gaps.items() if was == role and gap in gaps)
            place = match.end()
            thoughtless = role == "assistant" and not gap.endswith(self._dialect.thought or "\0")

    def _first(self, text: str) -> tuple[Role, int]:
        """The role of the first turn, and where its content begins. What begins every text may be missing."""
        starts = [(gap, role) for (was, role), gaps in self._dialect.gaps.items() if was is None for gap in gaps]
        for gap, role in sorted(starts, key=lambda start: -len(start[0])):
            for lead in ("", self._dialect.bos):
                if gap.startswith(lead) and text.startswith(gap[len(lead) :]):
                    return role, len(gap) - len(lead)
        wanted = min((gap for gap, _ in starts), key=len)
        raise _unread(f"the template begins with {wanted[:_SHOWN]!r}, and the text with {text[:_SHOWN]!r}")

    def _candidates(self, text: str, turns: Sequence[_Turn]) -> Iterator[Conversation]:
        """What the turns may say: thoughts, calls and tools told apart; or all of it as it stands."""
        raw = [(turn.role, text[turn.start : turn.end]) for turn in turns]
        tools: tuple[Any, ...] = ()
        told = told_tools(raw[0][1], self._dialect.tools) if raw[0][0] == "system" and self._dialect.tools else None
        if told is not None:
            tools, raw[0] = told[1], ("system", told[0])
        if told is not None and not told[0]:
            raw = raw[1:]
        for as_text in (False, True):
            yield Conversation(tuple(_message(role, said, as_text) for role, said in raw), tools)
        yield Conversation(tuple(Message(role, said) for role, said in raw), tools)

    def _proved(self, text: str, turns: Sequence[_Turn], conversation: Conversation) -> int | str:
        """How many empty thoughts the template adds to the text, and nothing else; or where it does."""
        if found := next(filter(None, map(self._suspect.search, strings_of(conversation))), None):
            return f"{found[0]} stands inside a turn"
        try:
            written = self._renderer.render(conversation)
        except RowError as error:
            return error.what
        bos = self._dialect.bos
        place, here, added = len(bos) if not text.startswith(bos) and written.startswith(bos) else 0, 0, 0
        thought = self._dialect.thought
        for turn in turns:
            if not (turn.thoughtless and thought):
                continue
            if not written.startswith(text[here : turn.start], place):
                return _difference(text, here, written, place)
            place, here = place + turn.start - here, turn.start
            if written.startswith(thought, place) and not text.startswith(thought, here):
                place, added = place + len(thought), added + 1
        rest = text[here:].rstrip()
        if not written.startswith(rest, place):
            return _difference(text, here, written, place)
        if self._suspect.sub("", written[place + len(rest) :]).strip():
            return f"the template goes on with {written[place + len(rest) :][:_SHOWN]!r}"
        return added


def _pattern(dialect: Dialect, role: Role) -> re.Pattern[str]:
    """Finds where a turn of this role ends: at a gap, the longest first, or at the end of the text."""
    gaps = sorted(
        {gap for (was, _), gaps in dialect.gaps.items() if was == role for gap in gaps}, key=len, reverse=True
    )
    options = [re.escape(gap) for gap in gaps if gap]
    if role == "assistant":
        ends = dict.fromkeys((*(end.rstrip() for end in dialect.ends), *dialect.stops))
        options.append(rf"(?P<end>(?:{'|'.join(map(re.escape, filter(None, ends))) or '(?!)'})\s*\Z)")
    return re.compile("|".join(options) or r"(?!)")


def _message(role: Role, said: str, as_text: bool) -> Message:
    """A turn; an answer with its thought and its calls told apart. as_text: the arguments of calls as they stand."""
    if role != "assistant":
        return Message(role, said)
    message = answer(role, said, None)
    found = calls_in(message.content)
    if found is None:
        return message
    calls = parse_calls(found[1], "a call")
    if as_text:
        texts = re.findall(r'"arguments": (.*)\}\s*</tool_call>', message.content)
        calls = tuple(replace(call, arguments=text) for call, text in zip(calls, texts, strict=False))
    return replace(message, content=found[0], tool_calls=calls)


def _completed(messages: tuple[Message, ...], turns: Sequence[_Turn], text: str, border: int) -> tuple[Message, ...]:
    """The messages of a prompt, up to the border, and its completion: answers in the prompt are context.

    Raises RowError for an answer that begins in the prompt, but for a tag that opens its thought.
    """
    places = turns[len(turns) - len(messages) :]
    for turn in places:
        begun = turn.role == "assistant" and turn.start < border < turn.end
        if begun and _TAGS.fullmatch(text, turn.start, border) is None:
            raise _unread("the completion begins in the middle of an answer")
    return tuple(
        replace(message, weight=0.0) if turn.role == "assistant" and turn.end <= border else message
        for message, turn in zip(messages, places, strict=True)
    )


def strings_of(conversation: Conversation) -> Iterator[str]:
    """All that a conversation says, to look for control tokens in."""
    for message in conversation.messages:
        yield message.content
        yield message.reasoning or ""
        for call in message.tool_calls:
            yield f"{call.name} {call.arguments}"
    yield str(conversation.tools)


def _difference(text: str, here: int, written: str, place: int) -> str:
    same = next(
        (i for i, (a, b) in enumerate(zip(text[here:], written[place:], strict=False)) if a != b),
        min(len(text) - here, len(written) - place),
    )
    begin = max(0, same - 10)
    shown, held = (whole[begin : begin + _SHOWN] for whole in (written[place:], text[here:]))
    return f"the template writes {shown!r} where the text has {held!r}"


def _unread(why: str) -> RowError:
    return RowError(
        why or "it has no turn",
        reason=CONTROL_TOKENS,
        fix="set control_tokens of the source to text, which keeps it as plain text, or write the rows as messages",
    )
