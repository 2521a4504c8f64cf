"""What benchmarks have in common: CPU time, the machine, the command line."""

import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORK = Path.home() / ".cache" / "dist_sft_bench"
"""Where made data is kept."""


@dataclass(frozen=True)
class Took:
    """Seconds of a call: on the clock, and of all CPUs (this process, its threads, and children that have ended)."""

    wall: float
    cpu: float


def took(call: Callable[[], Any]) -> tuple[Took, Any]:
    cpu, wall = _cpu(), time.monotonic()
    result = call()
    return Took(time.monotonic() - wall, _cpu() - cpu), result


def _cpu() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def heading() -> None:
    """Date, machine and command line, as RESULTS.md keeps them."""
    model = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), "?")
    module = sys.modules["__main__"].__spec__
    name = module.name.rpartition(".")[2] if module else Path(sys.argv[0]).stem
    print(f"{time.strftime('%Y-%m-%d')}  {os.cpu_count()} CPUs, {model}, Python {platform.python_version()}")
    print("$ " + " ".join(["tools/bench", name, *sys.argv[1:]]), flush=True)


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
