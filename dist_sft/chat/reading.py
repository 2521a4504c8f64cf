"""Is a piece of text the answer of a row, as some template wrote it? And where in it does that begin which is learned?

Templates strip a content, write reasoning between tags of theirs or leave it out, put an empty thought before an
answer, and write tool calls in a form of their own. All else that differs from the row is not that answer.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dist_sft.chat.conversation import Message

_TAG = r"(?:<[^<>\s]+>|\[/?\w+\])"
_BLANK = re.compile(r"\s*")
_GLUE = (re.compile(rf"\s*{_TAG}\s*"), _BLANK)
"""What stands around reasoning: at most one tag."""
_NO_THOUGHT = re.compile(
    r"\s*(?:<([\w:]+)>\s*</\1>|\[(\w+)\]\s*\[/\2\]|</[\w:]*think>|<\|START_(\w+)\|>\s*<\|END_\3\|>)\s*"
)
"""May stand before an answer without reasoning; else blanks do (Llama 2 has one)."""
_REST_OF_A_THOUGHT = re.compile(r"\s*(?:</[\w:]+>|\[/\w+\])\s*")
_HALF_A_THOUGHT = re.compile(r"\s*(?:<\w*|<\w+>\s*(?:</?\w*)?)\Z")
_BLANKS = (_BLANK,)
_END, _ANYTHING = (re.compile(r"\s*\Z"),), (re.compile(r"[\s\S]*"),)

_Part = str | tuple[re.Pattern[str], ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a message of the assistant says, without blanks at its ends, as the tokenizer writes it.

    calls   each: the function's name, and every text in its arguments
    blanks  the row has blanks before the content
    """

    content: str
    reasoning: str
    calls: tuple[tuple[str, tuple[str, ...]], ...]
    blanks: bool

    @classmethod
    def of(cls, message: Message, as_written: Callable[[str], str]) -> "Answer":
        calls = tuple(
            (as_written(call.name), tuple(as_written(text) for text in _texts(call.arguments)))
            for call in message.tool_calls
        )
        content, reasoning = (as_written(text.strip()) for text in (message.content, message.reasoning or ""))
        return cls(content, reasoning, calls, message.content[:1].isspace())


@dataclass(frozen=True, slots=True)
class Frame:
    """What a template writes around the words of an answer, behind its generation prompt and up to its stop token."""

    before: str
    between: str
    behind: str


def find_answer(
    body: str,
    answer: Answer,
    *,
    frames: Sequence[Frame] = (),
    learns_reasoning: bool = True,
    learns_nothing_thought: bool = False,
    may_forget: bool = False,
    in_thought: bool = False,
    cut: bool = False,
) -> tuple[int, int] | None:
    """Where the learned part of an answer begins, or None where the body is not that answer.

    Args:
        body: from behind the generation prompt to the stop token.
        frames: what the template may write around the answer's words, beside tags around reasoning.
        learns_nothing_thought: an empty thought is learned too.
        may_forget: there are later turns, and the template may have left the reasoning out.
        in_thought: the generation prompt ends inside a thought, of which the body may hold the end alone.
        cut: the end of the body is missing.
    Returns:
        (first, sure) in characters: all from `sure` on is learned; what is between the two may be: blanks of which
        nobody can say whether they are the row's or the template's.
    """
    nothing = (_NO_THOUGHT, *((_REST_OF_A_THOUGHT,) if in_thought else ()))
    if answer.reasoning:
        found = _thinks(body, answer, frames, nothing, in_thought, cut)
        if found is not None:
            first, sure, content = found
            whole = (0, 0) if learns_nothing_thought else (first, sure)
            return whole if learns_reasoning else _first_word(body, content, answer)
        if not may_forget:
            return None
    return _says(body, answer, frames, nothing, in_thought, learns_nothing_thought, cut)


