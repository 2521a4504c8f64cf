"""What inference puts before an answer, and on what it stops: asked of the template for each row, by words and tokens.

For the second way to the mask: it knows nothing of the small conversations and marks of the first (turns).
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from dist_sft.chat.conversation import Conversation, Message, ToolCall
from dist_sft.chat.decoded import Decoded, Reader
from dist_sft.chat.reading import Frame
from dist_sft.chat.render import Renderer
from dist_sft.chat.vocabulary import any_of
from dist_sft.core.errors import RowError

_ASKED, _SAID, _THOUGHT = "zq7", "zq8", "zq9"
_TAG = r"<[^<>\s]+>|\[/?\w+\]"
_CALL_ID = "a00000000"
_TOOLS = ({"type": "function", "function": {
    "name": _ASKED, "description": "", "parameters": {"type": "object", "properties": {}}}},)  # fmt: skip


class Asking:
    """Asks one template. Not to be shared by threads."""

    def __init__(self, renderer: Renderer, reader: Reader, eos: int | None) -> None:
        self._renderer, self._reader, self._eos = renderer, reader, eos
        special = any_of(reader.special.values())
        self._special, self._whole = re.compile(special), re.compile(f"{special}|{_TAG}")
        self._ids = {text: id_ for id_, text in reader.special.items()}
        self._frames: dict[tuple[bool, bool, str], tuple[Frame, ...]] = {}
        _, prompt = self._prompt(Conversation((Message("user", _ASKED), Message("assistant", _SAID))), 1)
        self._usual = prompt
        self.controls = bool(self._special.search(prompt))
        self.stops = self._all_stops(prompt)
        asked = self._render(Conversation((Message("user", _ASKED),))) or ""
        self._before_words = self._read(asked.rpartition(_ASKED)[0])

    def openings(self, item: Conversation, i: int, decoded: Decoded, place: int) -> Iterator[tuple[int, str]]:
        """Where message i may begin: behind what inference puts before it, or where the text parts from that at a
        control token, a tag or a blank. With what stands before each, as far as it is the generation prompt."""
        closing, prompt = self._prompt(item, i)
        again = i > 0 and item.messages[i - 1].role == "assistant"
        if again:
            closing, prompt = (self._behind_stop(text) for text in (closing, prompt))
            if not (closing + prompt).strip():
                yield self._going_on(item, i, decoded, place), ""
        if i == 0:
            prompt = prompt.lstrip()
        for written in () if prompt.strip() else (self._usual if i else self._usual.lstrip(),):
            for at, length in self._genuine(decoded, written, place):
                yield at + length, written[:length].rstrip()
        first = None
        for at, length in self._genuine(decoded, prompt, place):
            first = at if first is None else first
            yield at + length, prompt[:length].rstrip()
        for at, length in self._genuine(decoded, closing, place) if _parts_at_once(prompt, self._whole) else ():
            if first is None or at + length <= first:
                yield at + length, closing[:length].rstrip()
        if again:
            yield self._going_on(item, i, decoded, place), ""
        if i == 0:
            yield from ((place, "") for place in self._beginnings(item, decoded))

    def _going_on(self, item: Conversation, i: int, decoded: Decoded, place: int) -> int:
        """Where an answer begins that follows another without a header: behind as much as stands there of what
        inference would put between the two. Blanks are left to the answer."""
        written = self._behind_stop(self._read(self._end_of(item, item.messages[:i])))
        held = written[: self._whole_units(written, _agree(decoded.text, place, written))]
        return place + len(held) if held.strip() else place

    def _beginnings(self, item: Conversation, decoded: Decoded) -> Iterator[int]:
        """Where an answer may begin that no message comes before: behind what inference would see, behind what stands
        before the words of any question, or at the first token that is text."""
        for at, length in self._genuine(decoded, self._before_all(item), 0):
            yield at + length
        yield self._whole_units(self._before_words, _agree(decoded.text, 0, self._before_words))
        yield decoded.starts[next((t for t, id_ in enumerate(decoded.ids) if id_ not in self._reader.special), 0)]

    def _before_all(self, item: Conversation) -> str:
        """What inference sees before any message."""
        return self._read(self._render(replace(item, messages=()), prompt=True) or "")

    def _genuine(self, decoded: Decoded, written: str, place: int) -> Iterator[tuple[int, int]]:
        """`_places` of which each control token is one, and no text of a row."""
        for at, length in self._places(decoded.text, written, place):
            controls = self._special.finditer(decoded.text, at, at + length)
            if all(decoded.holds(self._ids[control[0]], control.start()) for control in controls):
                yield at, length

    def _behind_stop(self, text: str) -> str:
        """What is left of it behind a stop token, which the answer before has taken."""
        stop = next((found for found in self._special.finditer(text) if self._ids[found[0]] in self.stops), None)
        return text[stop.end() :] if stop else text

    def frames(self, item: Conversation, i: int) -> tuple[Frame, ...]:
        """What this template writes around the words of an answer like message i."""
        message = item.messages[i]
        key = (bool(message.reasoning), bool(message.content.strip()), item.messages[i - 1].role if i else "")
        if key not in self._frames:
            self._frames[key] = tuple(self._framed(item, i))
        return self._frames[key]

    def _framed(self, item: Conversation, i: int) -> Iterator[Frame]:
        closing, prompt = self._prompt(item, i)
        heads: list[tuple[str, str]] = []
        tails: list[str] = []
        for thought in (_THOUGHT, None) if item.messages[i].reasoning else (None,):
            for later in ((), (Message("user", _ASKED),)):
                said = replace(item.messages[i], content=_SAID, reasoning=thought, inline=None)
                text = self._render(replace(item, messages=(*item.messages[:i], said, *later)))
                if text is None or _SAID not in text:
                    continue
                head, _, tail = text.rpartition(_SAID)
                before, between = head, ""
                if thought and thought in head:
                    before, _, between = head.rpartition(thought)
                place = self._behind_opening(before, item, closing, prompt)
                stop = next(
                    (found for found in self._special.finditer(tail) if self._ids[found[0]] in self.stops), None
                )
                if place is not None:
                    heads.append((before[place:], between.strip()))
                    tails.append((tail[: stop.start()] if stop else tail).lstrip())
        for (before, between), tail in product(dict.fromkeys(heads), dict.fromkeys(tails)):
            yield Frame(before, between, tail)

    def _behind_opening(self, text: str, item: Conversation, closing: str, prompt: str) -> int | None:
        """Behind the last opening that a text holds: the generation prompt; where there is none, whichever inference
        has there."""
        if prompt.strip():
            return max((at + n for at, n in self._places(text, prompt, 0)), default=None)
        others = (self._usual, closing) if (self._usual + closing).strip() else (self._before_all(item),)
        ends = [(n == len(each), at + n) for each in others for at, n in self._places(text, each, 0)]
        return max(ends, default=(False, None))[1]

    def _places(self, text: str, written: str, place: int) -> Iterator[tuple[int, int]]:
        """(start, length) of each place where the text holds what was written, or a beginning of it that may be all."""
        if not written.strip():
            return
        tag = self._whole.search(written)
        first = written if tag is None else written[: tag.end() if not written[: tag.start()].strip() else tag.start()]
        at = text.find(first, place)
        while at >= 0:
            length = self._whole_units(written, _agree(text, at, written))
            if length == len(written) or (length >= len(first) and written[:length] not in self._before_words):
                yield at, length
            at = text.find(first, at + 1)

    def _whole_units(self, written: str, length: int) -> int:
        """The length of a beginning that ends inside no control token and no tag."""
        return next((m.start() for m in self._whole.finditer(written) if m.start() < length < m.end()), length)

    def _prompt(self, item: Conversation, i: int) -> tuple[str, str]:
        """How the turn before message i ends, and the generation prompt; where that is nothing, the former alone."""
        before = item.messages[:i]
        asked, prompted = (self._render(replace(item, messages=before), prompt) for prompt in (False, True))
        if asked is None or prompted is None:
            before = (Message("user", _ASKED),)
            asked, prompted = (self._render(replace(item, messages=before), prompt) for prompt in (False, True))
        if asked is None or prompted is None:
            return "", ""
        same = _agree(prompted, 0, asked)
        for control in self._special.finditer(prompted):
            same = control.start() if control.start() < same < control.end() else same
        prompt = prompted[same:]
        if prompt.strip() and not _parts_at_once(prompt, self._whole):
            return "", self._read(prompt)
        end = self._end_of(item, before)
        return self._read(end if not prompt.strip() else end.removesuffix(prompt)), self._read(prompt)

    def _end_of(self, item: Conversation, before: tuple[Message, ...]) -> str:
        """What the template writes behind the words of the last of these turns, with the generation prompt."""
        if not before:
            return ""
        changed = (*before[:-1], replace(before[-1], content=_ASKED, inline=None))
        text = self._render(replace(item, messages=changed), prompt=True)
        return text.rpartition(_ASKED)[2] if text and _ASKED in text else ""

    def _read(self, text: str) -> str:
        return self._reader.as_written(text, special=True)

    def _render(self, item: Conversation, prompt: bool = False) -> str | None:
        for messages in (item.messages, _numbered(item.messages)):
            for tools in (item.tools, item.tools or _TOOLS):
                try:
                    return self._renderer.render(replace(item, messages=messages, tools=tools), prompt=prompt)
                except RowError:
                    continue
        return None

    def _all_stops(self, prompt: str) -> frozenset[int]:
        """eos, and the special token that tells the end of an answer, with and without calls, from the turn behind."""
        ask, say = Message("user", _ASKED), Message("assistant", _SAID)
        call = Message("assistant", "", tool_calls=(ToolCall(_THOUGHT, {_THOUGHT: _SAID}, _CALL_ID),))
        result = Message("tool", _ASKED, name=_THOUGHT, call_id=_CALL_ID)
        found = {self._eos}
        for tools, turns in (
            ((), (ask, say, ask)), ((), (ask, say)), (_TOOLS, (ask, call, result)), (_TOOLS, (ask, call))
        ):  # fmt: skip
            text = self._render(Conversation(turns, tools))
            if text is not None and _SAID in text:
                answer, _, behind = text.rpartition(_SAID)
                words = answer.rpartition(_ASKED)[2]
                found.add(self._stop_in(behind.partition(_ASKED)[0], words, prompt, followed=len(turns) == 3))
        return frozenset(found - {None})  # type: ignore[arg-type]

    def _stop_in(self, gap: str, words: str, prompt: str, *, followed: bool) -> int | None:
        """eos if it is there; else the first special token that neither opens a turn of the assistant nor closes a tag
        opened in the answer's words; before a turn that follows also one that does, if there is no other."""
        special = [match[0] for match in self._special.finditer(gap) if match[0] not in prompt]
        ids = [self._ids[text] for text in special]
        if self._eos in ids:
            return self._eos
        apart = (id_ for text, id_ in zip(special, ids, strict=True) if not _closes(text, words))
        return next(apart, ids[-1] if ids and followed else None)


