"""The deal of some steps, for a person or a machine to look at."""

from dataclasses import asdict, dataclass
from typing import Any

from dist_sft.core.errors import DataError
from dist_sft.data.encoding import step_hash
from dist_sft.run.data import RunData
from dist_sft.run.opened import OpenedRun


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


def deal(run: OpenedRun, start: int, count: int, world: int) -> list[DealtStep]:
    """Steps start .. start + count - 1 as `world` ranks would get them. Raises DataError past the end of the run."""
    data = RunData.of(run)
    if start >= len(data.train.steps):
        raise DataError(
            f"there is no step {start}: the run has {len(data.train.steps)}, counted from 0",
            where="--from",
            fix=f"use --from 0 to {len(data.train.steps) - 1}, or raise train.steps or train.epochs",
        )
    packer = data.packer(world)
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
