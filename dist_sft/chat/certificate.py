"""Are exactly the right tokens learned? Two ways that share no code must say the same of every row.

(place, row, EncodedSample)... ─ certify ─> Certificate

The weights in a sample come from the first way (spans); `witness` says what they should be.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dist_sft.chat.conversation import Conversation, Document, EncodedSample
from dist_sft.chat.witness import Objection, Testimony, Witness

FEW = 3
"""Places that are named of each kind."""

Looked = tuple[str, Conversation | Document, EncodedSample]
"""Where a row is, what it means, and what it became."""
Dropped = tuple[str, str]
"""Why a row is not learned, and where it is."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One row of which the two ways do not say the same. learned: by the first way; expected: by the second."""

    where: str
    what: str
    learned: str
    expected: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; learned is {self.learned!r}, expected {self.expected!r}"


@dataclass(slots=True)
class Coverage:
    """Of one role's words: tokens, and how many of them are learned."""

    tokens: int = 0
    supervised: int = 0

    @property
    def share(self) -> float:
        return self.supervised / self.tokens if self.tokens else 0.0


@dataclass(slots=True)
class Drops:
    """Rows that are not learned for one reason, and the first places."""

    rows: int = 0
    places: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Certificate:
    """What was found in rows of a run.

    rows           samples that were examined, and rows that were dropped
    agreed         samples on whose every weight both ways agree
    disagreements  the first few others, of `disagreed`
    coverage       by role; documents under "document". An answer's tokens include its stop token
    answers        that are learned and not cut off; `stopped` of them with their stop token
    unstopped      the first places of others
    truncated      samples that were cut; `lost`: tokens that were to be learned behind the cuts
    dropped        by reason
    tokens         of all samples; `supervised` of them with a weight above 0
    """

    rows: int = 0
    agreed: int = 0
    disagreed: int = 0
    disagreements: list[Disagreement] = field(default_factory=list)
    coverage: dict[str, Coverage] = field(default_factory=dict)
    answers: int = 0
    stopped: int = 0
    unstopped: list[str] = field(default_factory=list)
    truncated: int = 0
    lost: int = 0
    dropped: dict[str, Drops] = field(default_factory=dict)
    tokens: int = 0
    supervised: int = 0

    @property
    def stop_share(self) -> float:
        """Of the learned answers, those whose stop token is learned."""
        return self.stopped / self.answers if self.answers else 1.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rows": self.rows,
            "agreed": self.agreed,
            "disagreed": self.disagreed,
            "disagreements": [str(one) for one in self.disagreements],
            "coverage": {
                role: {"supervised": one.supervised, "tokens": one.tokens, "share": one.share}
                for role, one in self.coverage.items()
            },
            "answers": self.answers,
            "stop_share": self.stop_share,
            "unstopped": self.unstopped,
            "truncated": self.truncated,
            "lost": self.lost,
            "dropped": {reason: {"rows": one.rows, "first": one.places} for reason, one in self.dropped.items()},
            "tokens": self.tokens,
            "supervised": self.supervised,
        }

    def lines(self) -> list[tuple[str, str]]:
        """For a person: names and values."""
        samples = self.agreed + self.disagreed
        shares = ", ".join(f"{role} {one.share:.2%} of {one.tokens}" for role, one in self.coverage.items())
        drops = ", ".join(f"{one.rows} {reason}" for reason, one in self.dropped.items())
        return [
            ("masks proved", f"{self.agreed} of {samples} samples, by two ways that agree"),
            ("learned tokens", f"{self.supervised} of {self.tokens}: {shares}"),
            ("stop tokens learned", f"{self.stopped} of {self.answers} answers"),
            *([("truncated", f"{self.truncated} rows, {self.lost} learned tokens lost")] if self.truncated else []),
            *([("dropped", drops)] if drops else []),
        ]


def certify(witness: Witness, looked: Iterable[Looked], dropped: Iterable[Dropped] = ()) -> Certificate:
    """Examine every sample."""
    found = Certificate()
    for where, item, sample in looked:
        _add(found, where, item, sample, witness.examine(item, sample))
    for reason, where in dropped:
        found.rows += 1
        drops = found.dropped.setdefault(reason, Drops())
        drops.rows += 1
        drops.places += [where] if len(drops.places) < FEW else []
    return found


def _add(
    found: Certificate, where: str, item: Conversation | Document, sample: EncodedSample, testimony: Testimony
) -> None:
    found.rows += 1
    found.tokens += len(sample)
    found.supervised += sample.supervised
    found.truncated += bool(sample.cut)
    found.lost += sample.lost
    if testimony.objection is None:
        found.agreed += 1
    else:
        found.disagreed += 1
        if len(found.disagreements) < FEW:
            found.disagreements.append(_at(where, testimony.objection))
    if isinstance(item, Document):
        _cover(found, "document", sample, 1, len(sample))
    for claim in testimony.claims:
        assert isinstance(item, Conversation)
        _cover(found, item.messages[claim.message].role, sample, claim.sure, claim.last)
        if claim.stop is not None and testimony.weights[claim.stop]:
            found.answers += 1
            if sample.weights[claim.stop]:
                found.stopped += 1
            elif len(found.unstopped) < FEW:
                found.unstopped.append(where)


def _cover(found: Certificate, role: str, sample: EncodedSample, first: int, last: int) -> None:
    coverage = found.coverage.setdefault(role, Coverage())
    coverage.tokens += last - first
    coverage.supervised += int(np.count_nonzero(sample.weights[first:last]))


def _at(where: str, objection: Objection) -> Disagreement:
    return Disagreement(where, objection.what, objection.learned, objection.expected)
