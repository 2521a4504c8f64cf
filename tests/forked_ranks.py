"""Ranks that start in a second: forked from a process that has imported all that they need.

python -m tests.forked_ranks     reads one JSON object a line: {"settings", "world", "store"}, answers with the ranks'
process ids, and once they have ended, with their exit codes
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


class ForkedRanks:
    """The process that forks. start: begins a run on some ranks, returns their process ids; wait: their exit codes."""

    def __init__(self, log):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked_ranks"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            env=os.environ | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def start(self, settings, world, store):
        self.process.stdin.write(json.dumps({"settings": settings, "world": world, "store": str(store)}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def wait(self):
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(30)


def kill(pids):
    """Those that live: one may have come to its end."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def rank(spec, number):
    """What a forked process does."""
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(spec["world"])}
    os.environ["LOCAL_SIZE"] = str(spec["world"])
    import torch.distributed as dist

    from dist_sft.run.assembly import work

    dist.init_process_group("gloo", init_method=f"file://{spec['store']}", rank=number, world_size=spec["world"])
    work(spec["settings"], attempt=Path(spec["store"]).name)
    dist.destroy_process_group()


def main():
    import deepspeed
    import transformers.models.llama.modeling_llama

    import dist_sft.run.assembly

    assert deepspeed and transformers and dist_sft  # imported for the ranks
    answers = os.dup(1)  # what the ranks print goes to the log
    os.dup2(2, 1)
    with os.fdopen(answers, "w", buffering=1) as out:
        for line in sys.stdin:
            spec, pids = json.loads(line), []
            for number in range(spec["world"]):
                if not (pid := os.fork()):
                    code = 1
                    try:
                        rank(spec, number)
                        code = 0
                    finally:
                        sys.stderr.flush()
                        os._exit(code)
                pids.append(pid)
            out.write(json.dumps(pids) + "\n")
            out.write(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]) + "\n")


if __name__ == "__main__":
    main()
