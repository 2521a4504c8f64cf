"""See that the ranks hold the samples of a step between them, each once, before anything is learned.

Trainers have given all ranks the same batches without a word, where a launcher or a data loader had told each rank that
it was alone. Such a gradient is that of a part of the step, and looks like any other.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from dist_sft.config.sections import TrainSection
from dist_sft.core.errors import TrainingError
from dist_sft.data.order import SampleId
from dist_sft.data.pack import StepShare
from dist_sft.train.parts import Training

NAMED = 6
"""Most samples that an error names."""


def compared(shares: Iterable[StepShare], run: Training) -> Iterator[StepShare]:
    """The same shares; the first step with a sample comes once all ranks have compared theirs. Raises TrainingError.

    That costs two small all-reduces per start of the ranks: one integer for each sample of a step, however many ranks
    there are. Lists of samples travel only to say what is wrong.
    """
    seen = 0
    for share in shares:
        seen = seen or _compare(share, run.config.train, run.engine.device)
        yield share


def _compare(share: StepShare, settings: TrainSection, device: torch.device) -> int:
    """Samples of the whole step, as the ranks hold them. A collective: all ranks raise the same error, or none.

    Of ranks that share their packs (sequence_parallel), the first speaks for all.
    """
    mine = _Holding.of(share, speaks=dist.get_rank() % settings.sequence_parallel == 0)
    # of each sample of the step; last: of any other
    holders = torch.zeros(settings.samples_per_step + 1, dtype=torch.int64)
    for sample in mine.samples:
        place = sample.position - share.step * settings.samples_per_step
        holders[place if 0 <= place < settings.samples_per_step else -1] += 1
    extremes = torch.tensor([mine.step, mine.packs, mine.total, -mine.step, -mine.packs, -mine.total])
    holders, extremes = holders.to(device), extremes.to(device)
    dist.all_reduce(holders)
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX)
    count, agreed = int(holders.sum()), not bool((extremes[:3] + extremes[3:]).any())
    if not agreed or int(holders.max()) > 1 or int(holders[-1]) or count != mine.total:
        held: list[_Holding] = [mine] * dist.get_world_size()
        dist.all_gather_object(held, mine)
        raise TrainingError(
            _wrong(held),
            where=f"step {held[0].step + 1}",
            fix="start all ranks with one launcher, which tells each its own rank (train does; if torchrun or mpirun "
            "started them, look at RANK and WORLD_SIZE), and start the run again; nothing has been learned from it",
        )
    return count


@dataclass(frozen=True)
class _Holding:
    """What one rank holds of a step. total: samples that it takes the whole step to have."""

    step: int
    packs: int
    total: int
    samples: tuple[SampleId, ...]

    @classmethod
    def of(cls, share: StepShare, speaks: bool) -> "_Holding":
        samples = tuple(sample for pack in share.packs for sample in pack.samples) if speaks else ()
        return cls(share.step, len(share.packs), share.totals.samples, samples)


def _wrong(held: list[_Holding]) -> str:
    """What is wrong with what the ranks hold, by rank, for a person."""
    first = held[0]
    for rank, other in enumerate(held):
        if (other.step, other.packs, other.total) != (first.step, first.packs, first.total):
            return (
                f"rank 0 computes {first.packs} packs of step {first.step + 1}, which has {first.total} samples, and "
                f"rank {rank} {other.packs} packs of step {other.step + 1}, which has {other.total}"
            )
    holders: dict[SampleId, list[int]] = {}
    for rank, other in enumerate(held):
        for sample in other.samples:
            holders.setdefault(sample, []).append(rank)
    pairs = {sample: (ranks[0], ranks[1]) for sample, ranks in holders.items() if len(ranks) > 1}
    for one, two in pairs.values():
        both = [sample for sample, pair in pairs.items() if pair == (one, two)]
        return f"ranks {one} and {two} both hold {_named(both)}"
    counts = " + ".join(str(len(other.samples)) for other in held[:NAMED]) + (" + ..." if len(held) > NAMED else "")
    return f"the ranks hold {counts} samples of a step of {first.total}: {_named(list(holders))}"


def _named(samples: list[SampleId]) -> str:
    """Samples as source:row at position."""
    names = ", ".join(f"{sample.source}:{sample.row} at position {sample.position}" for sample in samples[:NAMED])
    return f"{names}{f' and {len(samples) - NAMED} more' if len(samples) > NAMED else ''}"
