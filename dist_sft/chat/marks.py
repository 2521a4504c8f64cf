"""Where the strings of a row stand in the text that a template made of it, with proof.

The row is rendered a second time with each of its strings between two marks (private-use characters, a pair per
string). If that text without the marks is the real text, character by character, then the template did nothing that
depends on the marks, and the marks say where every string went. If it is not, nothing is known, and nobody guesses.

Marks stand inside the white space of a string, for templates trim, and around nothing that is blank, for templates ask
whether a content is empty. Templates also ask whether a content starts or ends with a text of theirs (Qwen3:
`<tool_response>`): a second attempt puts the marks inside such texts.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dist_sft.chat.conversation import Conversation
from dist_sft.chat.render import GENERATION_OPEN, Part, Renderer
from dist_sft.core.errors import RowError

_FIRST = 0x100000
_MOST = (ord(GENERATION_OPEN) - _FIRST) // 2
_MARK = re.compile("([\U00100000-\U0010fffd])")
_ESCAPED = re.compile(r"\\udb[c-f][0-9a-f]\\ud[c-f][0-9a-f]{2}")
"""A mark in JSON that is ASCII."""

TurnPattern = tuple[tuple[str, bool, bool], ...]
"""Of each turn: its role, and whether it has a content and a reasoning."""
PATTERNS_KEPT = 4096

Inset = Callable[[str], tuple[int, int]]
"""How many characters at the start and at the end of a string the marks leave outside."""


@dataclass(frozen=True, slots=True)
class Span:
    """text[start:end] is one string of the row, as the template wrote it (white space at its ends left out)."""

    part: Part
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Located:
    """A rendered conversation and its strings.

    text        what the template wrote, without marks
    spans       in the order of the text; they do not overlap
    repeats     where it wrote the name of a function again (of whose result this is)
    lost        strings that the template left out, or cut
    generation  (start, end) of {% generation %} regions
    shape       where rows of one shape have the same text between their strings, what leads to it; else None
    """

    text: str
    spans: tuple[Span, ...]
    lost: frozenset[Part]
    generation: tuple[tuple[int, int], ...]
    shape: TurnPattern | None = None
    repeats: tuple[Span, ...] = ()


class Marker:
    """Puts marks around the strings of one row. Schemas and keys are marked only where `suspect` finds something:
    templates read them, and nobody asks where they are unless they hold a control token."""

    def __init__(self, suspect: re.Pattern[str], inset: Inset) -> None:
        self._suspect, self._inset = suspect, inset
        self.marked: list[tuple[Part, str, str]] = []

    def __call__(self, text: str, part: Part) -> str:
        core = text.strip()
        if not core or (part.kind in ("schema", "key") and not self._suspect.search(core)):
            return text
        head, tail = self._inset(core)
        if head + tail >= len(core):
            raise RowError(
                f"messages[{part.message}].{part.kind} is a word of the chat template: {core!r}",
                reason="spans_not_found",
                fix="change the row, or choose another data.template",
            )
        start = text.index(core) + head
        end = start + len(core) - head - tail
        if len(self.marked) == _MOST:
            raise RowError(f"the row has more than {_MOST} strings", reason="spans_not_found", fix="split the row")
        mark = _FIRST + 2 * len(self.marked)
        self.marked.append((part, core[:head], core[len(core) - tail :]))
        return f"{text[:start]}{chr(mark)}{text[start:end]}{chr(mark + 1)}{text[end:]}"


def locate(renderer: Renderer, conversation: Conversation, suspect: re.Pattern[str]) -> Located:
    """Render a conversation and find its strings.

    Raises:
        RowError: template_refused; private_use (the row holds a mark); spans_not_found (no proof).
    """
    text = renderer.render(conversation)
    if not text.isascii() and (clash := _MARK.search(text)):
        raise RowError(
            f"the row holds the private-use character U+{ord(clash[0]):X}",
            reason="private_use",
            fix="remove characters from U+100000 on: they mean nothing outside one font",
        )
    for inset in (_at_the_ends, _inside_of(renderer.literals)):
        found = render_marked(renderer, conversation, suspect, inset=inset)
        if found.text == text:
            return found
    raise RowError(
        "what the chat template does with this row depends on the text of its messages",
        reason="spans_not_found",
        fix="look at it with `dist-sft preview`; change the row or data.template",
    )


def render_marked(
    renderer: Renderer,
    conversation: Conversation,
    suspect: re.Pattern[str],
    *,
    prompt: bool = False,
    inset: Inset | None = None,
) -> Located:
    """A conversation with marks, read back: not yet proved to be the text without marks."""
    marker = Marker(suspect, inset or _at_the_ends)
    text = _ESCAPED.sub(lambda pair: json.loads(f'"{pair[0]}"'), renderer.render(conversation, marker, prompt))
    return _read(text, marker.marked)


def _at_the_ends(_: str) -> tuple[int, int]:
    return 0, 0


def _inside_of(words: frozenset[str]) -> Inset:
    """Leaves the longest word of the template that a string starts with, and ends with, outside the marks."""
    bare = sorted({word.strip() for word in words} - {""}, key=len, reverse=True)

    def inset(core: str) -> tuple[int, int]:
        head = next((len(word) for word in bare if core.startswith(word)), 0)
        return head, next((len(word) for word in bare if core.endswith(word)), 0)

    return inset


def _read(marked_text: str, marked: Sequence[tuple[Part, str, str]]) -> Located:
    pieces = _MARK.split(marked_text)
    text = "".join(pieces[::2])
    spans: list[Span] = []
    repeats: list[Span] = []
    generation: list[tuple[int, int]] = []
    opened: dict[int, int] = {}
    closed: set[int] = set()
    position = 0
    for piece, mark in zip(pieces[::2], pieces[1::2], strict=False):
        position += len(piece)
        number, closing = divmod(ord(mark) - _FIRST, 2)
        if not closing:
            opened[number] = position
        elif number in opened:
            start = opened.pop(number)
            if number == _MOST:
                generation.append((start, position))
                continue
            part, head, tail = marked[number]
            if text.startswith(head, start - len(head)) and text.startswith(tail, position):
                again = number in closed and part.kind == "call"
                (repeats if again else spans).append(Span(part, start - len(head), position + len(tail)))
                closed.add(number)
    lost = frozenset(part for number, (part, _, _) in enumerate(marked) if number not in closed)
    return Located(text, tuple(spans), lost, tuple(generation), repeats=tuple(repeats))
