"""The values that reach a rank.

EncodedSample, StepPlan -> Pack -> StepShare

Axes: K samples and T tokens of a pack, D kinds of groups, M micro-steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dist_sft.chat.conversation import EncodedSample
from dist_sft.data.groups import GroupTotals
from dist_sft.data.order import SampleId


@dataclass(frozen=True, slots=True)
class Pack:
    """Whole samples side by side, no padding between them.

    tokens     int32[T]    ids
    weights    float32[T]  loss weight of predicting token t from those before it; 0 at each sample's first token
    positions  int32[T]    restart at 0 with each sample
    cu_seqlens int32[K+1]  where samples begin and end; K+2 if padding follows, which is a segment of its own
    samples    SampleId[K] source and row; () for a dummy pack, which is padding alone
    groups     int32[K, D] ids of the groups that each sample is counted in, see `groups`
    """

    tokens: NDArray[np.int32]
    weights: NDArray[np.float32]
    positions: NDArray[np.int32]
    cu_seqlens: NDArray[np.int32]
    samples: tuple[SampleId, ...]
    groups: NDArray[np.int32]

    @property
    def real_tokens(self) -> int:
        return int(self.cu_seqlens[len(self.samples)])


def build_pack(
    ids: Sequence[SampleId],
    samples: Sequence[EncodedSample],
    multiple: int = 1,
    groups: Sequence[NDArray[np.int32]] = (),
) -> Pack:
    """Lay samples side by side; without any, the dummy pack that keeps a rank in step with the others.

    Args:
        multiple: of tokens that the pack's length shall be; what is missing is one more segment, of weight 0.
        groups: int32[D] of each sample; without any, they are counted in no group.
    """
    filler = -sum(map(len, samples)) % multiple if samples else multiple
    if filler:
        samples = [*samples, EncodedSample(np.zeros(filler, np.int32), np.zeros(filler, np.float32))]
    lengths = [len(sample) for sample in samples]
    weights = np.concatenate([sample.weights for sample in samples])
    ends = np.cumsum([0, *lengths], dtype=np.int32)
    assert not weights[ends[:-1]].any(), "the first token of a sample is predicted from nothing"
    return Pack(
        tokens=np.concatenate([sample.tokens for sample in samples]),
        weights=weights,
        positions=np.arange(ends[-1], dtype=np.int32) - np.repeat(ends[:-1], lengths),
        cu_seqlens=ends,
        samples=tuple(ids),
        groups=np.stack(groups) if groups else np.zeros((len(ids), 0), np.int32),
    )


@dataclass(frozen=True, slots=True)
class StepTotals:
    """The whole step, all ranks.

    samples        those that are learned
    weight         sum of loss weights; the loss is divided by it
    squares        sum of squared lengths, for the cost of attention
    supervised     tokens with a weight above 0
    source_tokens  tokens of each source
    balance        time of the step over that of a perfectly balanced one, by estimated cost
    fill           tokens over what all packs could hold
    dummies        packs without a sample
    padding        tokens of padding in the others
    groups         of each group that a sample of the step is in
    """

    samples: int
    weight: float
    tokens: int
    squares: int
    supervised: int
    source_tokens: tuple[int, ...]
    balance: float
    fill: float
    dummies: int
    padding: int
    groups: tuple[GroupTotals, ...] = ()


@dataclass(frozen=True, slots=True)
class StepShare:
    """What one rank computes in one step. packs: Pack[M], one per micro-step; M is the same on every rank."""

    step: int
    packs: tuple[Pack, ...]
    totals: StepTotals
