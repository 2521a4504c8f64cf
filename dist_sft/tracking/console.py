"""What a person reads while a run goes on."""

import time
from collections.abc import Callable
from typing import Any


class Console:
    """One line per `every` steps, and one per evaluation, checkpoint and note."""

    def __init__(self, steps: int, every: int, emit: Callable[[str], None]) -> None:
        self.steps, self.every, self.emit = steps, every, emit

    def write(self, record: dict[str, Any]) -> None:
        if record["kind"] == "step" and record["step"] % self.every and record["step"] != self.steps:
            return
        self.emit(f"{time.strftime('%H:%M:%S')} {describe(record, self.steps)}")

    def close(self, failed: bool) -> None:
        """The console stays open."""


def describe(record: dict[str, Any], steps: int) -> str:
    """A record as one line for a person and for grep."""
    match record["kind"]:
        case "step" if record["loss"] is None:
            return f"step {record['step']}/{steps}  no row of it can be learned: no update"
        case "step":
            line = (
                f"step {record['step']}/{steps}  loss {record['loss']:.4f}  grad {record['grad_norm']:.2f}"
                f"  lr {record['learning_rate']:.1e}  {_short(record['tokens_per_second_per_rank'])} tok/s/rank"
                f"  balance {record['balance']:.2f}  wait {record['waited']:.1f}s"
            )
            return line + (f"  mfu {record['mfu']:.1%}" if "mfu" in record else "")
        case "eval":
            return f"eval step {record['step']}/{steps}  loss {record['loss']:.4f}  {_short(record['tokens'])} tokens"
        case "checkpoint":
            stood, whole = f"{record['stall']:.1f} s", f"{record['seconds']:.1f} s"
            return f"checkpoint of step {record['step']}: training stood still for {stood}, whole after {whole}"
        case _:
            return str(record["text"])


def _short(value: float) -> str:
    return f"{value / 1000:.1f}k" if value >= 1000 else f"{value:.0f}"