def _thinks(
    body: str,
    answer: Answer,
    frames: Sequence[Frame],
    nothing: tuple[re.Pattern[str], ...],
    in_thought: bool,
    cut: bool,
) -> tuple[int, int, int] | None:
    """An answer with its reasoning: where it begins, behind an empty thought of the template's; and its content.
    All from the second place on is learned; what is before it may be, where it may close a thought of the prompt's."""
    tail = _ANYTHING if answer.calls else _END
    ways: list[tuple[_Part, _Part, _Part, _Part]] = [((*nothing, _BLANK), _GLUE, _GLUE, tail)]
    ways += [(frame.before, _BLANKS, frame.between, _tail(frame, tail)) for frame in frames]
    ways += [(frame.before, _GLUE, _GLUE, _tail(frame, tail)) for frame in frames]
    for before, opens, between, behind in ways:
        thought: tuple[_Part, ...] = (before, opens, answer.reasoning, _BLANKS, between)
        ends = _fit(body, 0, (*thought, _BLANKS, answer.content, _BLANKS, behind), cut)
        if ends and (cut or _holds_calls(body[ends[6] :], answer)):
            if isinstance(before, str):
                return 0, ends[0] if in_thought else 0, ends[5]
            start = ends[0] if body[: ends[0]].strip() else 0
            return start, start, ends[5]
    return None


def _says(
    body: str,
    answer: Answer,
    frames: Sequence[Frame],
    nothing: tuple[re.Pattern[str], ...],
    in_thought: bool,
    learns_nothing_thought: bool,
    cut: bool,
) -> tuple[int, int] | None:
    """An answer without reasoning, or of which the template left that out."""
    tail = _ANYTHING if answer.calls else _END
    before = (_BLANK, *nothing, _HALF_A_THOUGHT) if cut else (*nothing, _BLANK)
    ways: list[tuple[_Part, _Part]] = [(before, tail)]
    ways += [(frame.before, _tail(frame, tail)) for frame in frames]
    for header, behind in ways:
        ends = _fit(body, 0, (header, _BLANKS, answer.content, _BLANKS, behind), cut)
        if ends is None or not (cut or _holds_calls(body[ends[2] :], answer)):
            continue
        if in_thought and (isinstance(header, str) or not answer.content):  # a part of it may close the thought
            return 0, body.find(answer.calls[0][0]) if answer.calls else ends[0]
        template_s = isinstance(header, tuple) and body[: ends[0]].strip() and not learns_nothing_thought
        return _first_word(body, ends[1], answer) if template_s else (0, 0)
    return None


def _tail(frame: Frame, tail: tuple[re.Pattern[str], ...]) -> "_Part":
    return tail if tail is _ANYTHING else frame.behind


def _first_word(body: str, end: int, answer: Answer) -> tuple[int, int]:
    """body[:end] is the template's, but for blanks at its end that the content begins with."""
    return (len(body[:end].rstrip()), end) if answer.blanks else (end, end)


def _fit(body: str, place: int, parts: tuple[_Part, ...], cut: bool) -> list[int] | None:
    """Where each part ends if the body is these parts, one after the other, else None. cut: it may end early."""
    if not parts:
        return [] if place == len(body) else None
    part, rest = parts[0], parts[1:]
    if isinstance(part, str):
        if body.startswith(part, place):
            ends = _fit(body, place + len(part), rest, cut)
            return None if ends is None else [place + len(part), *ends]
        return [len(body)] * len(parts) if cut and part.startswith(body[place:]) else None
    for pattern in part:
        found = pattern.match(body, place)
        ends = _fit(body, found.end(), rest, cut) if found else None
        if found and ends is not None:
            return [found.end(), *ends]
    return None


def _holds_calls(text: str, answer: Answer) -> bool:
    """Are the names in the text, in order, and all texts of the arguments, as they are or in its JSON?"""
    held = {leaf for value in _objects(text) for leaf in _texts(value)} if answer.calls else set()
    place = 0
    for name, texts in answer.calls:
        place = text.find(name, place) + len(name)
        if place < len(name) or not all(leaf in held or leaf in text for leaf in texts):
            return False
    return True


def _objects(text: str) -> Iterator[Any]:
    """Every JSON object in a text that is not inside another."""
    decoder = json.JSONDecoder()
    place = text.find("{")
    while place >= 0:
        try:
            value, end = decoder.raw_decode(text, place)
            yield value
        except ValueError:
            end = place + 1
        place = text.find("{", end)


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
