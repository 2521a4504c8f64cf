"""What the first steps of a run are made of: lengths only, so that they can be dealt to any number of ranks."""

from dataclasses import dataclass
from statistics import fmean

from dist_sft.config.run_config import RunConfig
from dist_sft.core.errors import DataError
from dist_sft.data.packing import Packer, StepPlan
from dist_sft.estimate.cost import ModelCost
from dist_sft.run.data import RunData


@dataclass(frozen=True)
class Workload:
    """lengths[step][sample], tokens, of the steps that were looked at; supervised[step]: tokens that are learned.

    steps  of the whole run
    rows   that were looked at; those that cannot be learned are among them
    """

    steps: int
    rows: int
    lengths: list[list[int]]
    supervised: list[int]

    @property
    def tokens(self) -> float:
        """Of a step, in the mean."""
        return fmean(map(sum, self.lengths))

    @property
    def learned(self) -> float:
        """Largest share of a step's tokens that is supervised."""
        return max(some / max(sum(lengths), 1) for some, lengths in zip(self.supervised, self.lengths, strict=True))

    def flops(self, cost: ModelCost, head: float) -> float:
        """Forward and backward of a step, in the mean; head: weights of the head, for supervised tokens only."""
        squares = fmean(sum(length**2 for length in lengths) for lengths in self.lengths)
        passes = 3 if cost.trains_weights else 2
        return cost.flops(self.tokens, squares) + 2 * passes * head * fmean(self.supervised)

    def dealt(self, packer: Packer) -> list[StepPlan]:
        """Each step, dealt."""
        return [packer.pack(lengths) for lengths in self.lengths]


def look(config: RunConfig, data: RunData, rows: int) -> Workload:
    """The run's first whole steps, of about so many rows. Raises what encoding raises, DataError for a run of none."""
    feed, size = data.train, config.train.samples_per_step
    count = min(len(feed.steps), max(1, rows // size))
    lengths, supervised, looked = [], [], 0
    for step in range(count):
        ids = feed.steps.samples(step)
        encoded = feed.rows.encode(step, ids)
        looked += len(ids)
        lengths.append([len(sample) for sample in encoded.samples])
        supervised.append(sum(sample.supervised for sample in encoded.samples))
    if not any(lengths):
        raise DataError("no row of the first steps can be learned", where="data.sources", fix="see dist-sft check")
    return Workload(len(feed.steps), looked, lengths, supervised)
