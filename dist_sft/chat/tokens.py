"""Text -> ids and their places in the text; what a row says never becomes a control token.

Control tokens are the tokens that steer a model: special ones, those that the chat template writes itself (`<think>`,
`<tool_call>`) and those that look like them (`<|fim_prefix|>`). Ordinary added tokens (Gemma's "\\n\\n") are text.
"""

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from dist_sft.chat.vocabulary import Vocabulary, any_of, exact_tokenizer
from dist_sft.core.errors import RowError

_PIECES_KEPT, _LONG_PIECE = 4096, 256
_LOOKS_LIKE_CONTROL = re.compile(r"<\|.+\|>", re.DOTALL)


Offsets = list[tuple[int, int]]
"""T pairs (start, end), in characters of the text; a character of several tokens is in each of them."""


class Control(NamedTuple):
    """A control token that the template wrote: text[start:end], and which token it is."""

    start: int
    end: int
    token: int


class Tokens:
    """A text as tokens.

    ids       int32[T]
    controls  every control token, in order; None where they were not told apart
    """

    def __init__(self, ids: NDArray[np.int32], controls: list[Control] | None, offsets: Callable[[], Offsets]) -> None:
        """offsets: works them out, which costs as much as the ids did; most texts never need them."""
        self.ids, self.controls, self._find = ids, controls, offsets

    @cached_property
    def offsets(self) -> Offsets:
        return self._find()


@dataclass(frozen=True, slots=True)
class RowText:
    """A text to be encoded, and which parts of it come from a row: (start, end), in order, in characters."""

    text: str
    spans: tuple[tuple[int, int], ...]


