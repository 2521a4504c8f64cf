"""A rank's signs of life, and the cluster's wish for a checkpoint at once.

step done ─> Heartbeat ─> Watchdog: no step for too long? stacks to a file, and the process ends: Ray starts all again
                       └> Ray: is a node about to be taken away? all ranks learn it at the same step
"""

import faulthandler
import os
import threading
import time
from pathlib import Path

LEFT = 10.0
"""Seconds that a stuck rank leaves the others to write their stacks before it ends."""
STUCK = 87
"""Exit code of a rank that was stuck."""


class Heartbeat:
    """Called by the loop after each step, on every rank of a run under Ray Train."""

    def __init__(self, watchdog: "Watchdog") -> None:
        self.watchdog = watchdog
        self._answered: set[str] = set()

    def __call__(self, done: int) -> bool:
        """A step is done. True once for each node that has been given notice, on all ranks at the same step."""
        from ray.train import get_preemption_info

        self.watchdog.beat()
        notice = get_preemption_info()
        new = set(notice.preempted_node_ids if notice else ()) - self._answered
        self._answered |= new
        return bool(new)


class Watchdog:
    """Ends a process that was heard of, and then not again for `limit` seconds; tells in `stacks` what it was doing.

    Until the first beat it is Ray that watches: a start may take long.
    """

    def __init__(self, limit: float, stacks: Path, rank: int) -> None:
        self.limit, self.stacks, self.rank = limit, stacks, rank
        self._last: float | None = None
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self) -> None:
        self._last = time.monotonic()

    def _watch(self) -> None:
        while self._last is None or time.monotonic() - self._last < self.limit:
            time.sleep(min(1.0, self.limit / 10))
        self.stacks.mkdir(parents=True, exist_ok=True)
        with (self.stacks / f"rank{self.rank:05d}-{time.strftime('%Y%m%dT%H%M%S')}.txt").open("w") as file:
            file.write(f"rank {self.rank} on {os.uname().nodename}: no step for {self.limit:g} s\n")
            file.flush()
            faulthandler.dump_traceback(file)
        time.sleep(LEFT)
        os._exit(STUCK)
