"""Save and load on all ranks together.

save: every rank its shards in step_N.ATTEMPT.partial/ (fsync, SHA-256) -> all agree -> manifest -> rename
load: newest first; ranks share the work of verifying; what fails is put aside, and the one before it is used

Every method is a collective: all ranks call it, and all return or all raise.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from dist_sft.checkpoint.agreement import on_rank_0
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
from dist_sft.checkpoint.starts import STARTS
from dist_sft.core.errors import CheckpointError
from dist_sft.core.files import sync_folder


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    step   updates done
    state  what the run keeps besides
    aside  checkpoints that could not be trusted, with the reason
    """

    step: int
    state: dict[str, Any]
    aside: tuple[str, ...]


@dataclass
class CheckpointStore:
    """The checkpoints of one run.

    folder   RUN_DIR/checkpoints, on storage that all ranks see
    keep     newest ones that survive a save
    adapter  save only the parameters that are trained
    attempt  names this start of the run, so that ranks left over from another cannot write into its files
    starts   what the adapter started from, see `checkpoint.starts`
    """

    folder: Path
    keep: int
    adapter: bool
    attempt: str
    starts: dict[str, Tensor] = field(default_factory=dict)

    def save(self, engine: Any, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint of `step` updates; it is found from the moment that this returns, or not at all."""
        final = folder_of(self.folder, step)
        partial = final.with_name(f"{final.name}.{self.attempt}.partial")
        on_rank_0(self.folder, lambda: self._clear(final, partial))
        files = ShardFiles(dist.get_rank())
        with files.used_by(engine):
            engine.save_checkpoint(str(partial), tag=SHARDS, save_latest=False, exclude_frozen_parameters=self.adapter)
        if self.starts and dist.get_rank() == 0:
            files.save(self.starts, str(partial / SHARDS / STARTS))
        shards = _agree(files, partial)
        manifest = Manifest(step, dist.get_world_size(), engine.zero_optimization_stage(), self.adapter, state, shards)
        on_rank_0(final, lambda: self._commit(manifest, partial, final))

    def load(self, engine: Any) -> Progress:
        """Bring the engine to the newest whole checkpoint; to step 0 if there are none at all.

        Raises CheckpointError where none can be trusted, or where the newest is of another world size or ZeRO stage.
        """
        bad: dict[Path, str] = {}
        for step in reversed(on_rank_0(self.folder, lambda: whole_steps(self.folder))):
            folder = folder_of(self.folder, step)
            manifest, problem = _verify(folder)
            if manifest is None:
                bad[folder] = problem
                continue
            self._check_fits(manifest, engine, folder)
            on_rank_0(self.folder, lambda: [put_aside(folder, problem) for folder, problem in bad.items()])
            self._load_into(engine, folder)
            return Progress(step, manifest.state, tuple(f"{path.name}: {why}" for path, why in bad.items()))
        if bad:
            raise CheckpointError(
                f"none of the {len(bad)} checkpoints can be trusted; the newest: {next(iter(bad.values()))}",
                where=str(self.folder),
                fix="bring one back from a copy, or remove them to begin again from the base model",
            )
        return Progress(0, {}, ())

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
            old = folder_of(self.folder, step)
            shutil.rmtree(old.rename(old.with_name(f"{old.name}.partial")))

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


def _verify(folder: Path) -> tuple[Manifest | None, str]:
    """The manifest of a whole checkpoint, or None and what is wrong; the same on every rank, each reads its part.

    Raises CheckpointError where the storage fails: that says nothing about the checkpoint.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    manifest, found, failed = None, [], None
    try:
        manifest = Manifest.read(folder)
        mine = list(manifest.shards.items())[rank::world]
        found = [problem for name, shard in mine if (problem := verify_shard(folder, name, shard))]
    except CheckpointError as error:
        found = [error.what]
    except OSError as error:
        failed = f"rank {rank} cannot read it: {error}"
    outcomes: list[Any] = [None] * world
    dist.all_gather_object(outcomes, (found, failed))
    for _, failure in outcomes:
        if failure:
            raise CheckpointError(failure, where=str(folder), fix="see that the storage works, then run this again")
    problem = next((problem for problems, _ in outcomes for problem in problems), "")
    return (None, problem) if problem else (manifest, "")


def _cannot_save(problem: str, path: Path) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint cannot be written: {problem}",
        where=str(path),
        fix="make room (or lower checkpoint.keep) and run the same command again: "
        "it goes on from the newest whole checkpoint, which is untouched",
    )
