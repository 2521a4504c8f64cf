"""A rank's signs of life, and the cluster's wish for a checkpoint at once.

beat ─> none for too long? stacks to a file, and the process ends: Ray starts all again
step ─> a beat; and is a node about to be taken away? all ranks learn it at the same step
"""

import faulthandler
import math
import os
import threading
import time
from pathlib import Path

from dist_sft.train.parts import Heartbeat

LEFT = 10.0
"""Seconds that a stuck rank leaves the others to write their stacks before it ends."""
STUCK = 87
"""Exit code of a rank that was stuck."""


class Watchdog(Heartbeat):
    """Ends a process that was heard of, and then not again for `limit` seconds; tells in `stacks` what it was doing.

    Nobody watches before the first beat (a start takes what it takes: there it is Ray that watches, and the time-out of
    each collective), nor from a rest to the next beat.
    """

    def __init__(self, limit: float, stacks: Path, rank: int) -> None:
        self.limit, self.stacks, self.rank = limit, stacks, rank
        self._due = math.inf
        self._answered: set[str] = set()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self) -> None:
        self._due = time.monotonic() + self.limit

    def rest(self) -> None:
        self._due = math.inf

    def step(self, done: int) -> bool:
        """True once for each node that has been given notice, on all ranks at the same step."""
        from ray.train import get_preemption_info

        self.beat()
        notice = get_preemption_info()
        new = set(notice.preempted_node_ids if notice else ()) - self._answered
        self._answered |= new
        return bool(new)

    def _watch(self) -> None:
        while time.monotonic() < self._due:
            time.sleep(min(1.0, self.limit / 10))
        self.stacks.mkdir(parents=True, exist_ok=True)
        name = f"rank{self.rank:05d}-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.txt"
        with (self.stacks / name).open("x") as file:
            file.write(f"rank {self.rank} on {os.uname().nodename}: no step for {self.limit:g} s\n")
            file.flush()
            faulthandler.dump_traceback(file)
        time.sleep(LEFT)
        os._exit(STUCK)
