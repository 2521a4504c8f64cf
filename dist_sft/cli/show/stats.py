"""Rows, lengths, mixture and packs: as tables, and as a picture."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from dist_sft.chat.fields import told
from dist_sft.commands.stats import Stats
from dist_sft.core.errors import StorageError
from dist_sft.core.terminal import Terminal

BARS = " ▁▂▃▄▅▆▇█"
BINS = 24
MAKER = "dist-sft data stats"
"""What a picture says of where it is from: such a one may be drawn anew."""
_KEY_OF_MAKER = {".png": "Software"}


def show(found: Stats, console: Terminal) -> None:
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
        if one.held_out:
            share = f"{one.held_out / one.rows:.1%}"
            console.print(f"held out by eval.share: {one.held_out:,} rows, {share}  ({one.name})", markup=False)
        if one.dropped:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(one.dropped.items()))
            console.print(
                f"not learned or cut: {reasons}; {one.lost:,} supervised tokens lost  ({one.name})", markup=False
            )
    keys, question = told(found.told.unread)
    if keys:
        console.print(f"keys not read: {keys}", markup=False, highlight=False, soft_wrap=True)
    for line in (*found.told.of_texts(), question, found.advice):
        if line:
            console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


def length_bins(found: Stats) -> NDArray[np.float64]:
    """float64[BINS+1], tokens, evenly spaced in their logarithm."""
    longest = max((max(one.lengths) for one in found.sources if one.lengths), default=2)
    shortest = min((min(one.lengths) for one in found.sources if one.lengths), default=1)
    return np.geomspace(max(shortest, 1), longest + 1, BINS + 1)


def refuse_other_picture(path: Path) -> None:
    """Raise StorageError where a file stands that `draw` has not drawn: it would be overwritten."""
    if path.exists() and (not path.is_file() or MAKER.encode() not in path.read_bytes()):
        raise StorageError(
            "it is there already, and no picture of this command", where=str(path), fix="give a new file"
        )


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
    refuse_other_picture(path)
    figure.savefig(path, dpi=120, metadata={_KEY_OF_MAKER.get(path.suffix.lower(), "Creator"): MAKER})
    pyplot.close(figure)
