"""How an answer opens and where it ends, found by small conversations that the template writes.

Inference gives a model the turns before an answer, with the generation prompt, and goes on until a token on which it
stops. So an answer begins where the text follows that prompt no longer, and ends with the token that tells its end from
the turn behind it:

    [ask] + generation prompt                  what stands before an answer
    [ask, say]  against  [ask, say, ask]       what belongs to the answer, and what to the turn behind it
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import dropwhile, takewhile
from typing import Any, NamedTuple

from dist_sft.chat.conversation import Conversation, Message, ToolCall
from dist_sft.chat.marks import Located, render_marked
from dist_sft.chat.render import Renderer
from dist_sft.chat.vocabulary import any_of
from dist_sft.core.errors import RowError

NOTHING = re.compile(r"(?!)")
SCHEMA: dict[str, Any] = {"type": "function", "function": {"name": "f", "description": "g", "parameters": {
    "type": "object", "properties": {"x": {"type": "string", "description": "h"}}, "required": ["x"]}}}  # fmt: skip
_TAGS = r"<[^<>\s]+>|\[/?\w+\]"

Units = tuple[str, ...]
"""A text as control tokens, tags and single characters: two texts never part inside one of these."""


class Kind(NamedTuple):
    """What a turn has, as far as templates ask. calls: 2 stands for more."""

    role: str
    content: bool = True
    reasoning: bool = False
    calls: int = 0

    @classmethod
    def of(cls, message: Message) -> "Kind":
        content, reasoning = bool(message.content.strip()), bool((message.reasoning or "").strip())
        return cls(message.role, content, reasoning, min(len(message.tool_calls), 2))


ASK, SAY, SYSTEM = Kind("user"), Kind("assistant"), Kind("system")
RESULT, CALL = Kind("tool"), Kind("assistant", content=False, calls=1)


@dataclass(frozen=True, slots=True)
class Opening:
    """What inference writes behind the last string of the turns before an answer.

    closing  how the last of these turns ends
    prompt   the generation prompt; where there is none, all
    """

    closing: str
    prompt: Units


@dataclass(frozen=True, slots=True)
class Stops:
    """The special token that ends an answer where a turn follows, and at the end of the text; None: none does.

    closing  what the template would write there if a turn followed, up to that token
    prompt   the generation prompt that it writes there instead, though nobody asked
    """

    within: str | None
    last: str | None
    closing: str = ""
    prompt: str = ""

    def closed(self, text: str) -> str:
        """A text of the template that does not close its last answer, with what does."""
        return text.removesuffix(self.prompt) + self.closing


class Turns:
    """Openings and stops of one template, each found when a row first needs it."""

    def __init__(self, renderer: Renderer, special: Sequence[str], eos: str | None) -> None:
        """special: the tokenizer's special tokens. eos: the one that ends a text, if there is one."""
        self._renderer, self._special = renderer, frozenset(special)
        self._units = re.compile(f"{any_of(special)}|{_TAGS}|.", re.DOTALL)
        self._openings: dict[object, Opening | None] = {}
        self._stops: dict[object, Stops] = {}
        self._known = frozenset({eos} - {None})
        self.base = Conversation((), () if self._renders((ASK, SAY), Conversation(())) else (SCHEMA,))
        asked = self.written((ASK,), self.base)
        self._asked = _behind_strings(asked) if asked else ""
        self._before_strings = asked.text[: asked.spans[0].start] if asked and asked.spans else ""
        self.always_prompts = self._asked == self._tail((ASK,), self.base, prompt=True)
        self._inner = self._inside_answers()
        self._usual = self._opening_behind(_messages((ASK,)), self.base)
        self._usual_first = self._usual and Opening("", _without_blanks(self._usual.prompt))
        prompt = self._usual.prompt if self._usual and not self.always_prompts else ()
        opens = [unit for unit in prompt if unit in self._special]
        self._opens = frozenset(opens[:1])
        plain = self._stops_of((ASK,), SAY, ASK, self.base, ())
        self._known |= {plain.within, plain.last} - {None}

    def begin(self, conversation: Conversation, i: int, text: str, low: int, high: int) -> int | None:
        """Where message i begins in text[low:high], which lies between the last string before it and its own first.

        That is behind the opening: of such turns, of this very row, or of a first answer. Or where the text and the
        opening part, which they do at a control token, a tag or a blank. None: the text opens otherwise.
        """
        openings = (self.opening(conversation, i), self._usual, None if i else self._usual_first)
        whole = [self._behind(opening, text, low, high) for opening in openings]
        found = max((place for place in whole if place is not None), default=None)
        if found is not None:
            return found
        own = self._opening_behind(conversation.messages[:i], conversation)
        for opening, partly in ((own, False), (own, True), (self._usual, True)):
            found = self._behind(opening, text, low, high, partly)
            if found is not None and (i or found > low):
                return found
        return None if i else self._preamble(text, high)

    def _behind(self, opening: Opening | None, text: str, low: int, high: int, partly: bool = False) -> int | None:
        """partly: behind as much of the generation prompt as the text holds; else behind all of it, if it does."""
        if opening is None:
            return None
        prompt = opening.prompt
        for length in range(len(prompt), 0, -1):
            shared = "".join(prompt[:length])
            if not shared.strip() or (length < len(prompt) and not partly):
                break
            at = text.rfind(shared, low, high)
            if at >= 0 and (_may_part(prompt, length) or at + len(shared) == high):
                return self._unless_a_turn_opens(prompt[length:], text, at + len(shared), high)
        if (not prompt or partly) and _may_part(prompt, 0) and text.startswith(opening.closing, low, high):
            return self._unless_a_turn_opens(prompt, text, low + len(opening.closing), high)
        return None

    def _unless_a_turn_opens(self, rest: Units, text: str, begin: int, high: int) -> int | None:
        """begin, where an answer may leave the rest of a generation prompt; None where the text goes on with a header
        all the same, which is another one then: inference never writes it."""
        first = next(iter(self.units(text[begin:high].lstrip())), "")
        other = first in self._special and first in {*_without_blanks(rest)[:1], *self._headers}
        return None if rest and other else begin

    @cached_property
    def _headers(self) -> frozenset[str]:
        """Special tokens before the words of a question or a system prompt that stand before no answer."""
        texts = [self._before_strings]
        if (system := self.written((SYSTEM, ASK), self.base)) and system.spans:
            texts.append(system.text[: system.spans[-1].start])
        before_answers = self.units(self._gap((), ASK, SAY, self.base) or "")
        return frozenset(self.units("".join(texts))) & self._special - frozenset(before_answers)

    def _preamble(self, text: str, high: int) -> int:
        """Behind what the template writes before the first string of any conversation, as far as text[:high] holds it:
        there an answer begins that nothing comes before."""
        usual, own = (self.units(each) for each in (self._before_strings, text[:high]))
        return len("".join(own[: _shared(usual, own)]))

    def opening(self, conversation: Conversation, i: int) -> Opening | None:
        """What inference puts before message i, as a small conversation shows it. None: the template refuses to say."""
        before = Kind.of(conversation.messages[i - 1]) if i else None
        key = (before, i == 1, bool(conversation.tools), repr(conversation.template_kwargs))
        if key not in self._openings:
            tools = (SCHEMA,) if conversation.tools else ()
            small = self._opening_behind(_messages(_lead(before, i == 1)), replace(conversation, tools=tools))
            self._openings[key] = small or self._usual
        return self._openings[key]

    def stops(self, conversation: Conversation, i: int) -> Stops:
        """Which token ends message i, an answer."""
        messages = conversation.messages
        before, behind = (Kind.of(messages[k]) if 0 <= k < len(messages) else None for k in (i - 1, i + 1))
        kind = Kind.of(messages[i])
        key = (before, i == 1, kind, behind, bool(conversation.tools), repr(conversation.template_kwargs))
        if key not in self._stops:
            lead = _lead(before, i == 1)
            found = self._stops_of(lead, kind, behind, conversation, messages[: i + 1])
            if (
                behind
                and behind.role in ("system", "assistant")
                and found.within not in {*self.stop_tokens, *self._known}
            ):
                found = replace(found, within=None)  # that is how such a turn opens: nothing stops there
            self._stops[key] = found
        return self._stops[key]

    def units(self, text: str) -> Units:
        """See `Units`."""
        return tuple(self._units.findall(text))

    def is_special(self, unit: str) -> bool:
        return unit in self._special

    @cached_property
    def stop_tokens(self) -> tuple[str, ...]:
        """On which generation stops: all that end an answer, but for those that stand inside one as well."""
        said = self._stops_of((ASK,), SAY, ASK, self.base, ())
        with_tools = replace(self.base, tools=(SCHEMA,))
        call = self.written((ASK, CALL), with_tools)
        writes = call is not None and not call.lost
        called = self._stops_of((ASK,), CALL, RESULT, with_tools, ()) if writes else said
        found = dict.fromkeys((said.last, called.last, said.within, called.within))
        return tuple(stop for stop in found if stop and (stop not in self._inner or stop == said.last))

    def written(self, kinds: Sequence[Kind], like: Conversation, prompt: bool = False) -> Located | None:
        """A small conversation with marks, with tools as `like` has them; None where the template refuses it."""
        return self._written(_messages(kinds), replace(like, tools=(SCHEMA,) if like.tools else ()), prompt)

    def _written(self, messages: tuple[Message, ...], like: Conversation, prompt: bool = False) -> Located | None:
        try:
            return render_marked(self._renderer, replace(like, messages=messages), NOTHING, prompt=prompt)
        except RowError:
            return None

    def _renders(self, kinds: Sequence[Kind], like: Conversation) -> bool:
        return self.written(kinds, like) is not None

    def _tail(self, kinds: Sequence[Kind], like: Conversation, prompt: bool = False) -> str | None:
        found = self.written(kinds, like, prompt)
        return None if found is None else _behind_strings(found)

    def _opening_behind(self, messages: tuple[Message, ...], like: Conversation) -> Opening | None:
        asked, prompted = (self._written(messages, like, prompt) for prompt in (False, True))
        if prompted is None or asked is None:
            return None
        before, after = (self.units(_behind_strings(found)) for found in (asked, prompted))
        shared = _shared(before, after)
        if "".join(after[shared:]).strip():
            return Opening("".join(after[:shared]), after[shared:])
        return Opening("", after) if after else None

    def _stops_of(
        self, lead: tuple[Kind, ...], kind: Kind, behind: Kind | None, like: Conversation, real: tuple[Message, ...]
    ) -> Stops:
        """real: the turns of the row up to the answer, for where the template refuses the small conversation."""
        alone = self._tail((*lead, kind), like)
        if alone is None and real and (found := self._written(real, like)):
            alone = _behind_strings(found)
        nexts = (behind,) if behind else (RESULT, ASK) if kind.calls else (ASK, RESULT)
        gaps = (self._gap(lead, kind, each, like) for each in nexts)
        followed = self._before_turn(self.units(next((gap for gap in gaps if gap is not None), "")))
        written = self.units(alone or "")
        ending = self._before_turn(self._without_prompt(written))
        whole = self._before_turn(written)
        shared = whole[: _shared(whole, followed)], ending[: _shared(ending, followed)]
        own = [unit for unit in shared[0] if unit in self._known] or self._outer(shared[1])
        if own:
            return Stops(own[-1], own[-1])
        within = self._first(followed)
        last = self._first(ending, inner=not within) or within
        rest = followed[len(ending) :] if followed[: len(ending)] == ending else ()
        closing = "".join(rest[: rest.index(last) + 1]) if last in rest else last or ""
        return Stops(within or self._first(ending), last, closing, "".join(written[len(ending) :]))

    def _gap(self, lead: tuple[Kind, ...], kind: Kind, behind: Kind, like: Conversation) -> str | None:
        """What the template writes between an answer and the turn behind it."""
        answers = max(1, kind.calls) if behind.role == "tool" else 1
        found = self.written((*lead, kind, *(behind,) * answers), like)
        if found is None:
            return None
        start = max((span.end for span in found.spans if span.part.message == len(lead)), default=0)
        end = min((span.start for span in found.spans if span.start >= start), default=len(found.text))
        return found.text[start:end]

    def _outer(self, units: Sequence[str]) -> list[str]:
        """Special tokens that stand inside no answer."""
        return [unit for unit in units if unit in self._special and unit not in self._inner]

    def _first(self, units: Units, inner: bool = True) -> str | None:
        """The first special token; one that stands inside answers too, only if there is no other."""
        special = [unit for unit in units if unit in self._special]
        return next(iter(self._outer(special)), None) or (special[0] if special and inner else None)

    def _before_turn(self, units: Units) -> Units:
        """Up to a token that opens turns of the assistant: none of it ends one."""
        return tuple(takewhile(lambda unit: unit not in self._opens, units))

    def _without_prompt(self, units: Units) -> Units:
        """The end of a text, without the generation prompt of a template that always writes one."""
        if not self.always_prompts:
            return units
        shared = _shared(units[::-1], self.units(self._asked)[::-1])
        return units[: len(units) - shared]

    def _inside_answers(self) -> frozenset[str]:
        """Special tokens that stand between the strings of one answer: none of them ends it."""
        found: set[str] = set()
        thought, said, twice = Kind("assistant", reasoning=True), Kind("assistant", calls=1), CALL._replace(calls=2)
        for kinds in ((ASK, thought), (ASK, said, RESULT), (ASK, twice, RESULT, RESULT)):
            for tools in ((), (SCHEMA,)):
                written = self.written(kinds, replace(self.base, tools=tools))
                at = [k for k, span in enumerate(written.spans) if span.part.message == 1] if written else []
                if written and at and at[-1] - at[0] + 1 == len(at):
                    mine = [written.spans[k] for k in at]
                    found.update(self.units(written.text[mine[0].start : mine[-1].end]))
        return frozenset(found & self._special)


