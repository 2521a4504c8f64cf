"""Which characters of a rendered conversation are learned, and with what weight.

Located (text and where the row's strings are) ─ supervised ─> WeightedSpan[], in characters
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from dist_sft.chat.anatomy import Anatomy
from dist_sft.chat.conversation import Conversation, Message
from dist_sft.chat.marks import PATTERNS_KEPT, Located, Span, TurnPattern, render_marked
from dist_sft.chat.render import Part, Renderer
from dist_sft.chat.turns import NOTHING, Stops
from dist_sft.config.data import LossWeights
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
    """Borders of an assistant's turn, in characters: opening | [reasoning] prelude | content, tool calls | stop.

    low    the end of the last string before it
    start  of what is not yet there at inference
    first  the start of its first string
    """

    low: int
    start: int
    first: int
    reasoned: int | None
    content: int | None
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


@dataclass(frozen=True, slots=True)
class Supervised:
    """What is learned of a conversation.

    text   what the template wrote; where it closes an answer only as the next turn follows, with that token at the end
    spans  what is learned of it, in order
    """

    text: str
    spans: list[WeightedSpan]


@dataclass(slots=True)
class _Known:
    """Of conversations of one shape: the borders of answers, and what closes the last one where the text does not."""

    reaches: dict[int, _Reach]
    stops: Stops | None = None


class Supervisor:
    """Tells what is learned of a conversation. Remembers it by shape: there the template's text between the strings is
    the same, and the borders of answers lie in it."""

    def __init__(self, renderer: Renderer, anatomy: Anatomy, loss: LossWeights) -> None:
        self._renderer, self._anatomy, self._loss = renderer, anatomy, loss
        self._known: dict[TurnPattern, _Known] = {}

    def __call__(self, conversation: Conversation, found: Located) -> Supervised:
        """What is learned. Raises RowError, see `supervised`."""
        if found.shape is None or any(message.thought or message.inline for message in conversation.messages):
            return supervised(conversation, found, self._renderer, self._anatomy, self._loss)
        learned = [(i, weight) for i, weight in enumerate(weights_of(conversation, self._loss)) if weight]
        known = self._known.get(found.shape)
        if known and all(i in known.reaches for i, _ in learned):
            ends = bool(learned) and learned[-1][0] == len(conversation.messages) - 1
            spans = [known.reaches[i].span(found, weight, i) for i, weight in learned]
            return Supervised(known.stops.closed(found.text) if ends and known.stops else found.text, spans)
        done = supervised(conversation, found, self._renderer, self._anatomy, self._loss)
        if [span.message for span in done.spans] == [i for i, _ in learned] and all(span.stop for span in done.spans):
            if len(self._known) >= PATTERNS_KEPT:
                self._known.clear()
            known = self._known.setdefault(found.shape, _Known({}))
            known.reaches.update({span.message: _Reach.of(span, found) for span in done.spans})
            if done.text != found.text:
                known.stops = self._anatomy.turns.stops(conversation, len(conversation.messages) - 1)
        return done


def supervised(
    conversation: Conversation, found: Located, renderer: Renderer, anatomy: Anatomy, loss: LossWeights
) -> Supervised:
    """What is learned.

    Raises:
        RowError: not_rendered, empty_answer, spans_not_found, stop_not_supervised, generation_tags.
    """
    by_message = _check_rendered(conversation, found, anatomy)
    weights = weights_of(conversation, loss)
    if weights[-1]:
        found = _closed(conversation, found, by_message[-1], anatomy)
    spans: list[WeightedSpan] = []
    for i, weight in enumerate(weights):
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
    return Supervised(found.text, spans)


def _closed(conversation: Conversation, found: Located, last: list[Span], anatomy: Anatomy) -> Located:
    """With the token that ends an answer only where a turn follows (GLM: the next role's; Apertus) behind the last."""
    i = len(conversation.messages) - 1
    if conversation.messages[i].role != "assistant" or not last or last[-1] != found.spans[-1]:
        return found
    stops = anatomy.turns.stops(conversation, i)
    if stops.last is None or found.text.find(stops.last, last[-1].end) >= 0:
        return found
    return replace(found, text=stops.closed(found.text))


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
        if not forgotten and not _in_its_id(conversation, part, found):
            raise _not_rendered(f"messages[{part.message}].{part.kind}" if part.message >= 0 else "a schema of tools")
    return by_message


def _in_its_id(conversation: Conversation, part: Part, found: Located) -> bool:
    """Whether the name of a function is written as a part of the call's id (Kimi K2)."""
    if part.kind != "call":
        return False
    calls = conversation.messages[part.message].tool_calls
    return all(call.id and call.name in call.id and call.id in found.text for call in calls)


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
    turn = _turn(conversation, found, i, anatomy)
    start = turn.start
    if not loss.reasoning and turn.reasoned is not None:
        prelude = _prelude(conversation, i, turn.reasoned, turn.content, found, renderer)
        start = turn.reasoned + (0 if prelude.isspace() else len(prelude))
    elif not loss.empty_thought and message.inline is None and (turn.reasoned is None) != bool(message.thought):
        start = _after_empty_thought(conversation, i, turn, found, renderer, anatomy)
    span = WeightedSpan(start, turn.end, weight, i, stop=True)
    if anatomy.tagged and not any(a <= span.start and span.end <= b for a, b in found.generation):
        raise RowError(
            f"messages[{i}] is not inside the template's {{% generation %}} region",
            reason="generation_tags",
            fix="mend the template: answers with their stop tokens belong inside",
        )
    return span


def _turn(conversation: Conversation, found: Located, i: int, anatomy: Anatomy) -> _Turn:
    """The borders of message i, from its strings and the template's text around them."""
    before, mine, after = _strings(found, i)
    reasoned = next((span.end for span in mine if span.part.kind == "reasoning"), None)
    content = next((span.start for span in mine if span.part.kind == "content"), None)
    start = _after_opening(conversation, i, found.text, before, mine[0].start, anatomy)
    end = _after_stop(conversation, i, found.text, mine[-1].end, after, anatomy)
    first_answer = next((span for span in mine if span.part.kind != "reasoning"), None)
    if first_answer is None or (content is not None and first_answer.start != content):
        raise _unproved(f"the content of messages[{i}] does not come first in its answer")
    return _Turn(before, start, mine[0].start, reasoned, content, end)


def _strings(found: Located, i: int) -> tuple[int, list[Span], int]:
    """The strings of message i, between the end of the one before them and the start of the one behind."""
    indices = [k for k, span in enumerate(found.spans) if span.part.message == i]
    mine = [found.spans[k] for k in indices]
    once = [span.part for span in mine if span.part.kind in ("content", "reasoning")]
    if not mine or indices[-1] - indices[0] + 1 != len(mine) or len(set(once)) != len(once):
        raise _unproved(f"messages[{i}] is not in one place of the rendered text")
    before = found.spans[indices[0] - 1].end if indices[0] else 0
    after = found.spans[indices[-1] + 1].start if indices[-1] + 1 < len(found.spans) else len(found.text)
    return before, mine, after


def _after_opening(conversation: Conversation, i: int, text: str, low: int, high: int, anatomy: Anatomy) -> int:
    begin = anatomy.turns.begin(conversation, i, text, low, high)
    if begin is None:
        opening = anatomy.turns.opening(conversation, i)
        prompt = "".join(opening.prompt) if opening else ""
        raise _unproved(f"messages[{i}] does not follow the generation prompt {prompt!r}")
    return begin


def _after_stop(conversation: Conversation, i: int, text: str, low: int, high: int, anatomy: Anatomy) -> int:
    stops = anatomy.turns.stops(conversation, i)
    stop = stops.last if i == len(conversation.messages) - 1 else stops.within
    at = text.find(stop, low, high) if stop else -1
    if not stop or at < 0:
        raise RowError(
            f"no stop token{f' {stop}' if stop else ''} follows messages[{i}]",
            reason="stop_not_supervised",
            fix="choose a data.template that ends each assistant's turn",
        )
    return at + len(stop)


def _after_empty_thought(
    conversation: Conversation, i: int, turn: _Turn, found: Located, renderer: Renderer, anatomy: Anatomy
) -> int:
    """Where an answer begins behind a thought that the template writes and no message holds (Qwen3, GLM).

    Blanks at the start of a content hide where those of the template end: the same conversation without them shows it.
    """
    matches = anatomy.empty_thought.finditer(found.text, turn.low, turn.first)
    thought = next((match for match in matches if match.start() <= turn.start < match.end("core")), None)
    if thought is None:
        return turn.start
    content = conversation.messages[i].content
    blanks = _blanks(content)
    if turn.content is None or not blanks:
        return thought.end()
    shown = render_marked(renderer, _with_content(conversation, i, content[blanks:]), NOTHING)
    low, mine, _ = _strings(shown, i)
    at = shown.text.rfind(thought["core"], low, mine[0].start)
    if at < 0:
        raise _unproved(f"what stands before the answer of messages[{i}] depends on the answer")
    blanks_of_template = _blanks(shown.text[at + len(thought["core"]) : mine[0].start])
    return min(thought.end("core") + blanks_of_template, turn.first)


def _blanks(text: str) -> int:
    return len(text) - len(text.lstrip())


def _prelude(
    conversation: Conversation, i: int, reasoned: int, answer: int | None, found: Located, renderer: Renderer
) -> str:
    """What the template writes between reasoning that is not learned and the answer. Where blanks of the row or a tool
    call hide its end, the same conversation with a plain word as the content shows it.

    reasoned: where the reasoning ends. answer: where the content begins, if it is written.
    """
    content = conversation.messages[i].content
    if answer is not None and not content[0].isspace():
        return found.text[reasoned:answer]
    plain = _with_content(conversation, i, content.lstrip() or "1")
    shown = render_marked(renderer, plain, NOTHING)
    if answer is None and any(part.kind == "content" and part.message == i for part in shown.lost):
        raise _unproved(f"the end of the reasoning of messages[{i}] is not known")
    _, mine, _ = _strings(shown, i)
    prelude = shown.text[mine[0].end : mine[1].start] if len(mine) > 1 else ""
    blanks = "" if answer is None else found.text[reasoned + len(prelude) : answer]
    if not found.text.startswith(prelude, reasoned) or not content[: _blanks(content)].endswith(blanks):
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
    head = text[: _blanks(text)]
    tail = text[len(text.rstrip()) :]
    if found.text.startswith(head, start - len(head)) and start >= len(head):
        start -= len(head)
    if found.text.startswith(tail, end):
        end += len(tail)
    return WeightedSpan(start, end, weight, i, stop=False)


def apart(conversation: Conversation, found: Located) -> Located:
    """The same, with a thought that stands inside a content as a string of its own: its tags are the template's."""
    if not any(message.thought for message in conversation.messages):
        return found
    return replace(found, spans=tuple(part for span in found.spans for part in _apart(conversation, found, span)))


def _apart(conversation: Conversation, found: Located, span: Span) -> Iterator[Span]:
    message = conversation.messages[span.part.message] if span.part.message >= 0 else None
    if message is None or not message.thought or span.part.kind != "content":
        yield span
        return
    text = found.text[span.start : span.end]
    answer = message.thought - _blanks(message.content)
    opened, closed = text.index("<think>") + len("<think>"), text.index("</think>")
    thought = Part(span.part.message, "reasoning")
    for part, low, high in ((thought, opened, closed), (span.part, answer, len(text))):
        own = text[low:high]
        if own.strip():
            start = span.start + low + _blanks(own)
            yield Span(part, start, start + len(own.strip()))


def row_spans(found: Located) -> Iterator[tuple[int, int]]:
    """(start, end) of every string of the row, in characters."""
    spans = sorted((*found.spans, *found.repeats), key=_start) if found.repeats else found.spans
    return ((span.start, span.end) for span in spans)


def _start(span: Span) -> int:
    return span.start


def _not_rendered(what: str) -> RowError:
    fix = "choose a data.template that does (chatml writes all), or take it out of the row"
    if what.endswith(".reasoning"):
        fix = f"data.reasoning_without_place=inline (as a part of the answer) or drop; or {fix}"
    return RowError(f"the chat template does not write {what}", reason="not_rendered", fix=fix)


def _unproved(what: str) -> RowError:
    return RowError(what, reason="spans_not_found", fix="choose another data.template, or mend the row")
