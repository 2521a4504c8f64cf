"""One rank of dist-sft for train_throughput: the real assembly and the real loop, with a sink that keeps time.

python -m tools.benchmarks.train_ours SPEC.json     (with RANK and WORLD_SIZE)
"""

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tools.benchmarks.probe import Probe, of_this_rank

RATE = 1e-4


@dataclass
class ProbeSink:
    """Takes the records of the tracker, which the loop writes at the end of each step."""

    probe: Probe

    def write(self, record: dict[str, Any]) -> None:
        if record["kind"] == "step":
            self.probe.step(record["loss"])
            self.probe.more |= {key: record[key] for key in ("fill", "micro_steps", "tokens", "supervised", "dummies")}

    def close(self, failed: bool) -> None: ...


class NoCheckpoints:
    """The loop saves at its last step; the peers do not."""

    def save(self, engine: Any, step: int, state: dict[str, Any], held_out: float | None = None) -> None: ...

    def finish(self) -> None: ...


def main(spec: dict[str, Any]) -> None:
    probe = of_this_rank(spec["out"])
    import torch.distributed as dist

    from dist_sft.run.assembly import assemble
    from dist_sft.run.opened import open_run
    from dist_sft.train.loop import train

    world = int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=spec["meeting"], rank=int(os.environ["RANK"]), world_size=world)
    probe.imported()
    rank = assemble(open_run(settings(spec, world)), "bench")
    rank.tracker.sinks = [*rank.tracker.sinks, ProbeSink(probe)]
    probe.begin()
    train(replace(rank.run, checkpoints=NoCheckpoints()), rank.done, rank.state)
    probe.write()
    dist.destroy_process_group()


def settings(spec: dict[str, Any], world: int) -> dict[str, Any]:
    """The run file. Its order is that of the file, so a step has the chats that the others get."""
    stage = 3 if world > 1 else 1 if spec["dtype"] == "bfloat16" else 0  # bf16 at stage 0 is refused
    base: dict[str, Any] = {
        "run": {"dir": f"{spec['out']}/run"},
        "model": {"path": spec["model"], "dtype": spec["dtype"]},
        "data": {
            "sources": [{"path": spec["chats"], "format": "messages"}],
            "order": {"kind": "sequential"},
            "context_length": spec["pack"],
            "overlong": "error",
            "cache": f"{spec['out']}/cache",
        },
        "train": {
            "samples_per_step": spec["samples"],
            "tokens_per_pack": spec["pack"],
            "steps": spec["steps"],
            "learning_rate": RATE,
            "schedule": "constant",
            "warmup": 0,
        },
        "cluster": {"workers": world, "gpus_per_worker": 0},
        "deepspeed": {"zero_optimization": {"stage": stage}, "data_types": {"grad_accum_dtype": "fp32"}},
    }
    for name, value in spec["settings"].items():
        section, key = name.split(".")
        base[section][key] = value
    return base


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
