"""A sample read back: which characters each of its tokens stands for.

EncodedSample.tokens ─ Reader ─> Decoded (text, and where each token begins in it)

Axes: T tokens of the sample.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers.decoders import DecodeStream

from dist_sft.chat.vocabulary import Vocabulary, exact_tokenizer


@dataclass(frozen=True, slots=True)
class Decoded:
    """A text made of tokens.

    ids     T ids
    starts  T + 1 places in the text: where each token begins, and the end. Tokens that share a character begin together
    """

    text: str
    ids: tuple[int, ...]
    starts: tuple[int, ...]

    def token_at(self, place: int) -> int:
        """The first token that begins at this character, or behind it."""
        return bisect_left(self.starts, place, 0, len(self.ids))

    def holds(self, token: int, place: int) -> bool:
        """Does a token with this id begin at this character?"""
        first = self.token_at(place)
        return any(
            self.ids[t] == token for t in range(first, bisect_left(self.starts, place + 1, first, len(self.ids)))
        )

    def shown_from(self, place: int, last: int) -> str:
        """The text from a character on to token `last`, without it."""
        return self.text[place : self.starts[last]]

    def shown(self, first: int, last: int) -> str:
        """The text of tokens [first, last)."""
        return self.text[self.starts[first] : self.starts[last]]


class Reader:
    """The tokenizer as the model's users have it: no control token is locked. Not to be shared by threads."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokenizer = exact_tokenizer(vocabulary.backend, vocabulary.ids)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._special = {token.id: token.content for token in vocabulary.added_tokens if token.special}

    @property
    def special(self) -> dict[int, str]:
        """Text of the special tokens by id."""
        return self._special

    def read(self, ids: Sequence[int]) -> Decoded:
        """The text of ids, control tokens included. A special token is its own text, whatever stands beside it."""
        pieces: list[str] = []
        plain: list[int] = []
        for id_ in (*map(int, ids), None):
            if id_ is not None and id_ not in self._special:
                plain.append(id_)
                continue
            pieces += self._pieces(plain)
            plain = []
            if id_ is not None:
                pieces.append(self._special[id_])
        return Decoded("".join(pieces), tuple(map(int, ids)), _starts(pieces))

    def as_written(self, text: str, special: bool = False) -> str:
        """A text after the way through the tokenizer and back: some compose accents, some do not know a character.

        special: special tokens in it are meant as such.
        """
        if not text:
            return ""
        self._tokenizer.encode_special_tokens = not special
        try:
            return self.read(self._tokenizer.encode(text, add_special_tokens=False).ids).text
        finally:
            self._tokenizer.encode_special_tokens = False

    def _pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token; "" for all but the last of those that make up a character together."""
        stream = DecodeStream(skip_special_tokens=False)
        pieces = [stream.step(self._tokenizer, id_) or "" for id_ in ids]
        if ids and not pieces[-1]:  # half a character, or one that looks like it: it never left the stream
            pieces[-1] = self._tokenizer.decode(list(ids), skip_special_tokens=False)[sum(map(len, pieces)) :]
        return pieces


def _starts(pieces: Sequence[str]) -> tuple[int, ...]:
    starts = [0]
    for piece in pieces:
        starts.append(starts[-1] + len(piece))
    return tuple(starts)
