"""Ranks on this machine, on CPU and gloo, without Ray.

LocalRanks ─ a job ─> rank_server ─ fork ─> a process per rank ─> exit codes, and what rank 0 wrote
"""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

from dist_sft.checkpoint.layout import newest
from dist_sft.core.errors import ClusterError, Lines

LOG_SHOWN = 6000
"""Characters of a dead process's output that are shown."""
ON_CPU = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


class LocalRanks:
    """One world of ranks after another, forked from a process that has imported what they need.

    cwd: folder that they run in; None: this one's. Environment: this process's as it is when a world starts.
    """

    def __init__(self, cwd: Path | None = None) -> None:
        self._ranks: list[int] = []
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
        self._pipe, jobs = multiprocessing.Pipe()
        with jobs:
            self.server = subprocess.Popen(
                [sys.executable, "-m", "dist_sft.run.rank_server", str(jobs.fileno())],
                pass_fds=[jobs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                env=os.environ | ON_CPU,
                cwd=cwd,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all of its processes."""
        self._pipe.close()
        self.server.wait()
        self._said.close()

    def run(self, module: str, spec: dict[str, Any], world: int, timeout: float) -> Any:
        """Call MODULE.main(spec) in each rank; what rank 0 writes, as JSON, to spec["out"].

        spec["store"] is where the ranks meet: init_method="file://...".
        Raises ClusterError where a rank dies or hangs.
        """
        with tempfile.TemporaryDirectory(prefix="dist_sft_ranks_") as name:
            folder = Path(name)
            self.start(module, spec | {"store": str(folder / "store"), "out": str(folder / "out")}, world, folder)
            codes = self.wait(timeout)
            if any(codes):
                logs = (folder / f"rank{rank}.log" for rank in range(world))
                said = "\n=====\n".join(log.read_text(errors="replace")[-LOG_SHOWN:] for log in logs)
                raise ClusterError(Lines(f"ranks ended with exit codes {codes}:\n{said}"), where="local ranks")
            return json.loads((folder / "out").read_text())

    def start(self, module: str, spec: dict[str, Any], world: int, logs: Path) -> list[int]:
        """Process ids of the ranks, which call MODULE.main(spec). logs: folder for their output."""
        environment = os.environ | ON_CPU | {"WORLD_SIZE": str(world), "LOCAL_SIZE": str(world)}
        job = {"module": module, "spec": spec, "world": world, "logs": str(logs), "environment": environment}
        with contextlib.suppress(BrokenPipeError):  # _answer says why
            self._pipe.send_bytes(json.dumps(job).encode())
        self._ranks = self._answer()
        return self._ranks

    def wait(self, timeout: float) -> list[int]:
        """Exit codes, by rank, when all have ended; -9: by signal 9. Raises ClusterError where one hangs."""
        world, ended = len(self._ranks), False
        try:
            ended = self._pipe.poll(timeout)
        finally:
            if not ended:
                self.kill()
            codes, self._ranks = self._answer(), []
        if not ended:
            raise ClusterError(f"{world} ranks did not end within {timeout:.0f} s", where="local ranks")
        return codes

    def kill(self) -> None:
        """Kill the ranks that live; wait() then says so."""
        for pid in self._ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _answer(self) -> list[int]:
        try:
            numbers: list[int] = json.loads(self._pipe.recv_bytes())
        except (EOFError, ConnectionResetError) as error:
            self.kill()
            code = self.server.wait()
            self._said.seek(0)
            said = self._said.read().decode(errors="replace")[-LOG_SHOWN:]
            what = Lines(f"their server ended with exit code {code}:\n{said}")
            raise ClusterError(what, where="local ranks") from error
        return numbers


def work_on_ranks(
    ranks: LocalRanks, runs: list[dict[str, Any]], world: int, timeout: float, rewind: str = ""
) -> list[str | None]:
    """Run each of the settings (RunConfig as JSON values) in turn on `world` ranks.

    rewind: a run's folder that is copied, without its newest checkpoint, to where the last run goes on from it.

    Returns, by run, None or the text of the SftError that it ended with. Raises ClusterError where a rank dies or
    hangs.
    """
    ended: list[str | None] = ranks.run("dist_sft.run.local_ranks", {"runs": runs, "rewind": rewind}, world, timeout)
    return ended


def main(spec: dict[str, Any]) -> None:
    """One rank. Each run has process groups of its own, for DeepSpeed makes some of them only once (hpZ)."""
    import deepspeed.comm
    import torch.distributed as dist

    from dist_sft.core.errors import SftError
    from dist_sft.run.assembly import work

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    errors: list[str | None] = []
    for number, settings in enumerate(spec["runs"]):
        if spec["rewind"] and settings is spec["runs"][-1]:
            if any(errors):  # there is nothing to go on from
                errors.append(next(filter(None, errors)))
                break
            if rank == 0:
                _rewind(Path(spec["rewind"]), Path(settings["run"]["dir"]))
        dist.init_process_group("gloo", init_method=f"file://{spec['store']}{number}", rank=rank, world_size=world)
        dist.barrier()
        try:
            work(settings, "rehearsal")
            errors.append(None)
        except SftError as error:
            errors.append(f"{type(error).__name__}: {error}")
        dist.barrier()
        deepspeed.comm.destroy_process_group()
    if rank == 0:
        Path(spec["out"]).write_text(json.dumps(errors))


def _rewind(run: Path, to: Path) -> None:
    """A run folder as it stood before its newest checkpoint."""
    shutil.copytree(run, to)
    shutil.rmtree(newest(to))
