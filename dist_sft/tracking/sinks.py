"""One tracker in front of many: JSON lines, the console."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from dist_sft.core.files import atomic, writing


class Sink(Protocol):
    """Takes one record: {"kind": "step" | "eval" | "note", "step": int, figures ...}."""

    def write(self, record: dict[str, Any]) -> None: ...

    def close(self, failed: bool) -> None: ...


class JsonLines:
    """metrics.jsonl: one record per line, in the order of steps.

    A run that resumes at `step` first forgets what it will do again, so that every step stands there once.
    """

    def __init__(self, path: Path, step: int) -> None:
        kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= step] if step else []
        with writing(path), atomic(path) as file:
            file.writelines(kept)
        self.path, self._file = path, path.open("ab", buffering=0)

    def write(self, record: dict[str, Any]) -> None:
        with writing(self.path):
            self._file.write(json.dumps({"time": round(time.time(), 3), **record}).encode() + b"\n")

    def close(self, failed: bool) -> None:
        self._file.close()


def _whole_lines(path: Path) -> list[bytes]:
    return (
        [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")] if path.exists() else []
    )


class Console:
    """One line per `every` steps, and one per evaluation."""

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
        case _:
            return str(record["text"])


def _short(value: float) -> str:
    return f"{value / 1000:.1f}k" if value >= 1000 else f"{value:.0f}"
