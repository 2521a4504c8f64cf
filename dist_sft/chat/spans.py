"""Which characters of a rendered conversation are learned, and with what weight.

Located (text and where the row's strings are) ─ supervised ─> WeightedSpan[], in characters
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from dist_sft.chat.anatomy import NOTHING, Anatomy
from dist_sft.chat.conversation import Conversation, Message
from dist_sft.chat.marks import PATTERNS_KEPT, Located, Span, TurnPattern, render_marked
from dist_sft.chat.render import Renderer
from dist_sft.config.sections import LossWeights
from dist_sft.core.errors import RowError


@dataclass(frozen=True, slots=True)
class WeightedSpan:
    """text[start:end] is learned with this weight. stop: it is an answer and ends with its stop token."""

    start: int
    end: int
    weight: float
    message: int
    stop: bool


@dataclass(frozen=True, slots=True)
class _Turn:
    """Borders of an assistant's turn, in characters: opening | [reasoning] prelude | content, tool calls | stop."""

    start: int
    reasoned: int | None
    content: int | None
    last: int
    end: int


def weights_of(conversation: Conversation, loss: LossWeights) -> tuple[float, ...]:
    """The weight of each message: its own, else its role's; 0 before the last question where `turns` is last."""
    messages = conversation.messages
    first = 0
    if loss.turns == "last":
        first = max((i + 1 for i, message in enumerate(messages) if message.role == "user"), default=0)
    return tuple(
        0.0 if i < first else float(loss.roles.get(m.role, 0.0) if m.weight is None else m.weight)
        for i, m in enumerate(messages)
    )


@dataclass(frozen=True, slots=True)
class _Reach:
    """An answer's borders as characters after the end of a string of the row: strings are counted from 1, 0 is the
    start of the text."""

    first: int
    start: int
    last: int
    end: int

    @classmethod
    def of(cls, span: WeightedSpan, found: Located) -> "_Reach":
        ends = [0, *(string.end for string in found.spans)]
        first, last = bisect_right(ends, span.start) - 1, bisect_right(ends, span.end) - 1
        return cls(first, span.start - ends[first], last, span.end - ends[last])

    def span(self, found: Located, weight: float, message: int) -> WeightedSpan:
        start = self.start + (found.spans[self.first - 1].end if self.first else 0)
        return WeightedSpan(start, self.end + found.spans[self.last - 1].end, weight, message, stop=True)


class Supervisor:
    """Tells what is learned of a conversation. Remembers it by shape: there the template's text between the strings is
    the same, and the borders of answers lie in it."""

    def __init__(self, renderer: Renderer, anatomy: Anatomy, loss: LossWeights) -> None:
        self._renderer, self._anatomy, self._loss = renderer, anatomy, loss
        self._reaches: dict[TurnPattern, dict[int, _Reach]] = {}

    def __call__(self, conversation: Conversation, found: Located) -> list[WeightedSpan]:
        """What is learned, in the order of the text. Raises RowError, see `supervised`."""
        if found.shape is None:
            return supervised(conversation, found, self._renderer, self._anatomy, self._loss)
        learned = [(i, weight) for i, weight in enumerate(weights_of(conversation, self._loss)) if weight]
        known = self._reaches.get(found.shape, {})
        if known and all(i in known for i, _ in learned):
            return [known[i].span(found, weight, i) for i, weight in learned]
        spans = supervised(conversation, found, self._renderer, self._anatomy, self._loss)
        if [span.message for span in spans] == [i for i, _ in learned] and all(span.stop for span in spans):
            if len(self._reaches) >= PATTERNS_KEPT:
                self._reaches.clear()
            self._reaches.setdefault(found.shape, {}).update({s.message: _Reach.of(s, found) for s in spans})
        return spans