class TextEncoder:
    """The Rust tokenizer, with its control tokens under lock. Holds the tokenizer; not to be shared by threads."""

    def __init__(self, vocabulary: Vocabulary, words: Iterable[str]) -> None:
        """words: all that the chat template writes by itself."""
        control = control_tokens(vocabulary, words)
        self.suspect = re.compile(any_of(control))
        outline, model = vocabulary.outline()
        self._tokenizer = exact_tokenizer(_locked(outline, model, control), vocabulary.ids)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._control_ids = {token: vocabulary.ids[token] for token in control}
        self._is_control = np.zeros(max(self._control_ids.values(), default=0) + 2, np.bool_)
        self._is_control[list(self._control_ids.values())] = True  # the last stays False, for all ids above
        self._alone = '"type":"BPE"' in model[:100] and not any(
            token["content"] in control and any(token[flag] for flag in ("lstrip", "rstrip", "single_word"))
            for token in outline["added_tokens"]
        )
        unknown = re.search(r'"unk_token":("(?:[^"\\]|\\.)*")', model[:1000])
        self._unknown = unknown and self._tokenizer.token_to_id(json.loads(unknown[1]))
        self._controls: dict[str, list[tuple[int, int, int]]] = {}
        self._between: dict[tuple[str, bool], list[int] | None] = {}
        self._newline = self._tokenizer.encode("\n", add_special_tokens=False).ids
        self.document_prefix = self._added_before_text()

    def encode(self, rows: Sequence[RowText]) -> list[Tokens | RowError]:
        """Tokens of each text, or why it has none.

        Texts without a control token inside their row parts get the ids of the text encoded whole.
        """
        clean = [i for i, row in enumerate(rows) if not any(self.spelled(row))]
        encodings = self._tokenizer.encode_batch_fast([rows[i].text for i in clean], add_special_tokens=False)
        whole = {i: self._whole(rows[i], found) for i, found in zip(clean, encodings, strict=True)}
        return [self._checked(row, whole.get(i) or self._in_pieces(row)) for i, row in enumerate(rows)]

    def encode_apart(self, row: RowText, borders: Sequence[int]) -> Tokens | RowError:
        """Tokens of a text in which none reaches over a border: as at inference, where prompt and answer are encoded
        one after the other. borders: in characters, in order."""
        return self._checked(row, self._in_pieces(row, borders))

    def between_controls(self, text: str, tokens: Tokens, start: int, end: int) -> tuple[int, int] | None:
        """Tokens [first, last) of text[start:end]; None where only offsets can tell.

        The tokenizer cuts a text at its control tokens before all else. So an end there is a border of tokens, and a
        start is one if the ids after the control token before it begin with those of what stands between the two.
        """
        controls = tokens.controls or []
        last = bisect_left(controls, end, key=_end)
        before = bisect_right(controls, start, key=_end) - 1
        if last >= len(controls) or controls[last].end != end or before >= last:
            return None
        after, first = (controls[before].end, controls[before].token + 1) if before >= 0 else (0, 0)
        between = self._ids_between(text[after:start], before < 0)
        if between is None or tokens.ids[first : first + len(between)].tolist() != between:
            return None
        return first + len(between), controls[last].token + 1

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, control tokens included."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def is_control(self, token: int) -> bool:
        return token < len(self._is_control) and bool(self._is_control[token])

    def spelled(self, row: RowText) -> Iterable[tuple[int, int]]:
        """Where the row has the text of a control token, which is spelled out in letters."""
        return (match.span() for start, end in row.spans for match in self.suspect.finditer(row.text, start, end))

    def _whole(self, row: RowText, encoding: Encoding) -> Tokens:
        """A text that was encoded in one piece, with its control tokens if the template wrote them all."""
        ids = np.array(encoding.ids, np.int32)
        at = self._controls_at(ids)
        edges = [0, *chain.from_iterable(row.spans), len(row.text)]
        written = [
            (begin + start, begin + end, id_)
            for begin, stop in zip(edges[::2], edges[1::2], strict=True)
            for start, end, id_ in self._controls_in(row.text[begin:stop])
        ]
        same = self._alone and ids[at].tolist() == [id_ for _, _, id_ in written]
        controls = (
            [Control(a, b, token) for (a, b, _), token in zip(written, at.tolist(), strict=True)] if same else None
        )
        return Tokens(ids, controls, lambda: self._tokenizer.encode(row.text, add_special_tokens=False).offsets)

    def _controls_in(self, text: str) -> list[tuple[int, int, int]]:
        """Start, end and id of the control tokens in a piece of the template."""
        found = self._controls.get(text)
        if found is None:
            found = [(*match.span(), self._control_ids[match[0]]) for match in self.suspect.finditer(text)]
            if len(text) < _LONG_PIECE and len(self._controls) < _PIECES_KEPT:
                self._controls[text] = found
        return found

    def _controls_at(self, ids: NDArray[np.int32]) -> NDArray[np.int64]:
        """Where the control tokens stand."""
        return np.flatnonzero(self._is_control.take(ids, mode="clip"))

    def _ids_between(self, text: str, first: bool) -> list[int] | None:
        """Ids of a piece of the template; None if they do not hold the whole piece, or not it alone."""
        if (text, first) not in self._between:
            if len(self._between) >= _PIECES_KEPT:
                self._between.clear()
            ids, offsets = self._piece(text, False, first)
            exact = not text or (offsets and offsets[0][0] == 0 and offsets[-1][1] == len(text))
            self._between[text, first] = ids if exact and self._unknown not in ids else None
        return self._between[text, first]

    def _in_pieces(self, row: RowText, borders: Sequence[int] = ()) -> Tokens:
        """The row's control strings encoded as text, all between them as ever; a border cuts what it is in."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        position = 0
        for start, end in (*self.spelled(row), (len(row.text), len(row.text))):
            edges = [position, *(border for border in borders if position < border < start), start]
            plain = [(low, high, False) for low, high in pairwise(edges)]
            for low, high, as_text in (*plain, (start, end, True)):
                piece_ids, piece_offsets = self._piece(row.text[low:high], as_text, first=not ids)
                ids += piece_ids
                offsets += [(low + a, low + b) for a, b in piece_offsets]
            position = end
        return Tokens(np.array(ids, np.int32), None, lambda: offsets)

    def _piece(self, text: str, as_text: bool, first: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a piece as it would be in the middle of a text: SentencePiece puts a blank before a first word."""
        self._tokenizer.encode_special_tokens = as_text
        try:
            if not text:
                return [], []
            if not first:
                behind = self._tokenizer.encode("\n" + text, add_special_tokens=False)
                skip = len(self._newline)
                if behind.ids[:skip] == self._newline and behind.offsets[skip - 1][1] == 1:
                    return behind.ids[skip:], [(a - 1, b - 1) for a, b in behind.offsets[skip:]]
            alone = self._tokenizer.encode(text, add_special_tokens=False)
            return alone.ids, alone.offsets
        finally:
            self._tokenizer.encode_special_tokens = False

    def _checked(self, row: RowText, tokens: Tokens) -> Tokens | RowError:
        """The promise: no control token holds a character of the row."""
        if tokens.controls is not None:
            return tokens
        for at in self._controls_at(tokens.ids):
            start, end = tokens.offsets[at]
            if any(start < b and a < end for a, b in row.spans):
                return RowError(
                    f"text of the row would become the control token {row.text[start:end]!r}",
                    reason="control_token",
                    fix="remove that text from the row",
                )
        return tokens

    def _added_before_text(self) -> tuple[int, ...]:
        """What the tokenizer puts before a plain text by itself: a begin-of-text token, or nothing."""
        bare = self._tokenizer.encode("x", add_special_tokens=False).ids
        full = self._tokenizer.encode("x", add_special_tokens=True).ids
        at = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
        return tuple(full[:at])


def control_tokens(vocabulary: Vocabulary, words: Iterable[str]) -> frozenset[str]:
    """Texts of the added tokens that no row may use."""
    written = "\0".join(words)
    return frozenset(
        token.content
        for token in vocabulary.added_tokens
        if token.special
        or (token.content.strip() and (token.content in written or _LOOKS_LIKE_CONTROL.fullmatch(token.content)))
    )


def _end(control: Control) -> int:
    return control.end


def _locked(outline: dict[str, Any], model: str, control: frozenset[str]) -> str:
    """The tokenizer's JSON in which the control tokens, and no others, obey `encode_special_tokens`, and offsets tell
    the truth about blanks."""
    added = [{**token, "special": token["content"] in control} for token in outline["added_tokens"]]
    parts = {**outline, "added_tokens": added}
    _keep_blanks(parts.get("post_processor"))
    return f'{json.dumps(parts, ensure_ascii=False)[:-1]}, "model": {model}}}'


def _keep_blanks(part: Any) -> None:
    if isinstance(part, dict):
        if "trim_offsets" in part:
            part["trim_offsets"] = False
        for inner in part.values():
            _keep_blanks(inner)
    elif isinstance(part, list):
        for inner in part:
            _keep_blanks(inner)