def _lead(before: Kind | None, first: bool) -> tuple[Kind, ...]:
    """The turns of a small conversation before an answer. before: what stands there in the row; first: and it alone."""
    if before is None:
        return ()
    if before.role == "tool":
        return (ASK, CALL, RESULT)
    if before.role == "user" or (first and before.role == "system"):
        return (before._replace(content=True),)
    return (ASK, before)


def _messages(kinds: Sequence[Kind]) -> tuple[Message, ...]:
    """Turns of these kinds, whose strings are single letters."""
    messages: list[Message] = []
    open_calls: list[str] = []
    for kind in kinds:
        if kind.role == "tool":
            call_id = open_calls.pop(0) if open_calls else None
            messages.append(Message("tool", "5", name="f", call_id=call_id))
            continue
        made = [call_id_at(len(messages), n) for n in range(kind.calls)]
        open_calls += made
        content = "1" if kind.role == "user" else "6" if kind.role == "system" else "2"
        messages.append(
            Message(
                kind.role,  # type: ignore[arg-type]
                content if kind.content else "",
                "3" if kind.reasoning else None,
                tuple(ToolCall("f", {"x": "4"}, call_id) for call_id in made),
            )
        )
    return tuple(messages)


def call_id_at(message: int, call: int) -> str:
    """An id for a tool call that has none, by its place: nine letters and digits, which is what Mistral asks for."""
    return f"call{message:03d}{call:02d}"


def _behind_strings(found: Located) -> str:
    return found.text[found.spans[-1].end if found.spans else 0 :]


def _without_blanks(units: Units) -> Units:
    """Without blanks at the start."""
    return tuple(dropwhile(str.isspace, units))


def _shared(one: Units, other: Units) -> int:
    """With how many equal units both begin."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _may_part(prompt: Units, length: int) -> bool:
    """Whether a text may leave the generation prompt behind so many units: before a control token or a tag, at the end,
    or behind a line that holds one of these; not inside the name of a role."""
    held, rest = prompt[:length], prompt[length:]
    first = next((unit for unit in rest if not unit.isspace()), None)
    return first is None or len(first) > 1 or (held[-1:] == ("\n",) and any(len(unit) > 1 for unit in held))
