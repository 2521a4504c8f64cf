"""The packs of each step, a line per rank."""

from rich.table import Table

from dist_sft.commands.deal import DealtStep
from dist_sft.core.terminal import Terminal


def show(dealt: list[DealtStep], console: Terminal) -> None:
    """A table for each step: a line per rank, a column per micro-step."""
    for step in dealt:
        table = Table(title=f"step {step.step}: {len(step.samples)} samples", title_justify="left")
        table.add_column("rank", justify="right")
        for micro_step in range(len(step.packs[0])):
            table.add_column(f"micro-step {micro_step}: tokens, samples")
        for rank, (packs, tokens) in enumerate(zip(step.packs, step.tokens, strict=True)):
            cells = [
                f"{total:6d}  " + " ".join(step.samples[i] for i in pack) if pack else "     -"
                for pack, total in zip(packs, tokens, strict=True)
            ]
            table.add_row(str(rank), *cells)
        console.print(table)
        console.print(
            f"supervised tokens {step.supervised}  weight {step.weight:g}  balance {step.balance:.2f}  "
            f"dropped {len(step.dropped)}  hash {step.hash[:16]}"
        )
        if step.advice:
            console.print(step.advice, style="yellow", markup=False, highlight=False)
        for row in step.dropped:
            console.print(f"  {row['reason']}: {row['where']}", markup=False)
