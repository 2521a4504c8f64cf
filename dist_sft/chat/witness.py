"""The mask found a second time, from the other end: read from the tokens that are trained on, not from a marked render.

EncodedSample.tokens, as text ─ strings of the row, generation prompt, stop tokens ─> the weights that it should have

The first way (marks, skeleton, spans) knows where strings stand because it put marks around them. This one knows
nothing of it and shares no code with it: it cuts the tokens at what inference puts before an answer and at what ends
one, and each piece must then be an answer of the row, in order. Of the template it asks these two texts only.

Axes: T tokens of the sample.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_sft.chat.asking import Asking
from dist_sft.chat.conversation import Conversation, Document, EncodedSample, Message
from dist_sft.chat.decoded import Decoded, Reader
from dist_sft.chat.reading import Answer, find_answer
from dist_sft.chat.render import Renderer
from dist_sft.chat.templates import ChatTemplate
from dist_sft.chat.vocabulary import Vocabulary
from dist_sft.config.data import LossWeights

_THOUGHT = re.compile(r"(?i)(think|thought|reason).{0,12}\Z", re.DOTALL)
"""At the end of a generation prompt: it opens a thought."""
MOST_STOPS = 3
"""Stop tokens at which an answer may end: gpt-oss writes one between a thought and what follows it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Tokens [first, last) are message `message`; those before `sure` may be learned or not.

    stop  the token that ends the answer, the last of them; None where it is no answer, or cut off
    """

    message: int
    first: int
    sure: int
    last: int
    stop: int | None = None


@dataclass(frozen=True, slots=True)
class Objection:
    """Where both ways do not agree. what: one sentence; learned, expected: the texts of the tokens."""

    what: str
    learned: str
    expected: str


@dataclass(frozen=True, slots=True)
class Testimony:
    """What one sample should teach.

    weights    float32[T]  as they should be; where `free` is set, 0 is right as well
    claims     where the messages stand, in the order of the text; of questions those that were found
    objection  the first difference from the sample's weights, or None
    """

    weights: NDArray[np.float32]
    free: NDArray[np.bool_]
    claims: tuple[Claim, ...] = ()
    objection: Objection | None = None


class Witness:
    """Says what a sample should teach, for one tokenizer, template and loss. Not to be shared by threads."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        template: ChatTemplate,
        loss: LossWeights,
        *,
        may_drop_reasoning: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """may_drop_reasoning, template_kwargs: as the run has set data.reasoning_without_place and template_kwargs."""
        self._reader, self._loss, self._may_drop = Reader(vocabulary), loss, may_drop_reasoning
        renderer = Renderer(template.source, vocabulary.special_tokens, template.with_tools, template_kwargs or {})
        eos = vocabulary.id_of("eos_token")
        self._asks = Asking(renderer, self._reader, eos)
        self._stops = np.array(sorted(self._asks.stops), np.int64)
        self._eos = eos

    def examine(self, item: Conversation | Document, sample: EncodedSample) -> Testimony:
        """What the sample of this row should teach, and whether it does."""
        decoded = self._reader.read(sample.tokens.tolist())
        if isinstance(item, Document):
            return self._document(item, sample, decoded)
        answers = self._answers(item, sample, decoded)
        if isinstance(answers, Objection):
            nothing = np.zeros(len(sample), np.float32)
            return Testimony(nothing, nothing > 0, (), answers)
        weights = np.zeros(len(sample), np.float32)
        free = np.zeros(len(sample), np.bool_)
        wanted = self._wanted(item)
        for claim in answers:
            weights[claim.first : claim.last] = wanted[claim.message]
            free[claim.first : claim.sure] = True
        others = list(self._others(item, sample, decoded, answers, wanted))
        for claim in others:
            weights[claim.first : claim.last] = wanted[claim.message]
            if wanted[claim.message]:
                _free_blanks(item.messages[claim.message].content, claim, decoded, weights, free)
        weights[:1] = 0
        claims = tuple(sorted((*answers, *others), key=lambda claim: claim.first))
        return Testimony(weights, free, claims, _compare(item, sample, decoded, weights, free, claims))

    def _wanted(self, item: Conversation) -> list[float]:
        """The weight of each message: its own, or its role's; with turns=last none up to the last question."""
        roles = [message.role for message in item.messages]
        past = len(roles) - roles[::-1].index("user") if self._loss.turns == "last" and "user" in roles else 0
        own = (m.weight if m.weight is not None else self._loss.roles.get(m.role, 0.0) for m in item.messages)
        return [0.0 if i < past else float(np.float32(weight)) for i, weight in enumerate(own)]

    def _answers(self, item: Conversation, sample: EncodedSample, decoded: Decoded) -> list[Claim] | Objection:
        """The assistant's turns, in order. One that is not learned need not be found; one that is, must, or be cut."""
        wanted = self._wanted(item)
        stops = np.flatnonzero(np.isin(sample.tokens, self._stops))
        claims: list[Claim] = []
        place = 0
        for i, message in enumerate(item.messages):
            if message.role != "assistant":
                continue
            found = self._next(item, i, sample, decoded, stops, place, wanted[i] > 0)
            if isinstance(found, Claim):
                claims.append(found)
                place = decoded.starts[found.last]
            elif wanted[i] and not (sample.cut and (found is None or not self._asks.controls)):
                return found or Objection(
                    f"no answer like messages[{i}] stands behind the generation prompt",
                    _learned_near(sample, decoded, place),
                    _short(self._reader.as_written(message.content.strip()) or "its tool calls"),
                )
        return claims

    def _next(
        self,
        item: Conversation,
        i: int,
        sample: EncodedSample,
        decoded: Decoded,
        stops: NDArray[np.int64],
        place: int,
        learned: bool,
    ) -> Claim | Objection | None:
        """Message i behind `place`. None: no turn of the assistant's is left; Objection: none of those is this one."""
        message = item.messages[i]
        answer = Answer.of(message, self._reader.as_written)
        newest = not any(later.role in ("user", "assistant") for later in item.messages[i + 1 :])
        find = partial(
            find_answer,
            answer=answer,
            learns_reasoning=self._loss.reasoning,
            learns_nothing_thought=self._loss.empty_thought or (message.inline is not None and not message.reasoning),
            may_forget=not newest or self._may_drop,
        )
        refused = None
        for begin, opened in self._asks.openings(item, i, decoded, place):
            behind = stops[np.searchsorted(stops, decoded.token_at(begin)) :]
            if not len(behind) and not sample.cut:
                refused = Objection(f"no stop token ends messages[{i}]", _learned_near(sample, decoded, begin), "")
                continue
            ends: list[int | None] = [int(each) for each in behind[:MOST_STOPS]]
            for stop in ends or [None]:
                body = decoded.text[begin:].rstrip("\ufffd") if stop is None else decoded.shown_from(begin, stop)
                in_thought = _THOUGHT.search(opened) is not None
                found = find(body, cut=stop is None, in_thought=in_thought) or find(
                    body, cut=stop is None, in_thought=in_thought, frames=self._asks.frames(item, i)
                )
                if found is None:
                    continue
                if opened and learned and decoded.starts[decoded.token_at(begin)] > begin + found[1]:
                    what = f"a token holds the end of the generation prompt and the start of messages[{i}]"
                    refused = refused or Objection(what, _learned_near(sample, decoded, begin), _short(body))
                    break
                first, sure = (decoded.token_at(begin + offset) for offset in found)
                if not opened and i and item.messages[i - 1].role == "assistant":
                    sure = max(sure, decoded.token_at(begin + len(body) - len(body.lstrip())))
                if stop is None and 0 < found[0] == len(body):
                    sure = len(decoded.ids)  # half a character may be a blank of the template, or the answer's first
                return Claim(i, first, sure, len(decoded.ids) if stop is None else stop + 1, stop)
            if refused:
                continue
            body = decoded.text[begin:] if ends == [] else decoded.shown_from(begin, int(behind[0]))
            early = body.strip() and find(body, cut=True)
            refused = Objection(
                f"a stop token ends messages[{i}] too early"
                if early
                else f"what stands behind the generation prompt is not messages[{i}]",
                _short(body),
                _short(answer.reasoning + answer.content or "its tool calls"),
            )
        return refused

    def _others(
        self,
        item: Conversation,
        sample: EncodedSample,
        decoded: Decoded,
        answers: Sequence[Claim],
        wanted: Sequence[float],
    ) -> Iterator[Claim]:
        """Questions, system prompts and results of tools, between the answers beside them; where they can be found."""
        place, taken = 0, list(answers)
        for i, message in enumerate(item.messages):
            if message.role == "assistant":
                place = max([place, *(decoded.starts[claim.last] for claim in answers if claim.message == i)])
                continue
            end = len(decoded.text)
            after = min((decoded.starts[c.first] for c in answers if c.message > i), default=end)
            low, high = (0, end) if message.role == "system" else (place, after)
            places = self._places(message, decoded, low, high, taken, bool(sample.cut))
            if not places:
                continue
            weights = sample.weights
            exact = [c for c in places if (weights[max(1, c[0]) : c[1]] == np.float32(wanted[i])).all()]
            if not exact and sample.cut and after == end:
                continue  # it may be cut off, and what looks like it be the template's
            first, last = (exact or places)[0]
            taken.append(Claim(i, first, first, last))
            yield taken[-1]
            place = max(place, decoded.starts[last]) if message.role != "system" else place

    def _places(
        self, message: Message, decoded: Decoded, low: int, high: int, taken: Sequence[Claim], cut: bool
    ) -> list[tuple[int, int]]:
        """Tokens that begin inside the content, at each place where it stands. cut: it may be cut off there."""
        content = self._reader.as_written(message.content.strip())
        found: list[tuple[int, int]] = []
        for text in dict.fromkeys((content, _escaped(content))) if content else ():
            for match in re.finditer(re.escape(text), decoded.text[low:high]):
                first, last = (decoded.token_at(low + place) for place in match.span())
                special = any(id_ in self._reader.special for id_ in decoded.ids[first:last])
                if first < last and not special and not any(c.first < last and first < c.last for c in taken):
                    found.append((first, last))
        if not found and content and cut:
            text = decoded.text.rstrip("\ufffd")
            begins = (p for p in range(max(low, len(text) - len(content)), len(text)) if content.startswith(text[p:]))
            found += [(decoded.token_at(place), len(decoded.ids)) for place in begins]
        return found

    def _document(self, item: Document, sample: EncodedSample, decoded: Decoded) -> Testimony:
        """All of it but the first token, which nothing comes before; at the end eos, unless it was cut."""
        weights = np.ones(len(sample), np.float32)
        weights[:1] = 0
        ids = decoded.ids
        ends = bool(ids) and ids[-1] == self._eos
        first = next((t for t, id_ in enumerate(ids) if id_ not in self._reader.special), len(ids))
        text = decoded.shown(first, len(ids) - ends)
        written = self._reader.as_written(item.text)
        whole = written.startswith(text.rstrip("\ufffd")) if sample.cut else ends and text.strip() == written.strip()
        free = np.zeros(len(sample), np.bool_)
        if not whole:
            objection = Objection("the tokens are not the document and its end", _short(text), _short(written))
            return Testimony(weights, free, (), objection)
        return Testimony(weights, free, (), _compare(None, sample, decoded, weights, free, ()))


