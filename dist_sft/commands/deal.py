"""The deal of some steps, for a person or a machine to look at."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import DataError
from dist_sft.data.encoding import step_hash
from dist_sft.run.data import RunData


@dataclass(frozen=True)
class DealtStep:
    """One step.

    samples     "source:row" of each, in order of position
    packs       packs[rank][micro_step] holds indices into samples
    tokens      tokens[rank][micro_step]
    supervised  tokens of the whole step with a weight above 0
    weight      sum of the loss weights of the whole step
    dropped     rows that are not learned, with the reason
    advice      what to change where the step is too small for its ranks
    hash        of what the step teaches; independent of world and packing
    """

    step: int
    samples: list[str]
    packs: list[list[list[int]]]
    tokens: list[list[int]]
    supervised: int
    weight: float
    balance: float
    dropped: list[dict[str, str]]
    advice: str | None
    hash: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def deal(config: RunConfig, start: int, count: int, world: int) -> list[DealtStep]:
    """Steps start .. start + count - 1 as `world` ranks would get them. Raises DataError past the end of the run."""
    data = RunData.of(config)
    if start >= len(data.train.steps):
        raise DataError(
            f"there is no step {start}: the run has {len(data.train.steps)}, counted from 0",
            where="--from",
            fix=f"use --from 0 to {len(data.train.steps) - 1}, or raise train.steps or train.epochs",
        )
    packer = data.packer(config, world)
    dealt = []
    for step in range(start, min(start + count, len(data.train.steps))):
        encoded = data.train.rows.encode(step, data.train.steps.samples(step))
        plan = packer.pack([len(sample) for sample in encoded.samples])
        dealt.append(
            DealtStep(
                step=step,
                samples=[f"{sample.source}:{sample.row}" for sample in encoded.ids],
                packs=[[list(pack) for pack in packs] for packs in plan.packs for _ in range(packer.ranks_per_pack)],
                tokens=[list(tokens) for tokens in plan.tokens for _ in range(packer.ranks_per_pack)],
                supervised=sum(sample.supervised for sample in encoded.samples),
                weight=sum(sample.total_weight for sample in encoded.samples),
                balance=plan.balance,
                dropped=[{"where": entry.where, "reason": entry.reason} for entry in encoded.entries],
                advice=plan.advice(),
                hash=step_hash(encoded),
            )
        )
    return dealt


def show(dealt: list[DealtStep], console: Console) -> None:
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
