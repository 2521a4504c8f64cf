"""Conversation | Document -> tokens and loss weights: the template's own ids, and a mask with a proof.

render, and find the strings of the row (skeleton, marks) -> what is learned, in characters -> which tokens
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_sft.chat.adapt import Adapter, WithoutPlace
from dist_sft.chat.anatomy import study
from dist_sft.chat.conversation import Conversation, Document, EncodedSample
from dist_sft.chat.dialect import Dialect, learn
from dist_sft.chat.inference import Answer, Inference
from dist_sft.chat.prerendered import Policy, Prerendered, strings_of
from dist_sft.chat.render import TODAY, Renderer
from dist_sft.chat.skeleton import Locator
from dist_sft.chat.spans import Supervisor, WeightedSpan, apart, row_spans, weights_of
from dist_sft.chat.templates import ChatTemplate, choose
from dist_sft.chat.tokens import RowText, TextEncoder, Tokens
from dist_sft.chat.vocabulary import Vocabulary
from dist_sft.config.data import LossWeights
from dist_sft.config.learned import remembered
from dist_sft.core.errors import RowError
from dist_sft.core.files import stable_hash

VERSION = 1
"""Of this package's way to encode: part of every fingerprint, to be raised when ids or weights change."""

Item = Conversation | Document


@dataclass(frozen=True, slots=True)
class TokenPiece:
    """One token for a person to read: its share of the text, id, loss weight. The texts joined are the whole text.

    spelled  it is letters of what the row has for a control token
    """

    text: str
    id: int
    weight: float
    spelled: bool = False


@dataclass(frozen=True, slots=True)
class _Plan:
    """A text that waits for its tokens. learned: in characters, in order; None: a document, all of it."""

    row: RowText
    learned: list[WeightedSpan] | None


@dataclass(frozen=True, slots=True)
class _Framed:
    """A text with its tokens. ranges: tokens [first, last) of each span that is learned of it."""

    plan: _Plan
    tokens: Tokens
    ranges: list[tuple[int, int]]