def _escaped(text: str) -> str:
    """As templates write the result of a tool that they take for JSON (Llama 3.1)."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")


def _free_blanks(
    content: str, claim: Claim, decoded: Decoded, weights: NDArray[np.float32], free: NDArray[np.bool_]
) -> None:
    """A question's own blanks at its ends may have been kept or not: its weight and 0 are both right beside it."""
    text, low, high = decoded.text, decoded.starts[claim.first], decoded.starts[claim.last]
    while content[0].isspace() and low > 0 and text[low - 1].isspace():
        low -= 1
    while content[-1].isspace() and high < len(text) and text[high].isspace():
        high += 1
    for t in range(decoded.token_at(low), decoded.token_at(high)):
        if weights[t] == 0:
            weights[t], free[t] = weights[claim.first], True


def _compare(
    item: Conversation | None,
    sample: EncodedSample,
    decoded: Decoded,
    weights: NDArray[np.float32],
    free: NDArray[np.bool_],
    claims: Sequence[Claim],
) -> Objection | None:
    """The first token whose weight is wrong, in words."""
    wrong = (sample.weights != weights) & ~(free & (sample.weights == 0))
    if not wrong.any():
        return None
    t = int(np.flatnonzero(wrong)[0])
    texts = _around(decoded, sample.weights, t), _around(decoded, weights, t)
    claim = next((claim for claim in claims if claim.first <= t < claim.last), None)
    name = f"messages[{claim.message}]" if claim else "the template's own text" if item else "the document"
    if sample.weights[t] and not weights[t]:
        return Objection(f"{name} is learned, and should not be", *texts)
    if sample.weights[t]:
        return Objection(f"{name} has the loss weight {sample.weights[t]:g}, not {weights[t]:g}", *texts)
    part = "the stop token of " if claim and t == claim.stop else "" if not claim or t == claim.first else "a part of "
    return Objection(f"{part}{name} is not learned", *texts)


def _around(decoded: Decoded, weights: NDArray[np.float32], t: int) -> str:
    """The learned tokens at t and beside it."""
    if t >= len(weights) or not weights[t]:
        return ""
    first, last = t, t + 1
    while first > 0 and weights[first - 1]:
        first -= 1
    while last < len(weights) and weights[last]:
        last += 1
    return _short(decoded.shown(first, last))


def _learned_near(sample: EncodedSample, decoded: Decoded, place: int) -> str:
    """The first learned tokens behind a place."""
    first = decoded.token_at(place)
    learned = np.flatnonzero(sample.weights[first:])
    return _around(decoded, sample.weights, first + int(learned[0])) if len(learned) else ""


def _short(text: str) -> str:
    """At most 80 characters: both ends."""
    return text if len(text) <= 80 else f"{text[:38]} … {text[-38:]}"
