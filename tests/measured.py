"""What training on real gloo ranks holds in memory, and what its collectives carry.

Resident memory is what the process holds beyond what it held when everything was imported and nothing was loaded. The
allocator is told to give freed memory back (MALLOC_*, read at a process's start), so that the peak is that of what is
in use.
"""

import functools
import gc
import json
import os
from collections import defaultdict
from pathlib import Path

from dist_sft.run.local_ranks import LocalRanks
from tests.ranks import ROOT

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
WARM = 3
"""Steps before measuring: DeepSpeed records the order of modules in the first two."""


def measure_on_ranks(runs, world, monkeypatch, timeout=500):
    """By run and rank: {"peak": bytes, "carried": {collective: {group size: bytes of the last step}}}."""
    for name, value in ALLOCATOR.items():
        monkeypatch.setenv(name, value)
    with LocalRanks(ROOT) as ranks:
        return ranks.run("tests.measured", {"runs": runs}, world, timeout)


def count_collectives(carried):
    """Wrap torch.distributed: carried[name][ranks] grows by the bytes of the whole tensor that a call is about."""
    import torch.distributed as dist

    def counting(name, call, whole):
        @functools.wraps(call)
        def counted(*tensors, **options):
            named = [options[key] for key in ("output_tensor", "output", "input", "tensor") if key in options]
            tensor = [*tensors, *named][whole]
            carried[name][dist.get_world_size(options.get("group"))] += tensor.nbytes
            return call(*tensors, **options)

        return counted

    for name, whole in (("all_reduce", 0), ("all_gather_into_tensor", 0), ("reduce_scatter_tensor", 1)):
        setattr(dist, name, counting(name, getattr(dist, name), whole))


def resident(name="VmRSS"):
    """Bytes that /proc says."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def measure(settings, carried):
    """One run of this rank, to its end."""
    import ctypes

    from dist_sft.run.assembly import assemble
    from dist_sft.run.opened import open_run
    from dist_sft.train.loop import train
    from dist_sft.train.parts import Heartbeat

    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    base, found = resident(), {}
    rank = assemble(open_run(settings), "test")

    class Measuring(Heartbeat):
        def step(self, done):
            if done == WARM:
                gc.collect()
                Path("/proc/self/clear_refs").write_text("5")  # from here on VmHWM is the peak
            if done > WARM:
                found["peak"] = resident("VmHWM") - base
                found["rest"] = resident() - base
                found["carried"] = {name: {str(n): size for n, size in each.items()} for name, each in carried.items()}
            carried.clear()
            return False

    rank.run.heartbeat = Measuring()
    train(rank.run, rank.done, rank.state)
    rank.tracker.close(False)
    return found


def main(spec):
    import torch.distributed as dist

    carried = defaultdict(lambda: defaultdict(int))
    count_collectives(carried)
    import deepspeed  # noqa: F401  # after the collectives are wrapped

    from dist_sft.run import assembly  # noqa: F401  # before memory is measured

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{spec['store']}", rank=rank, world_size=world)
    found = []
    for settings in spec["runs"]:
        every = [None] * world
        dist.all_gather_object(every, measure(settings, carried))
        found.append(every)
        gc.collect()
        dist.barrier()
    if rank == 0:
        Path(spec["out"]).write_text(json.dumps(found))
