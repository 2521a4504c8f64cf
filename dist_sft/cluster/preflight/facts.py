"""What one node says of itself. Runs in a Ray task that is pinned to it, and without Ray in tests."""

import contextlib
import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from dist_sft.checkpoint.layout import QUARANTINED

PACKAGES = ("torch", "deepspeed", "ray", "transformers", "dist-sft")
"""Versions that must agree: ranks exchange what these packages make."""
SHM = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """name: how a person calls it, host name and address; node: how Ray does.

    storage   free bytes where run.dir is, or will be; None: it cannot be looked at, and `storage_error` says why
    held      bytes of checkpoints that lie there already: new ones will take their place
    shm       bytes of shared memory: NCCL, data loaders and Ray's object store live there
    gpus      names of the GPUs that the driver sees
    files     open files that a process may have
    clock     seconds that it is ahead of the clock of who asks
    """

    node: str
    name: str
    address: str
    versions: dict[str, str]
    storage: int | None
    storage_error: str
    held: int
    shm: int
    gpus: tuple[str, ...]
    files: int
    clock: float = 0.0


def look(node: str, address: str, run_dir: str) -> NodeFacts:
    """Of the node that this process runs on."""
    storage, error = _free(Path(run_dir))
    return NodeFacts(
        node=node,
        name=f"{socket.gethostname()} ({address})",
        address=address,
        versions=versions(),
        storage=storage,
        storage_error=error,
        held=_held(Path(run_dir) / "checkpoints"),
        shm=shutil.disk_usage(SHM).total if SHM.exists() else 0,
        gpus=_gpus(),
        files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    )


def clock() -> float:
    """Seconds since 1970, by this node."""
    return time.time()


def _free(folder: Path) -> tuple[int | None, str]:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        return shutil.disk_usage(there).free, ""
    except OSError as error:
        return None, str(error)


def _held(checkpoints: Path) -> int:
    """Bytes that a run frees as it goes on; checkpoints that were put aside stay."""
    held = 0
    for folder in checkpoints.glob("step_*"):
        for path in folder.rglob("*") if folder.suffix != QUARANTINED else ():
            with contextlib.suppress(OSError):  # removed meanwhile
                held += path.stat().st_size
    return held


def versions() -> dict[str, str]:
    """Of this process."""
    found = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    nccl = _nccl()
    return found | ({"nccl": nccl} if nccl else {})


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _nccl() -> str:
    """Of the wheel that torch brings; importing torch would take seconds. NCCL_VERSION is what CUDA images set."""
    for package in ("nvidia-nccl-cu13", "nvidia-nccl-cu12"):
        if (found := _version(package)) != "not installed":
            return found
    return os.environ.get("NCCL_VERSION", "")


def _gpus() -> tuple[str, ...]:
    """Ray hides GPUs from a task that reserves none, but not from the driver's own tool."""
    try:
        said = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=30,
            check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in said.stdout.splitlines() if line.strip())