def supervised(
    conversation: Conversation, found: Located, renderer: Renderer, anatomy: Anatomy, loss: LossWeights
) -> list[WeightedSpan]:
    """What is learned, in the order of the text.

    Raises:
        RowError: not_rendered, empty_answer, spans_not_found, stop_not_supervised, generation_tags.
    """
    by_message = _check_rendered(conversation, found, anatomy)
    spans: list[WeightedSpan] = []
    for i, weight in enumerate(weights_of(conversation, loss)):
        message = conversation.messages[i]
        if weight == 0:
            continue
        if message.role == "assistant":
            spans.append(_answer(conversation, i, weight, found, renderer, anatomy, loss))
        elif message.content.strip():
            spans.append(_context(message, i, weight, found, by_message[i]))
    spans.sort(key=lambda span: span.start)
    if any(before.end > after.start for before, after in pairwise(spans)):
        raise _unproved("two messages overlap in the rendered text")
    return spans


def _check_rendered(conversation: Conversation, found: Located, anatomy: Anatomy) -> list[list[Span]]:
    """Spans by message, when the template wrote all that it must: thoughts of earlier turns may be left out."""
    if conversation.tools and not anatomy.has_tools:
        raise _not_rendered("tools")
    by_message: list[list[Span]] = [[] for _ in conversation.messages]
    for span in found.spans:
        if span.part.message >= 0:
            by_message[span.part.message].append(span)
    asked = max((i for i, message in enumerate(conversation.messages) if message.role == "user"), default=-1)
    answered = max((i for i, message in enumerate(conversation.messages) if message.role == "assistant"), default=-1)
    for part in found.lost:
        forgotten = part.kind == "reasoning" and anatomy.reasons and not asked < part.message == answered
        if not forgotten:
            raise _not_rendered(f"messages[{part.message}].{part.kind}" if part.message >= 0 else "a schema of tools")
    return by_message


def _answer(
    conversation: Conversation,
    i: int,
    weight: float,
    found: Located,
    renderer: Renderer,
    anatomy: Anatomy,
    loss: LossWeights,
) -> WeightedSpan:
    message = conversation.messages[i]
    if not message.content.strip() and not message.tool_calls:
        raise RowError(
            f"messages[{i}] is an answer with nothing in it",
            reason="empty_answer",
            fix="remove the row, or give that message loss_weight 0",
        )
    turn = _turn(found, i, anatomy)
    start = turn.start
    if turn.reasoned is None or not loss.reasoning:
        prelude = _prelude(conversation, i, turn, found, renderer, anatomy)
        blank = prelude.isspace()  # as Llama 2 has it: a part of the answer's first token
        start = (turn.reasoned or turn.start) + (0 if blank else len(prelude))
    span = WeightedSpan(start, turn.end, weight, i, stop=True)
    if anatomy.tagged and not any(a <= span.start and span.end <= b for a, b in found.generation):
        raise RowError(
            f"messages[{i}] is not inside the template's {{% generation %}} region",
            reason="generation_tags",
            fix="mend the template: answers with their stop tokens belong inside",
        )
    return span


def _turn(found: Located, i: int, anatomy: Anatomy) -> _Turn:
    """The borders of message i, from its strings and the template's text around them."""
    indices = [k for k, span in enumerate(found.spans) if span.part.message == i]
    mine = [found.spans[k] for k in indices]
    once = [span.part for span in mine if span.part.kind in ("content", "reasoning")]
    if not mine or indices[-1] - indices[0] + 1 != len(mine) or len(set(once)) != len(once):
        raise _unproved(f"messages[{i}] is not in one place of the rendered text")
    before = found.spans[indices[0] - 1].end if indices[0] else 0
    after = found.spans[indices[-1] + 1].start if indices[-1] + 1 < len(found.spans) else len(found.text)
    reasoned = next((span.end for span in mine if span.part.kind == "reasoning"), None)
    content = next((span.start for span in mine if span.part.kind == "content"), None)
    start = _after_opening(found.text, before, mine[0].start, anatomy, i)
    end = _after_stop(found.text, mine[-1].end, after, anatomy, i)
    first_answer = next((span for span in mine if span.part.kind != "reasoning"), None)
    if first_answer is None or (content is not None and first_answer.start != content):
        raise _unproved(f"the content of messages[{i}] does not come first in its answer")
    return _Turn(start, reasoned, content, mine[-1].end, end)


