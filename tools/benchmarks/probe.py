"""What a training process tells of itself. Standard library only: peers run it in environments of their own.

start -> imported -> [model is loaded] -> begin -> step, step, ... -> write
"""

import json
import os
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def cpu_seconds() -> float:
    """Of this process, its threads, and children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def memory(name: str = "VmRSS") -> int:
    """Bytes of this process: VmRSS now, VmHWM the most since the last reset_peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def reset_peak() -> None:
    """VmHWM starts again from what is resident now (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


@dataclass
class Probe:
    """Figures of one rank.

    empty    bytes before the model was loaded, all libraries imported
    before   bytes before the first step
    peak     most bytes while training
    clock, cpu   time.monotonic() and CPU-seconds at the begin of the first step and at the end of each
    losses   of each step; of a rank's share of it where a system says no more
    more     whatever else shall be known
    """

    out: Path
    empty: int = 0
    before: int = 0
    peak: int = 0
    clock: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    def imported(self) -> None:
        self.empty = memory()

    def begin(self) -> None:
        self.before = memory()
        reset_peak()
        self._mark()

    def step(self, loss: float) -> None:
        self._mark()
        self.losses.append(loss)
        self.peak = memory("VmHWM")

    def write(self) -> None:
        self.out.write_text(json.dumps({key: value for key, value in vars(self).items() if key != "out"}))

    def _mark(self) -> None:
        self.clock.append(time.monotonic())
        self.cpu.append(cpu_seconds())


def of_this_rank(folder: str) -> Probe:
    return Probe(Path(folder) / f"rank{os.environ.get('RANK', '0')}.json")