class Encoder:
    """Everything that turns rows into samples, for one tokenizer, template and loss. Pickles as its settings."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        template: str | ChatTemplate,
        loss: LossWeights,
        context_length: int,
        overlong: str,
        *,
        reasoning_without_place: WithoutPlace = "refuse",
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            template: as data.template, or one that was chosen already.
            overlong: drop, error (both: RowError "overlong") or truncate.
            reasoning_without_place, template_kwargs: as in data.
        Raises:
            TemplateError: no such template, or one that cannot say where answers begin and end.
        """
        self.template = choose(template, vocabulary) if isinstance(template, str) else template
        self._loss, self._without_place, self._kwargs = loss, reasoning_without_place, dict(template_kwargs or {})
        self._vocabulary, self._context_length, self._overlong = vocabulary, context_length, overlong
        self._renderer = Renderer(
            self.template.source, vocabulary.special_tokens, self.template.with_tools, self._kwargs
        )
        self._anatomy = study(self._renderer, vocabulary)
        self._texts = TextEncoder(vocabulary, self._anatomy.words)
        self._adapt = Adapter(self._anatomy, reasoning_without_place)
        self._locate = Locator(self._renderer, self._texts.suspect)
        self._supervise = Supervisor(self._renderer, self._anatomy, loss)
        self._inference = Inference(self._renderer, self._anatomy)
        self._natives: dict[Policy, Prerendered] = {}

    def __reduce__(self) -> tuple[object, ...]:
        given = (self._vocabulary, self.template, self._loss, self._context_length, self._overlong)
        named = {"reasoning_without_place": self._without_place, "template_kwargs": self._kwargs}
        return partial(Encoder, **named), given  # type: ignore[arg-type]

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer."""
        return self._vocabulary

    @cached_property
    def dialect(self) -> Dialect:
        """What the template writes between turns."""
        return learn(self._renderer, self._texts.suspect, self._vocabulary.special_tokens)

    def native(self, policy: Policy) -> Prerendered:
        """What the template makes of rows that hold its own text already. policy: Source.control_tokens."""
        if policy not in self._natives:
            self._natives[policy] = Prerendered(self.dialect, self._renderer, self._texts.suspect, policy)
        return self._natives[policy]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids of the special tokens that end an answer; the template's own first."""
        return tuple(self._vocabulary.ids[stop] for stop in self._anatomy.stops if stop in self._vocabulary.ids)

    @property
    def fingerprint(self) -> str:
        """Hex digest of all that decides a sample, given its row."""
        return stable_hash(
            [
                VERSION,
                self._vocabulary.fingerprint,
                self.template.source,
                remembered(self._loss),
                self._context_length,
                self._overlong,
                TODAY.isoformat(),
                *self._added_since(),
            ]
        )

    def _added_since(self) -> list[object]:
        """What decides samples and did not when runs first kept fingerprints; nothing where they are as they were."""
        said = {
            "reasoning_without_place": self._without_place if self._without_place != "refuse" else None,
            "template_kwargs": self._kwargs,
            "with_tools": self.template.with_tools,
            "borders": self._anatomy.borders,
        }
        said = {name: value for name, value in said.items() if value}
        return [said] if said else []

    def encode(self, item: Item) -> EncodedSample:
        """One sample. Raises: RowError, see `encode_batch`."""
        (result,) = self.encode_batch([item])
        if isinstance(result, RowError):
            raise result
        return result

    def encode_batch(self, items: Sequence[Item]) -> list[EncodedSample | RowError]:
        """Samples in the order of the items; a RowError where an item cannot become one.

        Reasons: template_refused, private_use, not_rendered, spans_not_found, generation_tags, empty_answer,
        control_token, stop_not_supervised, nothing_supervised, overlong.
        """
        return [self._sample(found) for found in self._tokens(items)]

    def render(self, item: Item) -> str:
        """The text whose tokens a sample holds (a document's begin and end tokens left out)."""
        if isinstance(item, Document):
            return item.text
        item = self._adapt(item)
        try:
            return self._supervise(item, apart(item, self._locate(item))).text
        except RowError:
            return self._renderer.render(item)

    def spelled(self, item: Item) -> frozenset[str]:
        """Control tokens that the text of a row has, and that are spelled out in letters; none of a row that is bad."""
        strings = [item.text] if isinstance(item, Document) else strings_of(item)
        plan = self._plan(item) if any(map(self._texts.suspect.search, strings)) else None
        if not isinstance(plan, _Plan):
            return frozenset()
        return frozenset(plan.row.text[start:end] for start, end in self._texts.spelled(plan.row))

    def forgets(self, item: Item) -> bool:
        """Whether an answer is learned whose thought the template leaves out, as it is of an earlier turn."""
        if isinstance(item, Document) or not any(message.reasoning for message in item.messages):
            return False
        if isinstance(self._plan(item), RowError):
            return False
        item = self._adapt(item)
        weights = weights_of(item, self._loss)
        return any(part.kind == "reasoning" and weights[part.message] for part in apart(item, self._locate(item)).lost)

    def unlike_inference(self, item: Item) -> frozenset[str]:
        """For a person, what of the learned answers of a row is not as at inference; of a row that is bad, nothing."""
        (found,) = self._tokens([item])
        if isinstance(item, Document) or isinstance(found, RowError):
            return frozenset()
        item, special = self._adapt(item), {token.id: token.content for token in self._vocabulary.added_tokens}
        answers = [
            Answer(
                span.message,
                found.plan.row.text[: span.start],
                max((end for _, end in found.plan.row.spans if end <= span.start), default=0),
                [special.get(id_, "") for id_ in found.tokens.ids[first:last].tolist()],
            )
            for span, (first, last) in zip(found.plan.learned or (), found.ranges, strict=True)
            if span.stop and (self._loss.reasoning or not item.messages[span.message].reasoning)
        ]
        return frozenset(self._inference.differs(item, answers))

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of ids, control tokens included."""
        return self._texts.decode(ids)

    def preview(self, item: Item) -> list[TokenPiece]:
        """Every token of a sample as a person reads it, before any truncation. Raises: RowError."""
        (found,) = self._tokens([item])
        if isinstance(found, RowError):
            raise found
        plan, tokens = found.plan, found.tokens
        pieces: list[TokenPiece] = []
        shown = 0
        weights = self._weights(found)
        letters = {place for start, end in self._texts.spelled(plan.row) for place in range(start, end)}
        for token, (start, end), weight in zip(tokens.ids, tokens.offsets, weights, strict=True):
            text = self.text_of([token]) if start == end else plan.row.text[shown:end]
            pieces.append(TokenPiece(text, int(token), float(weight), not letters.isdisjoint(range(start, end))))
            shown = max(shown, end)
        return pieces

    def _tokens(self, items: Sequence[Item]) -> list[_Framed | RowError]:
        plans = [self._plan(item) for item in items]
        encoded = iter(self._texts.encode([plan.row for plan in plans if isinstance(plan, _Plan)]))
        return [plan if isinstance(plan, RowError) else self._framed(plan, next(encoded)) for plan in plans]

    def _plan(self, item: Item) -> _Plan | RowError:
        try:
            if isinstance(item, Document) and not item.text.strip():
                raise RowError("its text is empty", reason="nothing_supervised", fix="remove the row")
            if isinstance(item, Document):
                return _Plan(RowText(item.text, ((0, len(item.text)),)), None)
            item = self._adapt(item)
            self._check_kwargs(item)
            found = apart(item, self._locate(item))
            learned = self._supervise(item, found)
            return _Plan(RowText(learned.text, tuple(row_spans(found))), learned.spans)
        except RowError as error:
            return error

    def _check_kwargs(self, item: Conversation) -> None:
        """What a row says to the template is written as it is, so it holds no control token."""
        if item.template_kwargs and (found := self._texts.suspect.search(repr(item.template_kwargs))):
            raise RowError(
                f"chat_template_kwargs of the row hold the control token {found[0]!r}",
                reason="control_token",
                fix="remove it; data.template_kwargs, which the run says, may hold one",
            )

    def _framed(self, plan: _Plan, tokens: Tokens | RowError) -> _Framed | RowError:
        """A plan with its tokens; a document's between those that begin and end a text."""
        if isinstance(tokens, RowError):
            return tokens
        if plan.learned is not None:
            return self._ranged(plan, plan.learned, tokens)
        eos = self._vocabulary.id_of("eos_token")
        if eos is None:
            return RowError(
                "the tokenizer has no eos_token to end a document with",
                reason="no_eos",
                fix="set eos_token in tokenizer_config.json",
            )
        before, size = self._texts.document_prefix, len(plan.row.text)
        ids = np.concatenate([np.array(before, np.int32), tokens.ids, np.array([eos], np.int32)])
        return _Framed(plan, Tokens(ids, None, lambda: [(0, 0)] * len(before) + tokens.offsets + [(size, size)]), [])

    def _ranged(self, plan: _Plan, learned: list[WeightedSpan], tokens: Tokens) -> _Framed | RowError:
        """A conversation with its tokens. Inference never sees one that holds the end of the prompt and the start of
        the answer: where one does, the two are encoded apart."""
        ranges: list[tuple[int, int]] = []
        straddled: list[int] = []
        for span in learned:
            known = self._texts.between_controls(plan.row.text, tokens, span.start, span.end) if span.stop else None
            ranges.append(known or _token_range(tokens.offsets, span))
            if span.stop and known is None and self._straddles(tokens.offsets, ranges[-1][0], span):
                straddled.append(span.start)
        if not straddled:
            return _Framed(plan, tokens, ranges)
        apart = self._texts.encode_apart(plan.row, straddled)
        if isinstance(apart, RowError):
            return apart
        return _Framed(plan, apart, [_token_range(apart.offsets, span) for span in learned])

    @staticmethod
    def _straddles(offsets: Sequence[tuple[int, int]], first: int, span: WeightedSpan) -> bool:
        """Whether the token before token `first` reaches into the span."""
        return first > 0 and offsets[first - 1][1] > span.start

    def _sample(self, found: _Framed | RowError) -> EncodedSample | RowError:
        """Weights, length and the last proofs of one row."""
        if isinstance(found, RowError):
            return found
        tokens = found.tokens
        try:
            weights = self._weights(found)
        except RowError as error:
            return error
        cut = max(0, len(weights) - self._context_length)
        if cut and self._overlong != "truncate":
            return RowError(
                f"{len(weights)} tokens, {cut} more than fit",
                reason="overlong",
                fix=f"data.context_length={len(weights)}, data.overlong=truncate, or data.overlong=drop",
                lost=int(np.count_nonzero(weights)),
            )
        kept = len(weights) - cut
        lost = int(np.count_nonzero(weights[kept:]))
        if not weights[:kept].any():
            return RowError(
                "nothing is learned from it" + (" once it is truncated" if cut else ""),
                reason="nothing_supervised",
                fix="remove the row, or see data.loss and its loss_weight",
                lost=lost,
            )
        return EncodedSample(tokens.ids[:kept].copy(), weights[:kept].copy(), cut, lost)

    def _weights(self, found: _Framed) -> NDArray[np.float32]:
        """float32[T]. Raises: RowError: stop_not_supervised."""
        learned, ids = found.plan.learned, found.tokens.ids
        weights = np.full(len(ids), 1.0 if learned is None else 0.0, np.float32)
        for span, (first, last) in zip(learned or (), found.ranges, strict=True):
            if span.stop and not (last > first and self._texts.is_control(int(ids[last - 1]))):
                raise RowError(
                    f"the stop token of messages[{span.message}] is not learned",
                    reason="stop_not_supervised",
                    fix="choose another data.template",
                )
            weights[first:last] = span.weight
        weights[:1] = 0
        return weights


def _token_range(offsets: Sequence[tuple[int, int]], span: WeightedSpan) -> tuple[int, int]:
    """Tokens [first, last) that begin in a span of characters. An answer's first token does (see `encode_apart`); its
    last, a control token, may hold blanks behind it (Phi-3's do)."""
    return bisect_left(offsets, (span.start,)), bisect_left(offsets, (span.end,))
