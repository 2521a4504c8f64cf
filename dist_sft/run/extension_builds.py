"""DeepSpeed compiles extensions at first use. torch guards a build with a file, which a killed build leaves behind.

Every later start would wait for that file for ever, without a word. Here, a build also holds a lock of the kernel,
which ends with its process. Whoever has that lock and finds torch's file looks for its owner: a build of another
program is waited for, the file of a dead one is removed. What training never calls is not built.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

FRESH = 300.0
"""Seconds for which a file that no process of this node has open may belong to a build on another node."""
LOCAL = {"btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"}
"""File systems that no other node sees."""


def guard_builds(say: Callable[[str], None] = lambda text: None) -> None:
    """Builds that this process asks for wait for a living build of the same extension, and for nothing else.

    say: told what a build waits for, where that is not another build of ours.
    """

    class Baton(_Baton):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.say = say

    cpp_extension.FileBaton = Baton  # type: ignore[misc]


def skip_unused_builds() -> None:
    """On CPU, DeepSpeed compiles an all-reduce for tensor-parallel inference whenever ranks are joined: minutes.

    `deepspeed.comm.torch.TorchBackend` calls it in `inference_all_reduce` only, and does without where it is missing.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class _Baton(FileBaton):
    """torch's lock of one build: acquired, also in the place of a dead owner, or not needed any more."""

    say: Callable[[str], None]

    def try_acquire(self) -> bool:
        """False when another has built while this process waited: then `wait` returns at once."""
        file = Path(self.lock_file_path)
        self.kernel = os.open(file.with_name("lock.kernel"), os.O_CREAT | os.O_RDWR, 0o666)
        with contextlib.suppress(PermissionError):  # another user's, who has let all write to it
            os.fchmod(self.kernel, 0o666)
        if _lock(self.kernel) and not file.exists():
            os.close(self.kernel)
            return False
        told = False
        while not super().try_acquire():
            if _is_stale(file):
                file.unlink(missing_ok=True)
                continue
            if not told:
                self.say(f"waiting for the build that holds {file}; if none runs, remove it")
                told = True
            time.sleep(self.wait_seconds)
        return True

    def release(self) -> None:
        try:
            super().release()
            os.utime(self.kernel)
        finally:
            os.close(self.kernel)


def _lock(file: int) -> bool:
    """Take the kernel's lock; whether another has ended its build in good order meanwhile.

    A file system without such locks leaves torch's file as the only guard.
    """
    before = os.fstat(file).st_mtime_ns
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        return False
    return os.fstat(file).st_mtime_ns != before


def _is_stale(lock: Path) -> bool:
    """Whether the owner is dead. Looks twice: torch closes its file a moment before it removes it."""
    try:
        first = lock.stat()
        if _is_held(lock) or not (_is_local(first.st_dev) or time.time() - _last_change(lock.parent) > FRESH):
            return False
        time.sleep(0.1)
        return lock.stat().st_ino == first.st_ino and not _is_held(lock)
    except FileNotFoundError:
        return False


def _last_change(folder: Path) -> float:
    """When a build last wrote something, in seconds since 1970: it writes objects as it goes on."""
    return max(path.stat().st_mtime for path in folder.iterdir() if path.name != "lock.kernel")


def _is_local(device: int) -> bool:
    """Whether a device holds a file system of this node alone."""
    name = f"{os.major(device)}:{os.minor(device)}"
    mounts = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return any(mount[2] == name and mount[mount.index("-") + 1] in LOCAL for mount in mounts)


def _is_held(lock: Path) -> bool:
    """Whether a process of this node builds: it has the file open, or is a compiler run that outlived its builder.

    Processes of other users may be hidden.
    """
    lock = lock.resolve()  # as the kernel names it: a cache folder is often a link to a larger disk
    return any(
        str(lock) in _open_files(process) or _compiles_in(process) == str(lock.parent)
        for process in Path("/proc").glob("[0-9]*")
    )


def _open_files(process: Path) -> set[str]:
    """What a process has open; nothing if it is gone, or is not ours to look at: then it does not hold our lock."""
    files = set()
    with contextlib.suppress(OSError):
        for link in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                files.add(str(link.readlink()))
    return files


def _compiles_in(process: Path) -> str | None:
    """The folder that a ninja works in, which ends after the compilers that it started."""
    with contextlib.suppress(OSError):
        if (process / "comm").read_text().strip() == "ninja":
            return str((process / "cwd").readlink())
    return None
