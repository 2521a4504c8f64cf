"""Save and load on all ranks together.

    save: every rank its shards in step_N.partial/ (fsync, SHA-256) -> all agree -> manifest -> rename
    load: newest first; ranks share the work of verifying; what fails is put aside, and the next one is tried

Every method is a collective: all ranks call it, and all return or all raise.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dist_sft.checkpoint.layout import (
    SHARDS,
    Manifest,
    Shard,
    folder_of,
    put_aside,
    verify_shard,
    whole_steps,
)
from dist_sft.checkpoint.shards import ShardFiles, describe
from dist_sft.core.errors import CheckpointError
from dist_sft.core.files import sync_folder


@dataclass
class CheckpointStore:
    """The checkpoints of one run.

    folder   RUN_DIR/checkpoints, on storage that all ranks see
    keep     newest ones that survive a save
    adapter  save only the parameters that are trained
    """

    folder: Path
    keep: int
    adapter: bool

    def save(self, engine: Any, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint of `step` updates; it is found from the moment that this returns, or not at all."""
        final = folder_of(self.folder, step)
        partial = final.with_name(f"{final.name}.partial")
        _together(lambda: self._clear(final, partial))
        files = ShardFiles(dist.get_rank())
        with files.used_by(engine):
            engine.save_checkpoint(str(partial), tag=SHARDS, save_latest=False, exclude_frozen_parameters=self.adapter)
        shards = _agree(files, partial)
        manifest = Manifest(step, dist.get_world_size(), engine.zero_optimization_stage(), self.adapter, state, shards)
        _together(lambda: self._commit(manifest, partial, final))

    def load(self, engine: Any) -> tuple[int, dict[str, Any]]:
        """Bring the engine to the newest whole checkpoint. Returns (updates done, state); (0, {}) if there is none."""
        for step in reversed(_from_rank_0(whole_steps(self.folder) if dist.get_rank() == 0 else None)):
            folder = folder_of(self.folder, step)
            if (problem := _verify(folder)) is None:
                manifest = Manifest.read(folder)
                self._check_fits(manifest, engine, folder)
                self._load_into(engine, folder)
                return manifest.step, manifest.state
            _together(lambda folder=folder, problem=problem: put_aside(folder, problem))
        return 0, {}

    def _clear(self, final: Path, partial: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob("step_*.partial"):
            shutil.rmtree(left)
        if final.exists():
            put_aside(final, "saved again by a run that had started from an earlier step")
        (partial / SHARDS).mkdir(parents=True)

    def _commit(self, manifest: Manifest, partial: Path, final: Path) -> None:
        try:
            for name, shard in manifest.shards.items():
                size = (partial / name).stat().st_size
                if size != shard.bytes:
                    raise OSError(f"{name} has {size} bytes here, {shard.bytes} where rank {shard.rank} wrote it")
            manifest.write(partial)
            sync_folder(partial / SHARDS)
            partial.rename(final)
        except OSError as error:
            problem = describe(error, self.folder)
            shutil.rmtree(partial, ignore_errors=True)
            raise _cannot_save(problem, final) from error
        sync_folder(self.folder)
        for step in whole_steps(self.folder)[: -self.keep]:
            shutil.rmtree(folder_of(self.folder, step))

    def _check_fits(self, manifest: Manifest, engine: Any, folder: Path) -> None:
        have = (dist.get_world_size(), engine.zero_optimization_stage(), self.adapter)
        if (manifest.world, manifest.zero_stage, manifest.adapter) != have:
            raise CheckpointError(
                f"written by {manifest.world} workers with ZeRO-{manifest.zero_stage}"
                f"{' (adapter)' if manifest.adapter else ''}; this run has {have[0]} with ZeRO-{have[1]}"
                f"{' (adapter)' if have[2] else ''}",
                where=str(folder),
                fix=f"resume with cluster.workers={manifest.world} and the same DeepSpeed stage",
            )

    def _load_into(self, engine: Any, folder: Path) -> None:
        with ShardFiles(dist.get_rank()).used_by(engine):
            loaded, _ = engine.load_checkpoint(
                str(folder), tag=SHARDS, load_module_strict=not self.adapter, load_lr_scheduler_states=False
            )
        assert loaded, f"DeepSpeed found nothing in {folder}"


def _agree(files: ShardFiles, partial: Path) -> dict[str, Shard]:
    """The shards of all ranks; if one could not be written, all ranks raise the same CheckpointError."""
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, (files.written, files.error))
    for rank, (_, error) in enumerate(outcomes):
        if error:
            if dist.get_rank() == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise _cannot_save(f"rank {rank}: {error}", partial)
    return {f"{SHARDS}/{name}": shard for written, _ in outcomes for name, shard in written.items()}


def _verify(folder: Path) -> str | None:
    """What is wrong with a checkpoint, the same on every rank; each rank reads its part of the files."""
    rank, world = dist.get_rank(), dist.get_world_size()
    try:
        shards = Manifest.read(folder).shards
        mine = [verify_shard(folder, name, shard) for name, shard in list(shards.items())[rank::world]]
    except CheckpointError as error:
        mine = [error.what]
    problems: list[Any] = [None] * world
    dist.all_gather_object(problems, [problem for problem in mine if problem])
    return next((problem for found in problems for problem in found), None)


def _together(action: Any) -> None:
    """Rank 0 acts; all ranks return when it is done, or raise what it raised."""
    outcome: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            action()
        except (CheckpointError, OSError) as error:
            outcome = [error if isinstance(error, CheckpointError) else CheckpointError(str(error))]
    dist.broadcast_object_list(outcome, src=0)
    if outcome[0] is not None:
        raise outcome[0]


def _from_rank_0(value: Any) -> Any:
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def _cannot_save(problem: str, path: Path) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint cannot be written: {problem}",
        where=str(path),
        fix="make room (or lower checkpoint.keep) and run the same command again: "
        "it goes on from the newest whole checkpoint, which is untouched",
    )
