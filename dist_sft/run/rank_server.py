"""The process that ranks on this machine are forked from: it has imported what a rank needs, and started no thread.

python -m dist_sft.run.rank_server FD     (see local_ranks)

    job of a world ─> a forked process per rank: MODULE.main(spec) ─> process ids, then exit codes

A rank starts in milliseconds in place of the seconds that torch, DeepSpeed and transformers take to import. It shares
with the other ranks what a process draws once, the seed of str hashes among it: training on a cluster does not.
"""

import contextlib
import gc
import importlib
import json
import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

IMPORTED = (
    "deepspeed",
    "torch.utils.cpp_extension",  # which loads DeepSpeed's extensions
    "peft",
    "transformers.models.llama.modeling_llama",
    "dist_sft.run.assembly",
)
INTERVAL = 0.02
"""Seconds between two looks whether ranks have ended."""


def main(jobs: Connection) -> None:
    """Answer each job with the process ids of its ranks and, when all have ended, with their exit codes.

    Ranks are killed when whoever asked for them is gone. Ctrl-C is theirs to hear, not this process's.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for module in IMPORTED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # else the ranks would collect garbage among all that was imported, and so copy it
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            job = json.loads(jobs.recv_bytes())
            ranks = [_fork(job, rank, jobs) for rank in range(job["world"])]
            jobs.send_bytes(json.dumps(ranks).encode())
            while any(map(_lives, ranks)):
                if jobs.poll(INTERVAL):  # nothing is sent while ranks live: this is the end
                    for pid in ranks:
                        os.kill(pid, signal.SIGKILL)
                    break
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]
            jobs.send_bytes(json.dumps(codes).encode())


def _lives(pid: int) -> bool:
    """Of a process that has ended, the id stays taken: the others may still be killed by theirs."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None


def _fork(job: dict[str, Any], rank: int, jobs: Connection) -> int:
    """The process id of a new rank."""
    pid = os.fork()
    if not pid:
        jobs.close()
        _run(job, rank)
    return pid


def _run(job: dict[str, Any], rank: int) -> NoReturn:
    """All that a forked process does."""
    with Path(job["logs"], f"rank{rank}.log").open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(job["environment"] | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
    np.random.seed()  # else all ranks would draw alike, as separate processes do not
    code = 1
    try:
        importlib.import_module(job["module"]).main(job["spec"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001  # as the interpreter does
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