def _after_opening(text: str, low: int, high: int, anatomy: Anatomy, i: int) -> int:
    for opening in anatomy.openings:
        at = text.rfind(opening, low, high)
        if at >= 0 and not any(stop in text[at + len(opening) : high] for stop in anatomy.stops):
            return at + len(opening)
    raise _unproved(f"messages[{i}] does not follow the generation prompt {anatomy.openings[0]!r}")


def _after_stop(text: str, low: int, high: int, anatomy: Anatomy, i: int) -> int:
    ends = [(at, at + len(stop)) for stop in anatomy.stops if (at := text.find(stop, low, high)) >= 0]
    if not ends:
        raise RowError(
            f"no stop token {' or '.join(anatomy.stops)} follows messages[{i}]",
            reason="stop_not_supervised",
            fix="choose a data.template that ends each assistant's turn",
        )
    return min(ends)[1]


def _prelude(
    conversation: Conversation, i: int, turn: _Turn, found: Located, renderer: Renderer, anatomy: Anatomy
) -> str:
    """What the template writes before an answer and the row does not hold (Qwen3: an empty <think> block; or the end
    of a reasoning block that is not learned). Where blanks of the row or a tool call hide its end, the same
    conversation with a plain word as the content shows it."""
    content = conversation.messages[i].content
    base = turn.reasoned or turn.start
    if turn.content is not None and not content[0].isspace():
        return found.text[base : turn.content]
    plain = _with_content(conversation, i, content.lstrip() or "1")
    shown = render_marked(renderer, plain, NOTHING)
    if turn.content is None and any(part.kind == "content" and part.message == i for part in shown.lost):
        if turn.reasoned is None:
            return ""
        raise _unproved(f"the end of the reasoning of messages[{i}] is not known")
    other = _turn(shown, i, anatomy)
    prelude = shown.text[other.reasoned or other.start : other.content]
    blanks = "" if turn.content is None else found.text[base + len(prelude) : turn.content]
    if not found.text.startswith(prelude, base) or not content[: len(content) - len(content.lstrip())].endswith(blanks):
        raise _unproved(f"what stands before the answer of messages[{i}] depends on the answer")
    return prelude


def _with_content(conversation: Conversation, i: int, content: str) -> Conversation:
    messages = list(conversation.messages)
    messages[i] = replace(messages[i], content=content)
    return replace(conversation, messages=tuple(messages))


def _context(message: Message, i: int, weight: float, found: Located, mine: list[Span]) -> WeightedSpan:
    """The content of a question, a system prompt or a tool's result, with the blanks of the row that were kept."""
    if len(mine) != 1:
        raise _unproved(f"messages[{i}] is in {len(mine)} places of the rendered text")
    start, end, text = mine[0].start, mine[0].end, message.content
    head = text[: len(text) - len(text.lstrip())]
    tail = text[len(text.rstrip()) :]
    if found.text.startswith(head, start - len(head)) and start >= len(head):
        start -= len(head)
    if found.text.startswith(tail, end):
        end += len(tail)
    return WeightedSpan(start, end, weight, i, stop=False)


def row_spans(found: Located) -> Iterator[tuple[int, int]]:
    """(start, end) of every string of the row, in characters."""
    return ((span.start, span.end) for span in found.spans)


def _not_rendered(what: str) -> RowError:
    return RowError(
        f"the chat template does not write {what}",
        reason="not_rendered",
        fix="choose a data.template that does (chatml writes all), or take it out of the row",
    )


def _unproved(what: str) -> RowError:
    return RowError(what, reason="spans_not_found", fix="choose another data.template, or mend the row")
