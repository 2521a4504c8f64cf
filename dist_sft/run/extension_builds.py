"""DeepSpeed compiles extensions at first use, and leaves a lock behind when it is killed while it does.

Every later start then waits for that lock for ever, without a word. torch holds the file open while it builds
(torch.utils.file_baton), so a lock that no process has open is stale.
"""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from dist_sft.core.errors import ClusterError

FRESH = 300.0
"""Seconds for which a lock that nobody here holds may belong to a build on another node with the same home."""


def wait_for_builds(fresh: float = FRESH, say: Callable[[str], None] = lambda text: None) -> None:
    """Return when no lock is left that might be stale. Raises ClusterError for one that nobody will ever remove.

    fresh: seconds; 0 where all ranks are on this node, whose processes are known.
    """
    told = False
    while locks := [lock for lock in _locks() if not _is_held(lock)]:
        lock = locks[0]
        try:
            age = time.time() - lock.stat().st_mtime
        except FileNotFoundError:
            continue
        if age > fresh:
            raise ClusterError(
                "a killed build of a DeepSpeed extension has left its lock, and every start would wait for it",
                where=str(lock),
                fix=f"rm {lock}",
            )
        if not told:
            say(f"waiting for the build that holds {lock}; if none runs, remove it")
            told = True
        time.sleep(1)


def extensions_folder() -> Path:
    """Where torch builds extensions."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")


def _locks() -> list[Path]:
    """As the kernel names them: a cache folder is often a link to a larger disk."""
    return sorted(path.resolve() for path in extensions_folder().rglob("lock"))


def _is_held(lock: Path) -> bool:
    """Whether a process of this node has the file open (Linux; processes of other users may be hidden)."""
    return any(str(lock) in _open_files(process) for process in Path("/proc").glob("[0-9]*"))


def _open_files(process: Path) -> set[str]:
    """What a process has open; nothing if it is gone, or is not ours to look at: then it does not hold our lock."""
    files = set()
    with contextlib.suppress(OSError):
        for link in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                files.add(str(link.readlink()))
    return files
