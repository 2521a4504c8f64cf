"""The tracker that the loop talks to."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from dist_sft.core.results import EvalResult, StepResult
from dist_sft.tracking.json_lines import Goodput


class Sink(Protocol):
    """Takes one record: {"kind": "step" | "eval" | "checkpoint" | "note", "step": int, figures ...}."""

    def write(self, record: dict[str, Any]) -> None: ...

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
        record = {"kind": "step", **asdict(result)}
        record["tokens_per_second_per_rank"] = result.tokens / result.seconds / self.world
        record["supervised_per_second"] = result.supervised / result.seconds
        self.so_far = [before + now for before, now in zip(self.so_far, result.source_tokens, strict=True)]
        self.goodput.useful += result.seconds
        record["goodput"] = self.goodput.share(time.time())
        if len(self.so_far) > 1:
            record["token_shares"] = self.token_shares
        if self.ledger.counts:
            record |= {"dropped": dict(self.ledger.counts), "lost": self.ledger.lost}
        if self.peak_flops:
            record["mfu"] = result.flops / result.seconds / (self.world * self.peak_flops)
        self._write(record)

    @property
    def token_shares(self) -> dict[str, float]:
        """Of all tokens of the run so far, by "index name" of the source: two may have one name."""
        total = sum(self.so_far) or 1
        return {f"{i} {name}": t / total for i, (name, t) in enumerate(zip(self.sources, self.so_far, strict=True))}

    def evaluation(self, result: EvalResult) -> None:
        self._write({"kind": "eval", **asdict(result)})

    def checkpoint(self, step: int, stall: float, seconds: float) -> None:
        """One of `step` updates is whole, seconds after it was begun; training stood still for the first `stall`."""
        self._write({"kind": "checkpoint", "step": step, "stall": stall, "seconds": seconds})

    def note(self, step: int, text: str, **more: Any) -> None:
        """Something that is not a figure: the start and the end of an attempt."""
        self._write({"kind": "note", "step": step, "text": text, **more})

    def close(self, failed: bool = False) -> None:
        for sink in self.sinks:
            sink.close(failed)

    def _write(self, record: dict[str, Any]) -> None:
        for sink in self.sinks:
            sink.write(record)
