"""The tracker that the loop talks to."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

from dist_sft.core.results import HeldOut, StepResult
from dist_sft.tracking.json_lines import Goodput
from dist_sft.tracking.records import Checkpoint, End, Evaluation, Note, Record, Start, Step, shown


class Sink(Protocol):
    """Takes one record after the other."""

    def write(self, record: Record) -> None: ...

    def close(self, failed: bool) -> None: ...


class DroppedRows(Protocol):
    """What is not learned: see `data.ledger`."""

    counts: Counter[str]
    lost: int


@dataclass
class RankZeroTracker:
    """Hands every result, with derived throughput, to each sink. On other ranks `sinks` is empty.

    world       ranks, for figures per rank
    peak_flops  bf16 FLOP/s of one device, None where it is not known (no MFU then)
    sources     name of each source
    so_far      tokens of each source in the steps before
    ledger      rows that were dropped or cut so far
    goodput     of the run so far
    """

    sinks: Sequence[Sink]
    world: int
    peak_flops: float | None
    sources: Sequence[str]
    so_far: list[int]
    ledger: DroppedRows
    goodput: Goodput

    def step(self, result: StepResult) -> None:
        now, any_dropped = time.time(), bool(self.ledger.counts)
        self.so_far = [before + more for before, more in zip(self.so_far, result.source_tokens, strict=True)]
        self.goodput.useful += result.seconds
        record = Step(
            **_values(result),
            time=now,
            tokens_per_second_per_rank=result.tokens / result.seconds / self.world,
            supervised_per_second=result.supervised / result.seconds,
            goodput=self.goodput.share(now),
            token_shares=self.token_shares if len(self.so_far) > 1 else None,
            dropped=dict(self.ledger.counts) if any_dropped else None,
            lost=self.ledger.lost if any_dropped else None,
            mfu=result.flops / result.seconds / (self.world * self.peak_flops) if self.peak_flops else None,
        )
        self._write(record)

    @property
    def token_shares(self) -> dict[str, float]:
        """Of all tokens of the run so far, by "index name" of the source: two may have one name."""
        total = sum(self.so_far) or 1
        return {f"{i} {name}": t / total for i, (name, t) in enumerate(zip(self.sources, self.so_far, strict=True))}

    def evaluation(self, step: int, held_out: HeldOut) -> None:
        """After `step` updates."""
        self._write(Evaluation(**_values(held_out), time=time.time(), step=step))

    def checkpoint(self, step: int, stall: float, seconds: float) -> None:
        """One of `step` updates is whole, seconds after it was begun; training stalled for the first `stall`."""
        self._write(Checkpoint(time=time.time(), step=step, stall=stall, seconds=seconds))

    def start(self, step: int, attempt: str, steps: int, attention: str) -> None:
        """The ranks go on after `step` of `steps` updates."""
        self._write(
            Start(time=time.time(), step=step, attempt=attempt, steps=steps, world=self.world, attention=attention)
        )

    def end(self, step: int, outcome: Literal["finished", "stopped early"]) -> None:
        """Training has ended, after `step` updates."""
        now, dropped = time.time(), dict(self.ledger.counts)
        self._write(
            End(
                time=now,
                step=step,
                text=outcome,
                ledger=dropped,
                lost=self.ledger.lost,
                token_shares=self.token_shares,
                goodput=self.goodput.share(now),
            )
        )

    def note(self, step: int, text: str) -> None:
        """Something else that a person should know."""
        self._write(Note(time=time.time(), step=step, text=text))

    def close(self, failed: bool = False) -> None:
        for sink in self.sinks:
            sink.close(failed)

    def _write(self, record: Record) -> None:
        record = shown(record)
        for sink in self.sinks:
            sink.write(record)


def _values(result: StepResult | HeldOut) -> dict[str, Any]:
    return {field.name: getattr(result, field.name) for field in fields(result)}
