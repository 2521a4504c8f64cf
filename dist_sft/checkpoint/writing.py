"""One checkpoint on its way to the disk, while training goes on.

every rank: shard, fsync ─> its record ─┐
rank 0:                     waits for all records ─> sizes are right ─> nobody has taken over ─> manifest ─> retention

What fails in the retention is tried again after the next save: the new checkpoint is whole all the same.

Ranks tell rank 0 by files beside their shards, for the process group is busy with training. Such a file may be late on
shared storage, but not for ever: where somebody removes the folder under a save, it never comes.
"""

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from dist_sft.checkpoint.layout import (
    WRITER,
    Manifest,
    Shard,
    folder_of,
    is_ours,
    is_quarantined,
    is_whole,
    remove,
    whole_steps,
)
from dist_sft.checkpoint.shards import describe, write_shard
from dist_sft.checkpoint.starts import STARTS
from dist_sft.core.errors import CheckpointError, SftError, StorageOutage
from dist_sft.core.files import sync_folder, write_json
from dist_sft.core.ownership import remove_ours
from dist_sft.core.storage import cure, failures, is_remote, lasts, listed, retried

POLL, REMOTE_POLL = 0.1, 1.0
"""Seconds between two looks of rank 0 at what has been written; behind a URL each is a request."""
LATE = 180.0
"""Seconds that rank 0 waits for a record after its rank has written it: NFS shows some files a minute later."""


@dataclass(frozen=True)
class Retention:
    """Which whole checkpoints stay: the newest, and those with the lowest loss on held-out rows.

    Of those in quarantine, the newest stays.
    """

    newest: int
    best: int = 0

    def surplus(self, checkpoints: Path) -> list[Path]:
        """Checkpoints that can go. The newest whole one never can."""
        steps = whole_steps(checkpoints)
        kept = set(steps[-self.newest :])
        if self.best:
            judged = sorted((loss, -step) for step in steps if (loss := _held_out(checkpoints, step)) is not None)
            kept |= {-step for _, step in judged[: self.best]}
        surplus = [folder_of(checkpoints, step) for step in steps if step not in kept]
        quarantined = sorted(path.name for path in listed(checkpoints, "step_") if is_quarantined(path))
        return surplus + [checkpoints / name for name in quarantined[:-1]]


def _held_out(checkpoints: Path, step: int) -> float | None:
    try:
        return Manifest.read(folder_of(checkpoints, step)).held_out
    except CheckpointError:  # whoever loads it will say so
        return None


