"""Is a piece of text the answer of a row, as some template wrote it? And where in it does that begin which is learned?

Templates strip a content, write reasoning between tags of theirs or leave it out, put an empty thought before an
answer, and write tool calls in a form of their own. All else that differs from the row is not that answer.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dist_sft.chat.conversation import Message

_TAG = r"(?:<[^<>\s]+>|\[/?\w+\])"
_BLANK = re.compile(r"\s*")
_GLUE = (re.compile(rf"\s*{_TAG}\s*"), _BLANK)
"""What stands around reasoning: at most one tag."""
_NO_THOUGHT = re.compile(r"\s*<\w+>\s*</\w+>\s*")
"""May stand before an answer without reasoning; else blanks do (Llama 2 has one)."""
_HALF_A_THOUGHT = re.compile(r"\s*(?:<\w*|<\w+>\s*(?:</?\w*)?)\Z")
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


def find_answer(
    body: str, answer: Answer, *, learns_reasoning: bool, may_forget: bool, opened: str = "", cut: bool = False
) -> tuple[int, int] | None:
    """Where the learned part of an answer begins, or None where the body is not that answer.

    Args:
        body: from behind the generation prompt to the stop token.
        may_forget: there are later turns, and the template may have left the reasoning out.
        opened: the end of the generation prompt that not all turns have (`<think>`): a body may begin with it.
        cut: the end of the body is missing.
    Returns:
        (first, sure) in characters: all from `sure` on is learned; what is between the two may be: `opened`, or blanks
        of which nobody can say whether they are the row's or the template's.
    """
    tail = _ANYTHING if answer.calls else _END
    if answer.reasoning:
        ends = _fit(body, 0, (_GLUE, answer.reasoning, _GLUE, answer.content, tail), cut)
        if ends and (cut or _holds_calls(body[ends[3] :], answer)):
            if learns_reasoning:
                return 0, len(opened) if body.startswith(opened) else 0
            return _first_word(body, ends[2], answer)
        if not may_forget:
            return None
    before = (_BLANK, _NO_THOUGHT, _HALF_A_THOUGHT) if cut else (_NO_THOUGHT, _BLANK)
    ends = _fit(body, 0, (before, answer.content, tail), cut)
    if ends is None or not (cut or _holds_calls(body[ends[1] :], answer)):
        return None
    return (0, 0) if not body[: ends[0]].strip() else _first_word(body, ends[0], answer)


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