def _closes(text: str, words: str) -> bool:
    """Whether a tag stands in the words, or closes one there: `</x>`, `[/x]`, `<x|>` of `<|x>`, `..._end` of
    `..._begin`."""
    opened = (
        text.replace("</", "<", 1), text.replace("[/", "[", 1), re.sub(r"^<(.*)\|>$", r"<|\1>", text),
        text.replace("end", "begin"), text.replace("END", "START"), text.replace("suffix", "prefix"),
    )  # fmt: skip
    inside = words.partition(_THOUGHT)[2]  # of a call: what follows its name
    return text in inside or any(tag != text and tag in words for tag in opened)


def _parts_at_once(prompt: str, whole: re.Pattern[str]) -> bool:
    """Whether a text may go on without any of the generation prompt: it is nothing but tags (`<think>`)."""
    return not whole.sub("", prompt).strip()


def _agree(text: str, at: int, written: str) -> int:
    """How many characters of `written` the text holds from a place on."""
    length, most = 0, min(len(written), len(text) - at)
    while length < most and text[at + length] == written[length]:
        length += 1
    return length


def _numbered(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """With an id for each call and result that has none, for templates that ask for one."""
    return tuple(
        replace(
            message,
            call_id=message.call_id or _CALL_ID if message.role == "tool" else message.call_id,
            tool_calls=tuple(replace(call, id=call.id or _CALL_ID) for call in message.tool_calls),
        )
        for message in messages
    )
