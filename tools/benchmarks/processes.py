"""Systems in processes of their own, so that neither their memory nor their patches mix."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tools.benchmarks.measure import WORK

ROOT = Path(__file__).parents[2]


def run(
    module: str,
    spec: dict[str, Any],
    python: str = sys.executable,
    ranks: int = 1,
    threads: int = 2,
    launched: bool = False,
) -> list[dict[str, Any]]:
    """Run a program on all ranks; what each has written to OUT/rankN.json.

    The program gets the name of a JSON file, with `out` (a folder) and `meeting` (for a process group) in it.
    threads: of all ranks together. launched: tell also a single rank who it is. If a program fails, its last words are
    shown, and the benchmark ends.
    """
    with TemporaryDirectory(dir=WORK) as folder:
        file, log = Path(folder) / "spec.json", Path(folder) / "log"
        file.write_text(json.dumps(spec | {"out": folder, "meeting": f"file://{folder}/meeting"}))
        with log.open("w") as output:
            processes = [
                subprocess.Popen(
                    [python, "-W", "ignore", "-m", module, str(file)],
                    cwd=ROOT,
                    env=os.environ | _common(threads // ranks) | place,
                    stdout=output,
                    stderr=output,
                )
                for place in _places(ranks, launched)
            ]
            codes = [process.wait() for process in processes]
        if any(codes):
            sys.exit(f"{log.read_text()[-5000:]}\n{module} failed: {spec.get('system', '')} {codes}")
        return [json.loads((Path(folder) / f"rank{rank}.json").read_text()) for rank in range(ranks)]


def build_extensions() -> None:
    """Let DeepSpeed compile what it wants to compile, so that no system pays for it."""
    make = "from deepspeed.accelerator import get_accelerator as a; a().create_op_builder('ShareMemCommBuilder').load()"
    command = [sys.executable, "-W", "ignore", "-c", make]
    subprocess.run(command, env=os.environ | _common(1), check=True, capture_output=True)


def _common(threads: int) -> dict[str, str]:
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",  # for ninja
        "TORCH_EXTENSIONS_DIR": str(WORK / "torch_extensions"),
        "OMP_NUM_THREADS": str(max(1, threads)),
        "OMP_WAIT_POLICY": "passive",  # a thread that waits for the other one sleeps: CPU-seconds are work
        "PYTHONPATH": str(ROOT),
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }


def _places(ranks: int, launched: bool) -> Iterator[dict[str, str]]:
    """What a launcher would tell each rank."""
    if ranks == 1 and not launched:
        yield {}
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for rank in range(ranks):
        yield {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "LOCAL_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
