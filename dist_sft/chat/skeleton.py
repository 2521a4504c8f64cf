"""The short way to `Located`: rows of the same shape have the same template text between their strings.

A shape (roles, which strings are blank) is marked and rendered once. For each further row the template's text between
the strings is filled with the row's strings; if that is what the template wrote, character by character, the places are
proved without a second render. If not, or if the row has tools or blanks at the ends of its strings: the long way.
"""

import re
from dataclasses import dataclass, replace

from dist_sft.chat.conversation import Conversation
from dist_sft.chat.marks import PATTERNS_KEPT, Located, Span, TurnPattern, locate
from dist_sft.chat.render import Part, Renderer
from dist_sft.core.errors import RowError


@dataclass(frozen=True, slots=True)
class _Skeleton:
    """texts[0] part[0] texts[1] part[1] ... texts[-1]; lost: parts that the template leaves out in this shape."""

    shape: TurnPattern
    texts: tuple[str, ...]
    parts: tuple[Part, ...]
    lost: frozenset[Part]


class Locator:
    """Finds the strings of rows in what a template wrote. Remembers shapes."""

    def __init__(self, renderer: Renderer, suspect: re.Pattern[str]) -> None:
        self._renderer, self._suspect = renderer, suspect
        self._skeletons: dict[TurnPattern, _Skeleton | None] = {}

    def __call__(self, conversation: Conversation) -> Located:
        """Raises: RowError, see `marks.locate`."""
        skeleton = self._skeleton(conversation)
        if skeleton is not None:
            text = self._renderer.render(conversation)
            filled = _fill(skeleton, conversation)
            if filled.text == text:
                return filled
        return locate(self._renderer, conversation, self._suspect)

    def _skeleton(self, conversation: Conversation) -> _Skeleton | None:
        if (
            conversation.tools
            or conversation.template_kwargs
            or not all(
                _is_plain(m.content) and _is_plain(m.reasoning or "") and not m.tool_calls
                for m in conversation.messages
            )
        ):
            return None
        shape = tuple((m.role, bool(m.content), bool(m.reasoning)) for m in conversation.messages)
        if shape not in self._skeletons:
            if len(self._skeletons) >= PATTERNS_KEPT:
                self._skeletons.clear()
            self._skeletons[shape] = self._build(conversation, shape)
        return self._skeletons[shape]

    def _build(self, conversation: Conversation, shape: TurnPattern) -> _Skeleton | None:
        bare = tuple(
            replace(m, content="1" if m.content else "", reasoning="1" if m.reasoning else None)
            for m in conversation.messages
        )
        try:
            found = locate(self._renderer, Conversation(bare), self._suspect)
        except RowError:
            return None  # the long way says what is wrong, in the words of the real row
        if found.generation:
            return None
        ends = [0, *(span.end for span in found.spans)]
        starts = [*(span.start for span in found.spans), len(found.text)]
        texts = tuple(found.text[a:b] for a, b in zip(ends, starts, strict=True))
        return _Skeleton(shape, texts, tuple(span.part for span in found.spans), found.lost)


def _is_plain(text: str) -> bool:
    return not text or not (text[0].isspace() or text[-1].isspace())


def _fill(skeleton: _Skeleton, conversation: Conversation) -> Located:
    pieces = [skeleton.texts[0]]
    position = len(skeleton.texts[0])
    spans: list[Span] = []
    for part, after in zip(skeleton.parts, skeleton.texts[1:], strict=True):
        message = conversation.messages[part.message]
        own = message.content if part.kind == "content" else message.reasoning or ""
        spans.append(Span(part, position, position + len(own)))
        position += len(own) + len(after)
        pieces += (own, after)
    return Located("".join(pieces), tuple(spans), skeleton.lost, (), skeleton.shape)
