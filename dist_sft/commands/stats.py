"""What the rows of a run are: how many, how long, how much of them is learned, how they mix and how they pack."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dist_sft.core.errors import DataError
from dist_sft.data.encoding import Told
from dist_sft.run.data import RunData
from dist_sft.run.opened import OpenedRun

Track = Callable[[Sequence[int]], Iterable[int]]


@dataclass(frozen=True)
class SourceStats:
    """One source, in the steps that were looked at.

    rows        in the source
    held_out    of these, by eval.share: they are not trained
    seen        samples of the steps that come from it; passes over its rows: epochs
    learned     of these, those that became samples; lengths of all of them in tokens
    supervised  tokens with a weight above 0
    dropped     rows by reason; truncated ones are learned, too
    lost        supervised tokens of dropped and truncated rows, as far as known
    """

    name: str
    rows: int
    held_out: int
    seen: int
    epochs: float
    learned: int
    tokens: int
    supervised: int
    sample_share: float
    token_share: float
    dropped: dict[str, int]
    lost: int
    lengths: list[int]

    def percentile(self, q: float) -> int:
        return int(np.percentile(self.lengths, q)) if self.lengths else 0


@dataclass(frozen=True)
class Stats:
    """Steps of a run. fill, balance, micro_steps, dummies, padding: of each step, see `data.packing.StepPlan`.

    told          keys that the first rows fill and nothing reads, control tokens that they spell out
    token_shares  token_shares[step][source], of all tokens up to that step
    advice        what to change where steps are small for their ranks
    """

    steps: int
    of_steps: int
    world: int
    sources: list[SourceStats]
    told: Told
    token_shares: list[list[float]]
    fill: list[float]
    balance: list[float]
    micro_steps: list[int]
    dummies: list[int]
    padding: list[int]
    advice: str | None

    def as_dict(self) -> dict[str, Any]:
        """For machines: lengths as percentiles."""
        values = asdict(self)
        values |= values.pop("told")
        for source, stats in zip(values["sources"], self.sources, strict=True):
            source["lengths"] = {f"p{q}": stats.percentile(q) for q in (0, 25, 50, 75, 95, 99, 100)}
        return values


def stats(run: OpenedRun, steps: int | None, world: int, track: Track = iter) -> Stats:
    """Look at the first steps of a run (None: all). Raises what `RunData.of` and encoding raise.

    track: passes on the steps that are encoded, and may show how far it is.
    """
    data = RunData.of(run)
    feed, packer = data.train, data.packer(world)
    count = min(steps or len(feed.steps), len(feed.steps))
    if count == 0:
        raise DataError("the run has no step", where="train", fix="raise train.steps or train.epochs")
    names = [source.name for source in feed.rows.sources]
    lengths: list[list[int]] = [[] for _ in names]
    seen, supervised, lost = np.zeros(len(names), int), np.zeros(len(names), int), np.zeros(len(names), int)
    dropped: list[Counter[str]] = [Counter() for _ in names]
    plans, shares = [], []
    for step in track(range(count)):
        ids = feed.steps.samples(step)
        encoded = feed.rows.encode(step, ids)
        source_at = {id_.position: id_.source for id_ in ids}
        seen += np.bincount([id_.source for id_ in ids], minlength=len(names))
        for id_, sample in zip(encoded.ids, encoded.samples, strict=True):
            lengths[id_.source].append(len(sample))
            supervised[id_.source] += sample.supervised
        for entry in encoded.entries:
            dropped[source_at[entry.position]][entry.reason] += 1
            lost[source_at[entry.position]] += entry.lost
        plans.append(packer.pack([len(sample) for sample in encoded.samples]))
        shares.append(_shares(sum(part) for part in lengths))
    epochs = feed.steps.order.epochs(feed.steps.positions_of(count - 1)[1])
    sample_shares = _shares(seen.tolist())
    return Stats(
        steps=count,
        of_steps=len(feed.steps),
        world=world,
        sources=[
            SourceStats(
                name=name,
                rows=feed.rows.lengths[i],
                held_out=len(data.held.rows[i]) if data.held.rows else 0,
                seen=int(seen[i]),
                epochs=epochs[i],
                learned=len(lengths[i]),
                tokens=sum(lengths[i]),
                supervised=int(supervised[i]),
                sample_share=sample_shares[i],
                token_share=shares[-1][i],
                dropped=dict(dropped[i]),
                lost=int(lost[i]),
                lengths=lengths[i],
            )
            for i, name in enumerate(names)
        ],
        told=data.told(),
        token_shares=shares,
        fill=[plan.fill for plan in plans],
        balance=[plan.balance for plan in plans],
        micro_steps=[plan.micro_steps for plan in plans],
        dummies=[plan.dummies for plan in plans],
        padding=[plan.padding for plan in plans],
        advice=next((advice for plan in plans if (advice := plan.advice())), None),
    )


def _shares(values: Iterable[int]) -> list[float]:
    counts = list(values)
    return [count / (sum(counts) or 1) for count in counts]
