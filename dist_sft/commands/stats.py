"""What the rows of a run are: how many, how long, how much of them is learned, how they mix and how they pack."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import DataError
from dist_sft.run.data import RunData

BARS = " ▁▂▃▄▅▆▇█"
BINS = 24


@dataclass(frozen=True)
class SourceStats:
    """One source, in the steps that were looked at.

    rows        in the source
    seen        samples of the steps that come from it; passes over its rows: epochs
    learned     of these, those that became samples; lengths of all of them in tokens
    supervised  tokens with a weight above 0
    dropped     rows by reason; truncated ones are learned, too
    lost        supervised tokens of dropped and truncated rows, as far as known
    """

    name: str
    rows: int
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

    token_shares  token_shares[step][source], of all tokens up to that step
    advice        what to change where steps are small for their ranks
    """

    steps: int
    of_steps: int
    world: int
    sources: list[SourceStats]
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
        for source, stats in zip(values["sources"], self.sources, strict=True):
            source["lengths"] = {f"p{q}": stats.percentile(q) for q in (0, 25, 50, 75, 95, 99, 100)}
        return values


def stats(config: RunConfig, steps: int | None, world: int, progress: Console) -> Stats:
    """Look at the first steps of a run (None: all). Raises what `RunData.of` and encoding raise."""
    data = RunData.of(config)
    feed, packer = data.train, data.packer(config, world)
    count = min(steps or len(feed.steps), len(feed.steps))
    if count == 0:
        raise DataError("the run has no step", where="train", fix="raise train.steps or train.epochs")
    names = [source.name for source in feed.rows.sources]
    lengths: list[list[int]] = [[] for _ in names]
    seen, supervised, lost = np.zeros(len(names), int), np.zeros(len(names), int), np.zeros(len(names), int)
    dropped: list[Counter[str]] = [Counter() for _ in names]
    plans, shares = [], []
    for step in track(range(count), "encoding", console=progress, transient=True):
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


def show(found: Stats, console: Console) -> None:
    """Tables for a terminal, with a line of bars for the lengths of each source."""
    table = Table(title=f"steps 1 to {found.steps} of {found.of_steps}", title_justify="left", box=None, padding=(0, 1))
    heads = ("", "rows", "epochs", "samples", "share", "tokens", "share", "learned", "median", "longest")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for i, one in enumerate(found.sources):
        console.print(f"{i}  {one.name}", markup=False, highlight=False, soft_wrap=True)
        table.add_row(
            str(i), f"{one.rows:,}", f"{one.epochs:.2f}", f"{one.seen:,}", f"{one.sample_share:.1%}",
            f"{one.tokens:,}", f"{one.token_share:.1%}", f"{one.supervised / (one.tokens or 1):.0%}",
            f"{one.percentile(50):,}", f"{one.percentile(100):,}",
        )  # fmt: skip
    console.print(table)
    edges = length_bins(found)
    console.print(f"lengths, {edges[0]:.0f} to {edges[-1]:.0f} tokens, on a logarithmic scale:")
    for i, one in enumerate(found.sources):
        counts = np.histogram(one.lengths, edges)[0]
        bars = "".join(BARS[int(np.ceil(8 * count / max(counts.max(), 1)))] for count in counts)
        console.print(f"  {i}  {bars}", markup=False, highlight=False)
    mean = {name: float(np.mean(getattr(found, name))) for name in ("fill", "balance", "micro_steps", "padding")}
    console.print(
        f"packs for {found.world} ranks: fill {mean['fill']:.0%}, balance {mean['balance']:.3f} "
        f"(worst {max(found.balance):.3f}), micro-steps {mean['micro_steps']:.1f}, empty packs {sum(found.dummies)}, "
        f"padding {mean['padding']:.0f} tokens per step"
    )
    for one in found.sources:
        if one.dropped:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(one.dropped.items()))
            console.print(
                f"not learned or cut: {reasons}; {one.lost:,} supervised tokens lost  ({one.name})", markup=False
            )
    if found.advice:
        console.print(found.advice, style="yellow", markup=False)


def length_bins(found: Stats) -> NDArray[np.float64]:
    """float64[BINS+1], tokens, evenly spaced in their logarithm."""
    longest = max((max(one.lengths) for one in found.sources if one.lengths), default=2)
    shortest = min((min(one.lengths) for one in found.sources if one.lengths), default=1)
    return np.geomspace(max(shortest, 1), longest + 1, BINS + 1)


def draw(found: Stats, path: Path) -> None:
    """The same as a picture: lengths, the mixture as it comes about, packs. The suffix decides its format."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (lengths, mixture, packs) = pyplot.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    edges, steps = length_bins(found), np.arange(1, found.steps + 1)
    labels = [f"{i} {Path(one.name).name}" for i, one in enumerate(found.sources)]
    for label, one in zip(labels, found.sources, strict=True):
        lengths.hist(one.lengths, edges, histtype="stepfilled", alpha=0.35, label=label)
    lengths.set(xscale="log", xlabel="tokens", ylabel="samples", title="lengths")
    lengths.legend(fontsize=8)
    for label, shares in zip(labels, zip(*found.token_shares, strict=True), strict=True):
        mixture.plot(steps, shares, label=label)
    mixture.set(xlabel="step", ylabel="share of all tokens so far", ylim=(0, 1.02), title="mixture")
    packs.plot(steps, found.balance, label="balance: time over perfect")
    packs.plot(steps, found.fill, label="fill: tokens over room")
    packs.set(xlabel="step", ylim=(0, max(1.1, *found.balance) * 1.02), title=f"packs for {found.world} ranks")
    packs.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
