"""Run `assembly.work` on gloo ranks of this machine, without Ray: several runs after one start-up.

runs ─ a process per rank, which runs them in turn ─> what each ended with
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dist_sft.checkpoint.layout import newest
from dist_sft.core.errors import ClusterError

LOG_SHOWN = 6000
"""Characters of a dead rank's output that are shown."""


def work_on_ranks(runs: list[dict[str, Any]], world: int, timeout: float, rewind: str = "") -> list[str | None]:
    """Run each of the settings (RunConfig as JSON values) in turn on `world` ranks on CPU.

    rewind: a run's folder that is copied, without its newest checkpoint, to where the last run goes on from it.

    Returns, by run, None or the text of the SftError that it ended with. Raises ClusterError where a rank dies or
    hangs.
    """
    ended: list[str | None] = launch("dist_sft.run.local_ranks", {"runs": runs, "rewind": rewind}, world, timeout)
    return ended


def launch(module: str, spec: dict[str, Any], world: int, timeout: float, cwd: Path | None = None) -> Any:
    """Start `python -m MODULE SPEC.json` once for each rank; what rank 0 writes, as JSON, to spec["out"].

    spec["store"] is where the ranks meet: init_method="file://...". cwd: folder that they run in; None: this one's.
    Raises ClusterError where a rank dies or hangs.
    """
    with tempfile.TemporaryDirectory(prefix="dist_sft_ranks_") as name:
        folder = Path(name)
        spec = spec | {"store": str(folder / "store"), "out": str(folder / "out")}
        (folder / "spec.json").write_text(json.dumps(spec))
        logs = [folder / f"rank{rank}.log" for rank in range(world)]
        ranks = [_start(module, folder / "spec.json", rank, world, log, cwd) for rank, log in enumerate(logs)]
        try:
            codes = [process.wait(timeout) for process in ranks]
        except subprocess.TimeoutExpired as error:
            raise ClusterError(f"{world} ranks did not end within {timeout:.0f} s", where="local ranks") from error
        finally:
            for process in ranks:
                process.kill()
        if any(codes):
            said = "\n=====\n".join(log.read_text(errors="replace")[-LOG_SHOWN:] for log in logs)
            raise ClusterError(f"ranks ended with exit codes {codes}:\n{said}", where="local ranks")
        return json.loads((folder / "out").read_text())


def _start(module: str, spec: Path, rank: int, world: int, log: Path, cwd: Path | None) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_SIZE": str(world),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }
    with log.open("wb") as out:
        command = [sys.executable, "-m", module, str(spec)]
        return subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=cwd)


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


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