class Writing:
    """Begins at once, in threads of its own; `written` and `committed` wait for them.

    seconds  from the beginning of the save until the checkpoint was whole (on rank 0)
    stall    of these, that training stalled; None: all of them
    stayed   on rank 0, why old checkpoints that could go are still there
    """

    def __init__(
        self,
        checkpoints: Path,
        attempt: str,
        manifest: Manifest,
        tensors: dict[str, Tensor],
        pieces: dict[str, tuple[int, int]],
        starts: dict[str, Tensor],
        retention: Retention,
        began: float,
    ) -> None:
        self.final = folder_of(checkpoints, manifest.step)
        self._checkpoints, self._attempt, self._manifest = checkpoints, attempt, manifest
        self._tensors, self._pieces, self._starts = tensors, pieces, starts
        self._retention, self._began = retention, began
        self.step, self.seconds = manifest.step, 0.0
        self.stall: float | None = None
        self.stayed: list[str] = []
        self._abandoned = threading.Event()
        self._due = math.inf
        self._write_error: SftError | None = None
        self._commit_error: SftError | None = None
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._writer = self._start(self._write)
        self._committer = self._start(self._commit) if self._rank == 0 else None

    @staticmethod
    def _start(action: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=action, name="checkpoint", daemon=True)
        thread.start()
        return thread

    def written(self) -> SftError | None:
        """Wait for this rank's files; what went wrong, or None."""
        self._writer.join()
        return self._write_error

    def committed(self) -> SftError | None:
        """On rank 0, when all ranks have written: wait until the checkpoint is whole; what went wrong, or None."""
        assert self._committer is not None
        self._due = time.monotonic() + LATE
        self._committer.join()
        return self._commit_error

    def settle(self, seconds: float) -> None:
        """Wait for what can still be written of it, for so long at most."""
        for thread in filter(None, (self._writer, self._committer)):
            thread.join(seconds)

    def abandon(self) -> None:
        """Give the checkpoint up, and remove what there is of it."""
        self._abandoned.set()
        if self._committer is not None:
            self._committer.join()
            with contextlib.suppress(failures(self.final)):  # else the next save does it
                if not is_whole(self.final):
                    remove_ours(self.final, is_ours)

    def _write(self) -> None:
        folder = self.final / self._attempt
        try:
            shards = {}
            path = folder / f"rank{self._rank:05d}.safetensors"
            shards[path.name] = retried(path, lambda: write_shard(path, self._tensors, self._pieces, self._rank))
            if self._starts and self._rank == 0:
                shards[STARTS] = retried(path, lambda: write_shard(folder / STARTS, self._starts, {}, 0))
            record = {file: asdict(shard) for file, shard in shards.items()}
            retried(path, lambda: write_json(self._record(self._rank), record, indent=None))
        except Exception as error:  # noqa: BLE001  # a thread that dies tells nobody; `written` does
            self._write_error = _cannot_save(error, self.final, f"rank {self._rank}: ")

    def _commit(self) -> None:
        try:
            shards: dict[str, Shard] = {}
            for rank in range(self._world):
                if (record := self._awaited(rank)) is None:
                    return
                shards |= {f"{self._attempt}/{file}": Shard(**fields) for file, fields in record.items()}
            manifest = replace(self._manifest, shards=shards)
            retried(self.final, lambda: self._put(manifest))
        except Exception as error:  # noqa: BLE001  # likewise; `committed` tells
            self._commit_error = _cannot_save(error, self.final)
        else:
            self.stayed = self._remove_surplus()
        self.seconds = time.monotonic() - self._began

    def _awaited(self, rank: int) -> dict[str, dict[str, Any]] | None:
        """What a rank has written; None if that is never going to be whole. Raises OSError where it is gone."""
        path, own = self._record(rank), self._record(self._rank)
        while not retried(path, path.exists):
            if self._abandoned.wait(REMOTE_POLL if is_remote(path) else POLL):
                return None
            done = not self._writer.is_alive() and self._write_error is None
            if (done and not retried(own, own.exists)) or time.monotonic() > self._due:
                raise OSError(f"{self._attempt}/{path.name} is gone: somebody has removed what was written")
        record: dict[str, dict[str, Any]] = json.loads(retried(path, path.read_bytes))
        return record

    def _record(self, rank: int) -> Path:
        """What a rank tells rank 0 by."""
        return self.final / self._attempt / f"rank{rank:05d}.json"

    def _put(self, manifest: Manifest) -> None:
        """The moment at which the checkpoint is there."""
        for name, shard in manifest.shards.items():
            size = (self.final / name).stat().st_size
            if size != shard.bytes:
                raise OSError(f"{name} has {size} bytes here, {shard.bytes} where rank {shard.rank} wrote it")
        sync_folder(self.final / self._attempt)
        sync_folder(self._checkpoints)
        self._refuse_if_taken_over()
        manifest.write(self.final)
        self._refuse_if_taken_over()  # the request may have been on its way for long

    def _remove_surplus(self) -> list[str]:
        try:
            surplus = self._retention.surplus(self._checkpoints)
        except Exception as error:  # noqa: BLE001  # likewise; `stayed` tells
            return [f"old checkpoints stay until the next save: {describe(error, self._checkpoints)}"]
        return [problem for old in surplus if (problem := remove(old))]

    def _refuse_if_taken_over(self) -> None:
        if (owner := (self._checkpoints / WRITER).read_text()) != self._attempt:
            raise CheckpointError(f"another start of this run has taken over: {owner}")


def _cannot_save(error: Exception, checkpoint: Path, who: str = "") -> SftError:
    kind = CheckpointError if lasts(error) else StorageOutage
    return kind(
        f"the checkpoint cannot be written: {who}{describe(error, checkpoint)}",
        where=str(checkpoint),
        fix=f"{cure(checkpoint, error)} (or lower checkpoint.keep), and run the same command again: "
        "it goes on from the newest whole checkpoint, which is untouched",
    )
