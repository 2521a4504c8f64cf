"""Ranks that end in every way."""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np


def main(spec):
    """One rank: what rank 1 does is named by spec["how"]; rank 0 waits for its end, or writes what it is."""
    rank = int(os.environ["RANK"])
    if rank == 1 and spec["how"] == "raises":
        raise ValueError("a rank's own words")
    if rank == 1 and spec["how"] == "exits":
        sys.exit(3)
    if rank == 1 and spec["how"] == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if spec["how"] == "hangs":
        time.sleep(1000)
    if rank == 0:
        Path(spec["out"]).write_text(json.dumps(described()))
    np.random.rand()
    print("what a rank says")


def described():
    """What a rank is, and what it has cost."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": used.ru_utime + used.ru_stime,
        "imported": "deepspeed" in sys.modules,
        "environment": dict(os.environ),
        "drawn": np.random.rand(),
        "folder": os.getcwd(),
    }
