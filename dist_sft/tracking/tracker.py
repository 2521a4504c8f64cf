"""The tracker that the loop talks to."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from dist_sft.core.results import EvalResult, StepResult


class Sink(Protocol):
    """Takes one record: {"kind": "step" | "eval" | "note", "step": int, figures ...}."""

    def write(self, record: dict[str, Any]) -> None: ...

    def close(self, failed: bool) -> None: ...


@dataclass
class RankZeroTracker:
    """Hands every result, with derived throughput, to each sink. On other ranks `sinks` is empty.

    world       ranks, for figures per rank
    peak_flops  bf16 FLOP/s of one device, None where it is not known (no MFU then)
    """

    sinks: Sequence[Sink]
    world: int
    peak_flops: float | None

    def step(self, result: StepResult) -> None:
        record = {"kind": "step", **asdict(result)}
        record["tokens_per_second_per_rank"] = result.tokens / result.seconds / self.world
        record["supervised_per_second"] = result.supervised / result.seconds
        if self.peak_flops:
            record["mfu"] = result.flops / result.seconds / (self.world * self.peak_flops)
        self._write(record)

    def evaluation(self, result: EvalResult) -> None:
        self._write({"kind": "eval", **asdict(result)})

    def note(self, step: int, text: str, **more: Any) -> None:
        """Something that is not a figure: the start and the end of an attempt."""
        self._write({"kind": "note", "step": step, "text": text, **more})

    def close(self, failed: bool = False) -> None:
        for sink in self.sinks:
            sink.close(failed)

    def _write(self, record: dict[str, Any]) -> None:
        for sink in self.sinks:
            sink.write(record)
